"""Measure the CPU time of a ranking request with torch and ONNX Runtime, with and without shared computation.

    python benchmarks/recsys_serving.py

The networks are field transformers: 31 fields of 1,000 values, width 64, two layers of 4 heads, a feed-forward network
twice as wide, the last layer pruned to the row of the task. 23 of the fields, three quarters, belong to the request.
Weights are random, as the time does not depend on them. One run, one thread, CPU time; all candidates take turns and
the shortest time of each counts, so that other processes disturb little. The file also holds the multiply-adds of a
candidate, which bound the gain of sharing, and ratios of times with their targets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from run import machine

from manyheads.lab.data.files import write_csv
from manyheads.recsys.features.encoder import Encoder
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.features.spec import FeatureSpec, Field
from manyheads.recsys.models import config_of
from manyheads.recsys.serving.export import export
from manyheads.recsys.serving.ranker import Ranker
from manyheads.recsys.training.calibration import Calibration
from manyheads.recsys.training.recommender import Recommender

RESULT = Path(__file__).parent / "results" / "recsys_serving.csv"
FIELDS, VALUES, SHARED, WIDTH, HEADS, EXPANSION = 31, 1000, 23, 64, 4, 2
SIZES = (1, 10, 100, 1000)
TORCH_PIECE = 125
MODELS: dict[str, tuple[str, int | None]] = {
    "vanilla": ("vanilla", None),
    "heterogeneous": ("heterogeneous", None),
    "hiformer": ("hiformer", None),
    "hiformer, rank 256": ("hiformer", 256),
    "hiformer, rank 64": ("hiformer", 64),
}
LOW = "hiformer, rank 64"
# Models that are also timed from raw values, at the largest size.
RAW = ("hiformer, rank 64", "hiformer")

Found = dict[tuple[str, str, int], float]


def made(kind: str, rank: int | None) -> Recommender:
    """Return a recommender with random weights; half of the fields hold text, half integers."""
    names = [f"f{n}" for n in range(FIELDS)]
    fields = tuple(Field(name, "categorical", "text" if n % 2 else "integer") for n, name in enumerate(names))
    encoder = Encoder.fit(table(np.tile(np.arange(VALUES)[:, None], (1, FIELDS))), FeatureSpec(fields))
    labels = Labels(("clicked",), ((0, 1),))
    settings: dict[str, Any] = {"dim": WIDTH, "heads": HEADS, "expansion": EXPANSION, "init_sd": 1.0, "rank": rank}
    config = config_of(kind, settings)
    torch.manual_seed(0)
    network = config.make(encoder.layout(labels.tasks)).eval()
    model = Recommender(kind, settings=settings)
    model.set_fitted(encoder.spec, encoder, labels, network, config, [Calibration()])
    return model


def table(values: np.ndarray) -> pd.DataFrame:
    """Return raw rows of integer values, every other column as text."""
    columns = {f"f{n}": [f"v{v}" for v in column] if n % 2 else column for n, column in enumerate(values.T)}
    return pd.DataFrame(columns)


def ways(model: Recommender, ranker: Ranker, raw: bool) -> dict[tuple[str, int], Callable[[], Any]]:
    """Return a function to be timed for every method and number of candidates."""
    found: dict[tuple[str, int], Callable[[], Any]] = {}
    rng = np.random.default_rng(1)
    names = ranker.shared
    for size in SIZES:
        values = rng.integers(0, VALUES, (size, FIELDS))
        values[:, :SHARED] = values[0, :SHARED]
        frame = table(values)
        encoded = ranker.encoder.arrays(frame)
        ids, numbers = encoded.ids.astype(np.int64), encoded.numbers
        tensors = torch.from_numpy(ids), torch.from_numpy(numbers)
        found["eager", size] = lambda tensors=tensors: model.network_(*tensors)
        if size == SIZES[-1]:
            found["eager, in pieces", size] = lambda tensors=tensors: [
                model.network_(*part) for part in zip(*(t.split(TORCH_PIECE) for t in tensors), strict=True)
            ]
        found["onnx", size] = lambda ids=ids, numbers=numbers: ranker.logits(ids, numbers)
        found["onnx, one batch", size] = lambda ids=ids: ranker.network.run(["logits"], {"ids": ids})
        found["onnx, shared", size] = lambda ids=ids, numbers=numbers: ranker.shared_logits(ids, numbers)
        if raw and size == SIZES[-1]:
            rows = frame.to_dict("records")
            request = {name: rows[0][name] for name in names}
            candidates = [{name: value for name, value in row.items() if name not in request} for row in rows]
            found["raw rows", size] = lambda rows=rows: ranker.score_rows(rows)
            found["raw request and candidates", size] = lambda r=request, c=candidates: ranker.score(r, c)
            found["raw table, torch", size] = lambda frame=frame: model.predict_proba(frame)
    return found


def multiply_adds(kind: str, rank: int | None, request: int) -> int:
    """Count the multiply-adds of a candidate; the part of the ``request`` tokens is shared (0: nothing shared)."""
    tokens, d, total = FIELDS + 1, WIDTH, 0
    for queries, elsewhere in ((tokens, request), (1, 0)):
        own = tokens - elsewhere
        outputs = (queries + 2 * tokens) * d
        if kind != "hiformer":
            asked = max(0, queries - elsewhere)
            total += (asked + 2 * own) * d * d
        elif rank is None:
            total += own * d * outputs
        else:
            total += own * d * 3 * rank + rank * outputs
        total += 2 * queries * tokens * d + queries * d * d * (1 + 2 * EXPANSION)
    return total


def measure(calls: dict[tuple[str, str, int], Callable[[], Any]], turns: int) -> Found:
    """Return the shortest CPU milliseconds of each function; from 1,000 candidates on, every second turn is skipped."""
    best: Found = {}
    for turn in range(turns):
        for key, call in calls.items():
            if key[2] >= 1000 and turn % 2:
                continue
            for _ in range(1 if key[2] >= 100 else 4):
                begun = time.process_time()
                call()
                best[key] = min(best.get(key, float("inf")), (time.process_time() - begun) * 1e3)
    return best


def ratios(found: Found) -> list[dict[str, Any]]:
    """Return the ratios of times with a target, and the same ratios of the other models for comparison."""

    def ratio(what: str, over: tuple[str, str, int], under: tuple[str, str, int], target: str = "") -> dict[str, Any]:
        value = found[over] / found[under]
        bound = float(target[2:]) if target else 0.0
        met = "" if not target else str(value <= bound if target.startswith("<=") else value >= bound)
        return {"group": "ratio", "what": what, "value": f"{value:.3f}", "target": target, "met": met}

    rows = []
    for way, size in (("onnx", 100), ("onnx", 1000), ("eager", 100), ("eager", 1000), ("eager, in pieces", 1000)):
        what = f"rank 64 over vanilla, {size} candidates, {way}"
        rows.append(ratio(what, (LOW, way, size), ("vanilla", way, size), "<=1.3"))
    for way in ("onnx", "eager", "eager, in pieces"):
        what = f"full over rank 64, 1000 candidates, {way}"
        rows.append(ratio(what, ("hiformer", way, 1000), (LOW, way, 1000), ">=4"))
    for model in MODELS:
        for size, target in ((1000, ">=1.3"), (1, ">=2")):
            held = target if model == LOW else ""
            what = f"eager over onnx, {size} candidates, {model}"
            rows.append(ratio(what, (model, "eager", size), (model, "onnx", size), held))
    for model in MODELS:
        for way, held in (("onnx", ">=2" if model == LOW else ""), ("onnx, one batch", "")):
            what = f"{way} over shared, 1000 candidates, {model}"
            rows.append(ratio(what, (model, way, 1000), (model, "onnx, shared", 1000), held))
    for model in RAW:
        for way in ("raw rows", "raw table, torch"):
            what = f"{way} over raw request and candidates, 1000 candidates, {model}"
            rows.append(ratio(what, (model, way, 1000), (model, "raw request and candidates", 1000)))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--turns", type=int, default=24, help="repetitions")
    parser.add_argument("--csv", type=Path, default=RESULT, help="file for the rows")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    calls: dict[tuple[str, str, int], Callable[[], Any]] = {}
    facts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        for name, (kind, rank) in MODELS.items():
            model = made(kind, rank)
            folder = Path(place) / name.replace(", ", "-").replace(" ", "-")
            done = export(model, folder, shared=[f"f{n}" for n in range(SHARED)])
            dense = sum(p.numel() for n, p in model.network_.named_parameters() if "tables" not in n)
            whole, shared = (multiply_adds(kind, rank, elsewhere) for elsewhere in (0, SHARED + 1))
            facts[name] = {"dense_parameters": dense, "parity": f"{done.parity:.1e}"}
            facts[name] |= {"macs": whole, "macs_shared": shared}
            mine = ways(model, Ranker.load(folder), name in RAW)
            calls |= {(name, way, size): call for (way, size), call in mine.items()}
        a, b = torch.randn(1024, 2048), torch.randn(2048, 1024)
        calls["a product of matrices", "torch", 0] = lambda: a @ b
        found = measure(calls, options.turns)
    product = found.pop(("a product of matrices", "torch", 0))
    rows: list[dict[str, Any]] = [
        {"group": "time", "model": model, "way": way, "candidates": size, "cpu_ms": f"{ms:.4f}", **facts[model]}
        for (model, way, size), ms in found.items()
    ]
    rows += ratios(found)
    rate = a.shape[0] * a.shape[1] * b.shape[1] / product / 1e6
    what = "billion multiply-adds a second in a large product"
    rows.append({"group": "machine", "what": what, "value": f"{rate:.1f}", "target": "", "met": ""})
    versions = " ".join(f"{name}={version(name)}" for name in ("torch", "onnxruntime", "numpy"))
    command = f"python benchmarks/recsys_serving.py --turns {options.turns}"
    for row in rows:
        row |= {"machine": machine(), "versions": versions, "command": command}
    write_csv(options.csv, rows)
    for row in rows:
        print({key: value for key, value in row.items() if key not in ("machine", "versions", "command")})


if __name__ == "__main__":
    main()
