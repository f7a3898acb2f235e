"""The process that computes a result: its command, its versions, its rank."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path


def first_process() -> bool:
    """Whether this is the one process, or the one of ``torchrun``'s that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def command_line() -> str:
    """The command that this process runs, as it is typed; empty where it is none of ``manyheads``."""
    program = Path(sys.argv[0])
    if program.name == "manyheads":
        return shlex.join(["manyheads", *sys.argv[1:]])
    if program.name == "__main__.py" and program.parent.parent.name == "manyheads":
        return shlex.join(["python", "-m", f"manyheads.{program.parent.name}", *sys.argv[1:]])
    return ""


def environment() -> dict[str, str]:
    """Versions and machine."""
    packages = ("manyheads-core", "torch", "numpy", "lightning-fabric")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        **{name: version(name) for name in packages},
    }
