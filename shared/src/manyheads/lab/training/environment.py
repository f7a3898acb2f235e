"""Facts about the running process: command, versions, rank."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path


def first_process() -> bool:
    """Return whether this process prints and writes: rank 0 under ``torchrun``, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def command_line() -> str:
    """Return the command of this process as typed; empty if it is no command of ``manyheads``."""
    program = Path(sys.argv[0])
    if program.name == "manyheads":
        return shlex.join(["manyheads", *sys.argv[1:]])
    if program.name == "__main__.py" and program.parent.parent.name == "manyheads":
        return shlex.join(["python", "-m", f"manyheads.{program.parent.name}", *sys.argv[1:]])
    return ""


def environment() -> dict[str, str]:
    """Return the versions of Python and libraries, the machine and the operating system."""
    packages = ("manyheads-core", "torch", "numpy", "lightning-fabric")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        **{name: version(name) for name in packages},
    }
