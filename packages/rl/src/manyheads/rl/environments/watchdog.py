"""A watchdog for environments: one that raises, dies or hangs gives an error that names environment and step.

The calls run in a thread of their own, and the caller waits for it with a time limit. This is the only way to come back
from a call that is stuck outside Python, as ale-py's is after an invalid action. A call costs two switches of threads.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from manyheads.core.errors import ArgumentError, ManyheadsError

TIMEOUT = 30.0


class EnvironmentFailedError(ManyheadsError, RuntimeError):
    """An environment raised an error, died, or did not answer in time.

    ``environment`` is its index in the vector, or None if it could not be found out.
    """

    def __init__(self, message: str, environment: int | None = None) -> None:
        super().__init__(message)
        self.environment = environment


class Watchdog:
    """Call functions of an environment with a time limit.

    Args:
        name: name of the environment, for messages.
        timeout: seconds before a call counts as hanging; None to call without a thread and without a limit.
    """

    def __init__(self, name: str, timeout: float | None = TIMEOUT) -> None:
        self._line: _Line | None = None
        if timeout is not None and not timeout > 0:
            raise ArgumentError(f"timeout: found {timeout!r}, expected seconds above 0 or None: correct it")
        self.name, self.timeout = name, timeout
        self.failure: EnvironmentFailedError | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, place: str) -> Any:
        """Return ``function(*arguments)``; ``place`` such as ``step 12`` goes into the message of an error.

        After a failure the environment cannot be used any more: each later call raises the same error.

        Raises:
            EnvironmentFailedError: if the call raises, or takes longer than the limit.
            ManyheadsError: of the call itself, unchanged.
        """
        if self.failure is not None:
            raise EnvironmentFailedError(str(self.failure), self.failure.environment)
        try:
            if self.timeout is None:
                return function(*arguments)
            if self._line is None:
                self._line = _Line(self.name)
            return self._line.call(function, arguments, self.timeout)
        except ManyheadsError:
            raise
        except _NoAnswerError as silence:
            self._line = None
            raise self._fail(
                place, silence.frame, f"no answer in {self.timeout:g} s{_at(silence.frame)}", _HANGS
            ) from None
        except (Exception, SystemExit) as error:
            frame = _deepest(error.__traceback__)
            if isinstance(error, EOFError | ConnectionError) and _module(frame) == "multiprocessing.connection":
                raise self._fail(place, frame, "its process dead", _DIED) from error
            raise self._fail(place, frame, _words(error) + _at(frame), _RAISED) from error
        except BaseException:
            if self._line is not None and self._line.is_busy:
                self._line = None
                self._fail(place, None, "an interruption", "expected none: make the environment again")
            raise

    def close(self) -> None:
        """End the thread."""
        if self._line is not None:
            self._line.end()
            self._line = None

    def __del__(self) -> None:
        self.close()

    def _fail(self, place: str, frame: FrameType | None, found: str, expected: str) -> EnvironmentFailedError:
        index = _environment_of(frame)
        where = self.name if index is None else f"{self.name}, environment {index}"
        self.failure = EnvironmentFailedError(f"{where}, {place}: found {found}, {expected}", index)
        return self.failure


_HANGS = "expected one: correct the environment, or make it with a longer timeout"
_RAISED = "expected no error: correct the environment"
_DIED = "expected a running one: look for its last words above, and make the environment again"


class _NoAnswerError(Exception):
    """A call took too long; ``frame`` is where its thread is."""

    def __init__(self, frame: FrameType | None) -> None:
        super().__init__()
        self.frame = frame


class _Line:
    """A thread that makes one call at a time. Locks are the fastest way to hand over in Python."""

    def __init__(self, name: str) -> None:
        self._asked = threading.Lock()
        self._asked.acquire()
        self._inbox: list[_Call | None] = [None]
        self.is_busy = False
        # The thread holds lock and inbox, not this object, so that it ends with an environment that is not closed.
        self._thread = threading.Thread(
            target=_serve, args=(self._asked, self._inbox), name=f"environment {name}", daemon=True
        )
        self._thread.start()

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout: float) -> Any:
        call = self._inbox[0] = _Call(function, arguments)
        self.is_busy = True
        self._asked.release()
        try:
            call.answered.acquire(timeout=timeout)
        except BaseException:
            # Ctrl-C: let the call end first, so that the environment can be used afterwards. The lock may have been
            # taken just before the interruption.
            if not call.is_done:
                call.answered.acquire(timeout=timeout)
            self.is_busy = not call.is_done
            raise
        self.is_busy = False
        if not call.is_done:
            # The thread is left alone; it ends if the call ever does.
            frame = sys._current_frames().get(self._thread.ident or 0)
            self.end()
            raise _NoAnswerError(None if frame is None or frame.f_code is _serve.__code__ else frame)
        if call.error is not None:
            raise call.error
        return call.result

    def end(self) -> None:
        """Let the thread end after its present call, if there is one."""
        self._inbox[0] = None
        if self._asked.locked():
            self._asked.release()


class _Call:
    """A function with its arguments, and its result or error once ``is_done``."""

    __slots__ = ("answered", "arguments", "error", "function", "is_done", "result")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        self.answered = threading.Lock()
        self.answered.acquire()


def _serve(asked: threading.Lock, inbox: list[_Call | None]) -> None:
    while True:
        asked.acquire()
        call = inbox[0]
        if call is None:
            return
        # Keep nothing of the environment while waiting.
        inbox[0] = None
        try:
            call.result = call.function(*call.arguments)
        except BaseException as error:
            call.error = error
        call.is_done = True
        call.answered.release()
        call = None


def _deepest(trace: TracebackType | None) -> FrameType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame


def _environment_of(frame: FrameType | None) -> int | None:
    """Return the index of the environment that a vector environment of Gymnasium was busy with, None if unknown."""
    while frame is not None:
        seen = frame.f_locals
        for module, names in _LOOPS.items():
            if _module(frame) == module:
                index = next((seen[name] for name in names if name in seen), None)
                if index is not None:
                    return int(index)
                if "pipe" in seen:
                    return _number_of(seen["pipe"], frame)
        frame = frame.f_back
    return None


# The loops over environments in Gymnasium, and what they call their index.
_LOOPS = {
    "gymnasium.vector.sync_vector_env": ("i",),
    "gymnasium.vector.async_vector_env": ("env_idx", "index"),
}


def _number_of(pipe: object, frame: FrameType | None) -> int | None:
    """Return the number of a pipe to a worker of AsyncVectorEnv."""
    while frame is not None:
        pipes = getattr(frame.f_locals.get("self"), "parent_pipes", ())
        if pipe in pipes:
            return pipes.index(pipe)
        frame = frame.f_back
    return None


def _module(frame: FrameType | None) -> str:
    return "" if frame is None else frame.f_globals.get("__name__", "")


def _at(frame: FrameType | None) -> str:
    return "" if frame is None else f" ({frame.f_code.co_filename}:{frame.f_lineno})"


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
