"""An HTTP server over an exported model, bound to this machine.

    POST /score   {"rows": [{...}, ...]}  or  {"request": {...}, "candidates": [{...}, ...]}
    GET  /health  GET /model

What cannot be scored is answered with 422 and the reason, a body above the limit with 413, one that does not come in
time with 408, one that is no JSON by its header with 415, a request for another host with 400, and the server goes on.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import ArgumentError, DataError, ManyheadsError
from manyheads.lab.install import need_package
from manyheads.recsys.features.cells import shown
from manyheads.recsys.serving.ranker import Ranker, Scored

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST = "127.0.0.1"
HOSTS = (
    "127.0.0.1",
    "localhost",
    "[::1]",
)  # names of this machine: a page elsewhere that points its name here has none
MAX_ROWS = 10_000
MAX_BYTES = 8 << 20
SECONDS = 10.0
DISCARDED = 16  # times the limit: so much of a body that is too large is read, for its sender to hear the answer
PACKAGE = "manyheads-recsys"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def make_app(
    ranker: Ranker,
    *,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    hosts: Sequence[str] = HOSTS,
    seconds: float = SECONDS,
) -> FastAPI:
    """The server's application.

    Args:
        ranker: the model.
        max_rows: more rows in a request are refused.
        max_bytes: larger bodies are refused.
        hosts: names that a request may be for, without port; ``*`` for any.
        seconds: that a body may take to come.

    Raises :class:`MissingPackageError` without fastapi.
    """
    need_package("fastapi", PACKAGE, "serve")
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException

    if max_rows < 1 or max_bytes < 1:
        raise ArgumentError(f"serve: max_rows and max_bytes: found {max_rows} and {max_bytes}, expected 1 or more")
    if not seconds > 0:
        raise ArgumentError(f"serve: seconds: found {seconds}, expected more than 0")
    # no pages and no schema, which load from elsewhere; no other address than the ones that are told
    app = FastAPI(title="manyheads recsys", openapi_url=None, redirect_slashes=False)
    app.add_middleware(_Guard, limit=max_bytes, hosts=hosts, seconds=seconds)

    def answered(content: Any, status: int = 200, headers: Any = None) -> Response:
        return Response(_json(content), status, headers, "application/json")

    async def score(request: Request) -> Response:
        found = request.headers.get("content-type", "application/json")
        kind, _, parameters = found.lower().partition(";")
        if kind.strip() != "application/json" or parameters.strip() not in ("", "charset=utf-8", 'charset="utf-8"'):
            return answered(_refusal("content-type", found, "application/json"), 415)
        packing = request.headers.get("content-encoding", "identity")
        if packing.lower() != "identity":
            return answered(_refusal("content-encoding", packing, "none"), 415)
        body = await request.body()
        return answered(await run_in_threadpool(answer, ranker, body, max_rows))

    async def refused(request: Request, error: Exception) -> Response:
        return answered({"error": _line(str(error))}, 422)

    async def unknown(request: Request, error: Any) -> Response:
        served = "POST /score, GET /model and GET /health are served"
        said = f"{request.method} {request.url.path}: {error.detail.lower()}: {served}"
        return answered({"error": _line(said)}, error.status_code, error.headers)  # 405 names the methods there

    async def health() -> Response:
        return answered({"status": "ok"})

    async def model() -> Response:
        return answered(described(ranker, max_rows, max_bytes))

    # annotations are text here, and fastapi looks names up in the module
    score.__annotations__ = {"request": Request, "return": Response}
    health.__annotations__ = model.__annotations__ = {"return": Response}
    app.add_api_route("/score", score, methods=["POST"], response_model=None)
    app.add_api_route("/health", health, methods=["GET"], response_model=None)
    app.add_api_route("/model", model, methods=["GET"], response_model=None)
    app.add_exception_handler(ManyheadsError, refused)
    app.add_exception_handler(HTTPException, unknown)
    return app


def serve(
    ranker: Ranker,
    port: int,
    ready: Callable[[str], None],
    *,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    hosts: Sequence[str] = HOSTS,
    seconds: float = SECONDS,
) -> None:
    """Serves until it is interrupted; ``ready`` is told the address, of a free port where ``port`` is 0. A connection
    that sends no whole request within ``seconds`` is closed, and so is one that sends none where there are too many.

    Raises :class:`ArgumentError` for a port that is taken, :class:`MissingPackageError` without uvicorn.
    """
    need_package("uvicorn", PACKAGE, "serve")
    import uvicorn

    from manyheads.recsys.serving.connections import patient

    app = make_app(ranker, max_rows=max_rows, max_bytes=max_bytes, hosts=hosts, seconds=seconds)
    # with the protocol named: asyncio sends small answers at once (TCP_NODELAY) only on sockets that have it
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(256)  # whoever asks from now on waits instead of being refused
        except (OSError, OverflowError) as error:
            raise ArgumentError(f"port: found {port}, expected one that is free ({error}): take 0 for any") from error
        ready(f"http://{HOST}:{listener.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="error", access_log=False, http=patient(seconds), ws="none")
        uvicorn.Server(config).run(sockets=[listener])


def answer(ranker: Ranker, body: bytes, max_rows: int) -> dict[str, Any]:
    """What ``POST /score`` gives. Raises a :class:`ManyheadsError` for what cannot be scored."""
    try:
        return _answer(ranker, body, max_rows)
    except RecursionError as error:
        raise DataError("body: nested too deeply, expected rows of plain values") from error


def _answer(ranker: Ranker, body: bytes, max_rows: int) -> dict[str, Any]:
    try:
        asked = json.loads(body.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_once)
    except ValueError as error:
        raise DataError(f"body: found no JSON ({error}), expected an object") from error
    whole = isinstance(asked, dict) and asked.keys() == {"rows"}
    if not whole and not (isinstance(asked, dict) and asked.keys() == {"request", "candidates"}):
        found = (
            f"keys [{', '.join(map(shown, sorted(asked)[:5]))}]" if isinstance(asked, dict) else type(asked).__name__
        )
        raise DataError(f"body: found {found}, expected an object with 'rows', or with 'request' and 'candidates'")
    key = "rows" if whole else "candidates"
    rows = asked[key]
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{key}: found {'an empty list' if rows == [] else type(rows).__name__}, expected objects")
    if len(rows) > max_rows:
        raise DataError(f"{key}: found {len(rows)} rows, expected at most {max_rows}: send them in parts")
    if not whole and not isinstance(asked["request"], dict):
        raise DataError(f"request: found {type(asked['request']).__name__}, expected an object of fields and values")
    scored = ranker.score_rows(rows) if whole else ranker.score(asked["request"], rows)
    return _as_json(ranker, scored)


def described(ranker: Ranker, max_rows: int, max_bytes: int) -> dict[str, Any]:
    """What ``GET /model`` gives."""
    shared = set(ranker.shared)
    fields = [
        {"name": one.name, "kind": one.kind, "holds": one.family, "shared": one.name in shared}
        for one in ranker.encoder.spec.fields
    ]
    labels = [
        {"name": task, "scored": classes[1], "other": classes[0]}
        for task, classes in zip(ranker.labels.tasks, ranker.labels.classes, strict=True)
    ]
    limits = {"rows": max_rows, "bytes": max_bytes}
    return {
        "model": ranker.about["model"],
        "int8": ranker.int8,
        "fields": fields,
        "labels": labels,
        "limits": limits,
    }


def _as_json(ranker: Ranker, scored: Scored) -> dict[str, Any]:
    columns = zip(ranker.labels.tasks, scored.probabilities.T, strict=True)
    return {
        "scores": {task: column.tolist() for task, column in columns},
        "unseen": {name: count for name, count in scored.unseen.items() if count},
        "missing": {name: count for name, count in scored.missing.items() if count},
    }


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON; null stands for what is not known")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _json(content: Any) -> bytes:
    """In ASCII: an answer may name text that UTF-8 cannot hold, such as half of a surrogate pair."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def _line(text: str) -> str:
    """One line of at most 500 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 500 else f"{line[:499]}…"


def _refusal(name: str, found: str, expected: str) -> dict[str, str]:
    return {"error": _line(f"{name}: found {found[:100]}, expected {expected}")}


class _Guard:
    """Takes in a request for one of ``hosts``, and its body of at most ``limit`` bytes, whatever its header says."""

    def __init__(self, app: Any, *, limit: int, hosts: Sequence[str], seconds: float) -> None:
        self.app, self.limit, self.seconds = app, limit, seconds
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if "*" not in self.hosts and (len(named) != 1 or _without_port(named[0]) not in self.hosts):
            await _send(send, 400, _refusal("host", ", ".join(named) or "none", " or ".join(sorted(self.hosts))))
            return
        try:
            async with asyncio.timeout(self.seconds):
                body = await self._body(scope, receive)
        except TimeoutError:
            said = f"body: found a part of it after {self.seconds:g} s, expected all of it"
            await _send(send, 408, {"error": said})
            return
        if body is None:
            await self._too_large(receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """None where it is too large, by its header or by what came."""
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated[:20]) > self.limit:
            return None
        held, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(held)  # the client has gone
            held.append(message.get("body", b""))
            size += len(held[-1])
            if size > self.limit:
                return None
            more = message.get("more_body", False)
        return b"".join(held)

    async def _too_large(self, receive: Receive, send: Send) -> None:
        """Answers at once, then reads on and discards: a connection that is closed on what it was sent is reset, and
        its client never sees the answer."""
        said = f"body: above {self.limit} bytes, expected less: send the rows in parts"
        await _send(send, 413, {"error": said}, more=True)
        left, more = DISCARDED * self.limit, True
        try:
            async with asyncio.timeout(self.seconds):
                while more and left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


def _without_port(host: str) -> str:
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host.strip().lower())
    return found[1] if found else ""


async def _send(send: Send, status: int, content: Any, *, more: bool = False) -> None:
    """An answer after which the connection is closed; with ``more`` it stays open for now."""
    body = _json(content)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})
