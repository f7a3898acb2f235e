"""HTTP server for an exported model, bound to 127.0.0.1.

    POST /score   {"rows": [{...}, ...]}  or  {"request": {...}, "candidates": [{...}, ...]}
    GET  /health  GET /model

Errors: 422 with the reason for rows that cannot be scored, 413 for a body above the size limit, 408 for a body that
does not arrive in time, 415 for a content type other than JSON, 400 for another host. No error stops the server.
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
# names of this machine: a web page whose domain resolves to it (DNS rebinding) has another name in the Host header
HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_ROWS = 10_000
MAX_BYTES = 8 << 20
SECONDS = 10.0
# a body that is too large is read up to so many times the limit, so that the client receives the response
DISCARDED = 16
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
    """Build the FastAPI application.

    Args:
        ranker: the model.
        max_rows: maximum number of rows of a request.
        max_bytes: maximum size of a body.
        hosts: accepted names in the Host header, without port; ``*`` accepts any.
        seconds: time limit for a body to arrive.

    Raises:
        ArgumentError: a limit that is not positive.
        MissingPackageError: fastapi is not installed.
    """
    need_package("fastapi", PACKAGE, "serve")
    from fastapi import FastAPI, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException

    if max_rows < 1 or max_bytes < 1:
        raise ArgumentError(f"serve: max_rows and max_bytes: found {max_rows} and {max_bytes}, expected 1 or more")
    if not seconds > 0:
        raise ArgumentError(f"serve: seconds: found {seconds}, expected more than 0")
    # no documentation pages, as they load scripts from elsewhere; no redirects: only the documented paths answer
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
        return answered({"error": _one_line(str(error))}, 422)

    async def unknown(request: Request, error: Any) -> Response:
        served = "POST /score, GET /model and GET /health are served"
        error_text = f"{request.method} {request.url.path}: {error.detail.lower()}: {served}"
        # the headers of a 405 name the allowed methods
        return answered({"error": _one_line(error_text)}, error.status_code, error.headers)

    async def health() -> Response:
        return answered({"status": "ok"})

    async def model() -> Response:
        return answered(described(ranker, max_rows, max_bytes))

    # annotations are strings here (PEP 563), and fastapi would look the names up in the module
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
    """Serve until interrupted.

    ``port`` 0 takes a free one; ``ready`` is called with the address. A connection that sends no complete request
    within ``seconds`` is closed. If there are too many connections, one that sends no request is closed.

    Raises:
        ArgumentError: a port that is in use.
        MissingPackageError: uvicorn is not installed.
    """
    need_package("uvicorn", PACKAGE, "serve")
    import uvicorn

    from manyheads.recsys.serving.connections import patient

    app = make_app(ranker, max_rows=max_rows, max_bytes=max_bytes, hosts=hosts, seconds=seconds)
    # name the protocol: asyncio sets TCP_NODELAY, which sends small responses at once, only on such sockets
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            # from now on, clients wait instead of being refused
            listener.listen(256)
        except (OSError, OverflowError) as error:
            raise ArgumentError(f"port: found {port}, expected one that is free ({error}): take 0 for any") from error
        ready(f"http://{HOST}:{listener.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="error", access_log=False, http=patient(seconds), ws="none")
        uvicorn.Server(config).run(sockets=[listener])


def answer(ranker: Ranker, body: bytes, max_rows: int) -> dict[str, Any]:
    """Return the answer to ``POST /score``. Raises :class:`ManyheadsError` for a body that cannot be scored."""
    try:
        return _answer(ranker, body, max_rows)
    except RecursionError as error:
        raise DataError("body: nested too deeply, expected rows of plain values") from error


def _answer(ranker: Ranker, body: bytes, max_rows: int) -> dict[str, Any]:
    try:
        asked = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
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
    """Return the answer to ``GET /model``."""
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


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON; null stands for what is not known")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _json(content: Any) -> bytes:
    """Encode as ASCII JSON: the content may have text that UTF-8 cannot encode, such as half of a surrogate pair."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def _one_line(text: str) -> str:
    """Return ``text`` as one line of at most 500 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 500 else f"{line[:499]}…"


def _refusal(name: str, found: str, expected: str) -> dict[str, str]:
    return {"error": _one_line(f"{name}: found {found[:100]}, expected {expected}")}


class _Guard:
    """ASGI middleware: check the Host header and the size of the body.

    The body has at most ``limit`` bytes, whatever its Content-Length header says, and arrives within ``seconds``.
    """

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
            error_text = f"body: found a part of it after {self.seconds:g} s, expected all of it"
            await _send(send, 408, {"error": error_text})
            return
        if body is None:
            await self._too_large(receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """Return the body; None if it is too large, by its header or by its received bytes."""
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated[:20]) > self.limit:
            return None
        held, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                # the client has disconnected
                return b"".join(held)
            held.append(message.get("body", b""))
            size += len(held[-1])
            if size > self.limit:
                return None
            more = message.get("more_body", False)
        return b"".join(held)

    async def _too_large(self, receive: Receive, send: Send) -> None:
        """Send 413 at once, then read and discard the rest of the body.

        A connection that is closed with unread bytes is reset, and its client never sees the response.
        """
        error_text = f"body: above {self.limit} bytes, expected less: send the rows in parts"
        await _send(send, 413, {"error": error_text}, more=True)
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
    """Send a response and close the connection; with ``more`` it stays open for now."""
    body = _json(content)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})
