"""An HTTP server over an exported model, bound to this machine.

    POST /score   {"rows": [{...}, ...]}  or  {"request": {...}, "candidates": [{...}, ...]}
    GET  /health  GET /model

What cannot be scored is answered with 422 and the reason, a body above the limit with 413, and the server goes on.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import ArgumentError, DataError, ManyheadsError
from manyheads.lab.onnx_files import need_package
from manyheads.recsys.serving.ranker import Ranker, Scored

if TYPE_CHECKING:
    from fastapi import FastAPI

HOST = "127.0.0.1"
MAX_ROWS = 10_000
MAX_BYTES = 8 << 20
EXTRA = "manyheads-recsys[serve]"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def make_app(ranker: Ranker, *, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES) -> FastAPI:
    """The server's application. Raises :class:`MissingPackageError` without fastapi."""
    need_package("fastapi", EXTRA)
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    if max_rows < 1 or max_bytes < 1:
        raise ArgumentError(f"serve: max_rows and max_bytes: found {max_rows} and {max_bytes}, expected 1 or more")
    app = FastAPI(title="manyheads recsys", docs_url=None, redoc_url=None)  # their pages load from elsewhere
    app.add_middleware(_Limited, limit=max_bytes)

    async def score(request: Request) -> JSONResponse:
        body = await request.body()
        return JSONResponse(await run_in_threadpool(answer, ranker, body, max_rows))

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": " ".join(str(error).split())}, 422)

    async def unknown(request: Request, error: Any) -> JSONResponse:
        served = "POST /score, GET /model and GET /health are served"
        said = f"{request.method} {request.url.path}: {error.detail.lower()}: {served}"
        return JSONResponse({"error": said}, error.status_code, error.headers)  # 405 names the methods there

    async def health() -> dict[str, str]:
        return {"status": "ok"}

    async def model() -> dict[str, Any]:
        return described(ranker, max_rows, max_bytes)

    # annotations are text here, and fastapi looks names up in the module
    score.__annotations__ = {"request": Request, "return": JSONResponse}
    app.add_api_route("/score", score, methods=["POST"])
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/model", model, methods=["GET"])
    app.add_exception_handler(ManyheadsError, refused)
    app.add_exception_handler(HTTPException, unknown)
    return app


def serve(ranker: Ranker, port: int, ready: Callable[[str], None], *, max_rows: int, max_bytes: int) -> None:
    """Serves until it is interrupted; ``ready`` is told the address, of a free port where ``port`` is 0.

    Raises :class:`ArgumentError` for a port that is taken, :class:`MissingPackageError` without uvicorn.
    """
    need_package("uvicorn", EXTRA)
    import uvicorn

    app = make_app(ranker, max_rows=max_rows, max_bytes=max_bytes)
    # with the protocol named: asyncio sends small answers at once (TCP_NODELAY) only on sockets that have it
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(256)  # whoever asks from now on waits instead of being refused
        except (OSError, OverflowError) as error:
            raise ArgumentError(f"port: found {port}, expected one that is free ({error}): take 0 for any") from error
        ready(f"http://{HOST}:{listener.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", access_log=False, limit_concurrency=256)
        uvicorn.Server(config).run(sockets=[listener])


def answer(ranker: Ranker, body: bytes, max_rows: int) -> dict[str, Any]:
    """What ``POST /score`` gives. Raises a :class:`ManyheadsError` for what cannot be scored."""
    try:
        asked = json.loads(body, parse_constant=_no_number)
    except RecursionError as error:
        raise DataError("body: nested too deeply, expected rows of plain values") from error
    except ValueError as error:
        raise DataError(f"body: found no JSON ({error}), expected an object") from error
    whole = isinstance(asked, dict) and asked.keys() == {"rows"}
    if not whole and not (isinstance(asked, dict) and asked.keys() == {"request", "candidates"}):
        found = f"keys {sorted(asked)[:5]}" if isinstance(asked, dict) else type(asked).__name__
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


class _Limited:
    """Takes in a request's body and answers 413 as soon as it is above the limit, whatever its header says."""

    def __init__(self, app: Any, *, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        held, size, more = [], 0, True
        too_large = stated.isdigit() and int(stated) > self.limit
        while more and not too_large:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            held.append(message.get("body", b""))
            size += len(held[-1])
            more = message.get("more_body", False)
            too_large = size > self.limit
        if too_large:
            await _too_large(send, self.limit)
            return
        body = b"".join(held)
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


async def _too_large(send: Send, limit: int) -> None:
    content = json.dumps({"error": f"body: above {limit} bytes, expected less: send the rows in parts"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": content})
