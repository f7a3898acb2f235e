"""Run plain functions as commands.

A command is a function with typed keyword arguments that returns an :class:`Outcome`; its docstring is its help text.
``--json`` prints the document of the outcome, and nothing else, on standard output; progress and logs go to standard
error. Exit status: 0 done; 2 bad input, with one line that names the fault and its fix (``--debug`` shows the
traceback); 1 the reader of the output has closed it; 130 interrupted.
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
from typing import Annotated, Any, get_origin, get_type_hints

from manyheads.core.errors import ArgumentError, ManyheadsError, ManyheadsWarning, UnknownNameError
from manyheads.lab.data.fields import plain
from manyheads.lab.training.environment import first_process


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    document: Any
    """JSON document, printed with ``--json``."""
    text: Any = ""
    """A string or a rich renderable, printed without ``--json``."""


Commands = Mapping[str, "Callable[..., Outcome]"]
# Columns of a table if standard output is no terminal.
PIPED_WIDTH = 120
_as_json: ContextVar[bool] = ContextVar("as_json", default=False)


def run_commands(prog: str, description: str, commands: Commands, argv: Sequence[str]) -> int:
    """Run the command ``argv[0]`` with the other words as its arguments; return the exit status."""
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
    """Print a line while a command runs.

    It goes to standard output, or to standard error with ``--json``, which keeps standard output for the document.
    """
    print(line, file=sys.stderr if _as_json.get() else sys.stdout, flush=True)


def usage(prog: str, description: str, commands: Commands) -> str:
    """Return the help page: one line per command."""
    width = max(map(len, commands), default=0)
    lines = [f"usage: {prog} COMMAND [--json] [--debug] …", "", description, "", "commands:"]
    for name, command in commands.items():
        summary = (command.__doc__ or "").strip().split("\n")[0]
        lines.append(f"  {name:<{width}}  {summary}")
    lines += ["", f"{prog} COMMAND --help lists the options of a command."]
    return "\n".join(lines)


def _call(command: Callable[..., Outcome], prog: str, arguments: Sequence[str]) -> Outcome:
    if not arguments and not inspect.signature(command).parameters:
        # without tyro: the doctor must run without the extra [lab]
        return command()
    import tyro

    @functools.wraps(command)
    def bound(*positional: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return positional, named

    # with __wrapped__, tyro would read the annotations of the command instead of these
    del bound.__wrapped__
    bound.__annotations__ = _with_metavars(command)
    setattr(bound, "__signature__", inspect.signature(command))  # noqa: B010 - functions declare no such attribute
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--") and argument != "--"]
    twice = [name for name in options if options.count(name) > 1]
    if twice:
        raise ArgumentError(f"{twice[0]}: found twice, expected once, with all of its values behind it")
    flat = (tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes)
    positional, named = parse(bound, arguments, prog=prog, config=flat)
    return command(*positional, **named)


def _with_metavars(command: Callable[..., Outcome]) -> dict[str, Any]:
    """Return the annotations of a command; the help page shows a positional ``layer: str`` as LAYER, not as STR."""
    import tyro

    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        hint, metavar = hints[parameter.name], parameter.name.upper()
        marked = get_origin(hint) is Annotated
        if not marked and parameter.kind is not parameter.POSITIONAL_ONLY:
            continue
        if get_origin(hint.__origin__ if marked else hint) is tuple:
            metavar += " ..."
        if parameter.default is not parameter.empty:
            metavar = f"[{metavar}]"
        hints[parameter.name] = Annotated[hint, tyro.conf.arg(metavar=metavar)]  # ty: ignore[invalid-type-form]
    return hints


def parse(target: Callable[..., Any], arguments: Sequence[str], *, prog: str, **options: Any) -> Any:
    """Parse arguments with ``tyro.cli``; raise :class:`ArgumentError` with a message of one line."""
    import tyro

    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.cli(target, prog=prog, args=list(arguments), **options)
    except SystemExit as stop:
        if not stop.code:
            # --help was asked for
            raise
        raise ArgumentError(f"{_parse_error(output.getvalue())}: {prog} --help tells more") from stop


def _parse_error(box: str) -> str:
    """Return tyro's error text as one line, without title, frame and help."""
    lines = [line.strip("\u2502 ") for line in box.strip().splitlines()[1:]]
    text = " ".join(line for line in lines if line.strip("\u2500\u2570\u256f-"))
    return re.split(r"Argument helptext|For full helptext", text)[0].strip(" .")


def _os_error(error: OSError) -> str:
    """Return one line: the path or "standard output", and the message of the system."""
    message = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return message if error.filename is None else f"{error.filename}: {message}"


def _discard_output() -> None:
    """Redirect standard output to the null device, so that the flush at exit does not fail again."""
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

    # rich assumes 80 columns on a dumb terminal unless width and height are both given
    Console(width=_width(outcome.text), height=25).print(outcome.text, markup=False, highlight=False)


def _width(text: Any) -> int:
    """Return the width of the output in columns, never so narrow that a number is cut.

    It is ``$COLUMNS``, else the width of the terminal, else 120.
    """
    from rich.console import Console
    from rich.measure import Measurement

    asked = os.environ.get("COLUMNS", "")
    columns = int(asked) if asked.isdecimal() and int(asked) > 0 else None
    if columns is None:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH
    wide = Console(width=10_000, height=25)
    return max(columns, Measurement.get(wide, wide.options, text).minimum)
