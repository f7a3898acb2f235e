"""A command line made of plain functions.

A command is a function with typed keyword arguments; its docstring is its help and it returns an :class:`Outcome`.
``--json`` prints the outcome's document, and nothing else, on standard output; progress and logs go to standard error.
Exit status: 0 done, 2 bad input (one line says what and how to mend it; ``--debug`` shows the traceback).
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from manyheads.core.errors import ArgumentError, ManyheadsError, ManyheadsWarning, UnknownNameError
from manyheads.lab.data.fields import plain
from manyheads.lab.training.environment import first_process


@dataclass(frozen=True)
class Outcome:
    """What a command has to say."""

    document: Any  # JSON-able, printed with --json
    text: Any = ""  # str or a rich renderable, printed without


Commands = Mapping[str, "Callable[..., Outcome]"]
PIPED_WIDTH = 120  # columns of a table where there is no terminal
_as_json: ContextVar[bool] = ContextVar("as_json", default=False)


def run_commands(prog: str, description: str, commands: Commands, argv: Sequence[str]) -> int:
    """Runs ``argv[0]`` of ``commands`` with the rest as its arguments; returns the exit status."""
    arguments = [a for a in argv if a not in ("--json", "--debug")]
    as_json, debug = "--json" in argv, "--debug" in argv
    _as_json.set(as_json)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(prog, description, commands), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise UnknownNameError("command", arguments[0], commands)
        with _warnings_as_lines():
            outcome = _call(commands[arguments[0]], f"{prog} {arguments[0]}", arguments[1:])
        if first_process():
            _print_outcome(outcome, as_json)
    except ManyheadsError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _discard_output()
        return 1
    except OSError as error:
        if debug:
            raise
        print(f"error: {_os_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return 0


@contextlib.contextmanager
def _warnings_as_lines() -> Generator[None]:
    """Show every warning as one line on standard error, without the path and the source line that Python adds."""

    def show(message: Warning | str, category: object, filename: str, lineno: int, file=None, line=None) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", ManyheadsWarning)
        warnings.showwarning = show  # ty: ignore[invalid-assignment]
        yield


def say(line: str) -> None:
    """A line while a command still runs: on standard output, which ``--json`` keeps for the document, so that the line
    then goes to standard error."""
    print(line, file=sys.stderr if _as_json.get() else sys.stdout, flush=True)


def usage(prog: str, description: str, commands: Commands) -> str:
    """The help page: one line a command."""
    width = max(map(len, commands), default=0)
    lines = [f"usage: {prog} COMMAND [--json] [--debug] …", "", description, "", "commands:"]
    for name, command in commands.items():
        summary = (command.__doc__ or "").strip().split("\n")[0]
        lines.append(f"  {name:<{width}}  {summary}")
    lines += ["", f"{prog} COMMAND --help tells more."]
    return "\n".join(lines)


def _call(command: Callable[..., Outcome], prog: str, arguments: Sequence[str]) -> Outcome:
    if not arguments and not inspect.signature(command).parameters:
        return command()  # runs without the extra [lab], as the doctor must
    import tyro

    @functools.wraps(command)
    def bound(*positional: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return positional, named

    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--") and argument != "--"]
    twice = [name for name in options if options.count(name) > 1]
    if twice:
        raise ArgumentError(f"{twice[0]}: found twice, expected once, with all of its values behind it")
    flat = (tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes)
    positional, named = parse(bound, arguments, prog=prog, config=flat)
    return command(*positional, **named)


def parse(target: Callable[..., Any], arguments: Sequence[str], *, prog: str, **options: Any) -> Any:
    """``tyro.cli`` whose complaints are one line: raises :class:`ArgumentError`."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(target, prog=prog, args=list(arguments), **options)
    except SystemExit as stop:
        if not stop.code:
            raise  # the help page
        raise ArgumentError(f"{_complaint(said.getvalue())}: {prog} --help tells more") from stop


def _complaint(box: str) -> str:
    """What tyro says below a title, with or without a frame, as one line and without its help."""
    lines = [line.strip("\u2502 ") for line in box.strip().splitlines()[1:]]
    said = " ".join(line for line in lines if line.strip("\u2500\u2570\u256f-"))
    return re.split(r"Argument helptext|For full helptext", said)[0].strip(" .")


def _os_error(error: OSError) -> str:
    """One line: the path or "standard output", and what the system said of it."""
    said = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return said if error.filename is None else f"{error.filename}: {said}"


def _discard_output() -> None:
    """Send what standard output still holds to the null device, so that the flush at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _print_outcome(outcome: Outcome, as_json: bool) -> None:
    try:
        _print(outcome, as_json)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise OSError(error.errno, error.strerror, "standard output") from error


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps(plain(outcome.document), indent=2, ensure_ascii=False, allow_nan=False))
        return
    if isinstance(outcome.text, str):
        print(outcome.text)
        return
    from rich.console import Console

    # with a height too: rich takes a dumb terminal for 80 columns unless both are given
    Console(width=_width(outcome.text), height=25).print(outcome.text, markup=False, highlight=False)


def _width(text: Any) -> int:
    """Columns of the output: those of the terminal, else ``$COLUMNS`` or 120, and never so few that a figure is cut."""
    from rich.console import Console
    from rich.measure import Measurement

    asked = os.environ.get("COLUMNS", "")
    columns = int(asked) if asked.isdecimal() and int(asked) > 0 else None
    if columns is None:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH
    wide = Console(width=10_000, height=25)
    return max(columns, Measurement.get(wide, wide.options, text).minimum)
