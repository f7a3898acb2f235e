"""Time limit and maximum number of connections for the server.

A connection that sends no complete request in time is closed. If there are too many connections, the one that has
waited longest is closed.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# maximum number of open connections
MOST = 256


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a time limit for the head of a request and a maximum number of connections.

    uvicorn closes a connection that is idle after a response. It closes neither one that never sent a request nor one
    that sends a byte from time to time (slow loris).
    """

    def __init__(self, *arguments: Any, seconds: float, most: int = MOST, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.seconds, self.most = seconds, most
        self.since = self.loop.time()
        self.deadline: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Whether the request, or a part of it, has not arrived."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) > self.most:
            idle = [one for one in self.connections if isinstance(one, PatientProtocol) and one.waiting]
            # this connection is idle too: it is closed if all others are answering
            min(idle, key=lambda one: one.since).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # otherwise the next request was already sent (pipelining)
        if self.cycle.response_complete:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        content = json.dumps({"error": f"request: found no HTTP ({msg}), expected POST /score"})
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
        # otherwise the bad bytes are in the body of a request that is being answered
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(f"{head}\r\nconnection: close\r\n\r\n{content}".encode())
        self.transport.close()

    def _expect_request(self) -> None:
        self._stop_waiting()
        self.since = self.loop.time()
        self.deadline = self.loop.call_later(self.seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def patient(seconds: float, most: int = MOST) -> Any:
    """Return the protocol for ``uvicorn.Config(http=...)``."""
    return partial(PatientProtocol, seconds=seconds, most=most)
