"""Load test of a server on this machine: each connection sends its next request as soon as it has a response."""

from __future__ import annotations

import datetime
import http.client
import json
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from manyheads.core.errors import ArgumentError, DataError
from manyheads.recsys.features.cells import shown
from manyheads.recsys.features.frames import as_frame, check_frame

# seconds to wait for a response
TIMEOUT = 60.0


@dataclass(frozen=True)
class Load:
    """Result of :func:`load_test`: responses by status (0: no response), latency in ms, throughput per second."""

    requests: int
    connections: int
    candidates: int
    statuses: dict[str, int]
    p50_ms: float
    p99_ms: float
    answers_per_second: float
    rows_per_second: float


def load_test(url: str, rows: pd.DataFrame, *, candidates: int, requests: int, connections: int, seed: int = 0) -> Load:
    """Send ``requests`` requests with ``candidates`` rows each, sampled from ``rows``; return latency and throughput.

    Raises:
        ArgumentError: an address of another machine, or one where no server answers.
        DataError: rows without a field of the model.
    """
    for name, value in (("candidates", candidates), ("requests", requests), ("connections", connections)):
        if value < 1:
            raise ArgumentError(f"load: {name}: found {value}, expected 1 or more")
    host, port = _place(url)
    try:
        model = json.loads(_ask(http.client.HTTPConnection(host, port, timeout=TIMEOUT), "GET", "/model", b"")[1])
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ArgumentError(f"url: found {url}, where no server answers ({error}): manyheads recsys serve") from error
    bodies = make_bodies(model, rows, candidates, np.random.default_rng(seed), min(requests, 64))
    taken = np.zeros(requests)
    statuses: list[int] = [0] * requests
    turns, lock = iter(range(requests)), threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        while True:
            with lock:
                number = next(turns, None)
            if number is None:
                return
            begun = time.perf_counter()
            try:
                statuses[number] = _ask(connection, "POST", "/score", bodies[number % len(bodies)])[0]
            except (OSError, http.client.HTTPException):
                connection.close()
            taken[number] = time.perf_counter() - begun

    threads = [threading.Thread(target=work) for _ in range(connections)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    good = taken[np.array(statuses) == 200]
    p50, p99 = np.percentile(good if len(good) else [float("nan")], [50, 99]) * 1e3
    by_status = {str(status): count for status, count in sorted(Counter(statuses).items())}
    rate = len(good) / seconds
    return Load(requests, connections, candidates, by_status, float(p50), float(p99), rate, rate * candidates)


def make_bodies(
    model: dict[str, Any], rows: pd.DataFrame, candidates: int, rng: np.random.Generator, count: int
) -> list[bytes]:
    """Return JSON bodies of sampled rows: request and candidates if the model has shared fields, whole rows if not."""
    names = [field["name"] for field in model["fields"]]
    shared = [field["name"] for field in model["fields"] if field["shared"]]
    rows = as_frame(rows, "rows")
    check_frame(rows, names, "rows")
    made = []
    for _ in range(count):
        drawn = rows[names].iloc[rng.integers(0, len(rows), candidates)]
        plain = as_json(drawn)
        if shared:
            request = {name: plain[0][name] for name in shared}
            asked: dict[str, Any] = {
                "request": request,
                "candidates": [{name: row[name] for name in names if name not in request} for row in plain],
            }
        else:
            asked = {"rows": plain}
        made.append(json.dumps(asked).encode())
    return made


def as_json(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as the server reads them, values exact, missing ones as None."""
    columns = {str(name): [_cell(cell) for cell in frame.iloc[:, n].astype(object)] for n, name in enumerate(frame)}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _cell(cell: Any) -> Any:
    """Return a cell of a table as a JSON value."""
    if isinstance(cell, np.ndarray | list | tuple):
        return [_cell(part) for part in cell]
    if isinstance(cell, set | frozenset):
        return sorted((_cell(part) for part in cell), key=str)
    if pd.isna(cell):
        return None
    if isinstance(cell, pd.Period):
        cell = cell.start_time
    if isinstance(cell, np.datetime64):
        cell = pd.Timestamp(cell)
    if isinstance(cell, datetime.date):
        return cell.isoformat()
    if isinstance(cell, np.timedelta64 | datetime.timedelta):
        return pd.Timedelta(cell).total_seconds()
    if isinstance(cell, np.generic):
        return cell.item()
    if isinstance(cell, Decimal | Fraction):
        return float(cell)
    if isinstance(cell, pd.Interval | uuid.UUID):
        return str(cell)
    if not isinstance(cell, str | bool | int | float | dict):
        raise DataError(f"rows: found {type(cell).__name__} ({shown(cell)}), expected what JSON has a value for")
    return cell


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection.request(method, path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ArgumentError(f"url: found {url}, expected http://127.0.0.1:PORT") from error
    if host not in ("127.0.0.1", "localhost", "::1") or port is None:
        raise ArgumentError(f"url: found {url}, expected http://127.0.0.1:PORT: load is for this machine only")
    return host, port
