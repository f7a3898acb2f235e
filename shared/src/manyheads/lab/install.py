"""Give the pip command for a missing package: from the clone of this installation, or from the git URL."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlparse

from manyheads.core.errors import MissingPackageError

GIT = "git+https://github.com/manyheads/manyheads"
CORE = "manyheads-core"


def folder_of(package: str) -> str:
    """Return the folder of a distribution inside a clone."""
    return "shared" if package == CORE else f"packages/{package.removeprefix('manyheads-')}"


def need_package(module: str, package: str, extra: str, *, place: str = "") -> None:
    """Check that an optional library is installed.

    Args:
        module: import name of the library.
        package: distribution that uses it, such as ``manyheads-kws``.
        extra: extra of ``package`` that installs it.
        place: file or setting that needs it, for the message.

    Raises:
        MissingPackageError: with the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise missing(module, package, extra, place=place)


def missing(module: str, package: str, extra: str = "", *, place: str = "") -> MissingPackageError:
    """Return the error for a library that is not installed; same arguments as :func:`need_package`."""
    where = f"{place}: " if place else ""
    return MissingPackageError(f"{where}{module} is not installed: {install_command(package, extra)}")


def install_command(package: str, extra: str = "") -> str:
    """Return the pip command that installs a distribution of this library together with the core.

    The distributions are on no package index. The command names folders of the clone that the core was installed from,
    as relative paths if the clone is the working directory. Without a clone it names the git URL.
    """
    wanted = {CORE: "lab"}
    wanted[package] = ",".join(sorted({*filter(None, wanted.get(package, "").split(",")), *filter(None, [extra])}))
    clone = _clone()
    if clone is None:
        parts = [f"{name}{_bracket(e)} @ {GIT}#subdirectory={folder_of(name)}" for name, e in wanted.items()]
        return "pip install " + " ".join(f'"{part}"' for part in parts)
    root = "." if clone == Path.cwd() else str(clone)
    constraints = os.path.normpath(f"{root}/constraints.txt")
    parts = [f"{root}/{folder_of(name)}{_bracket(e)}" for name, e in wanted.items()]
    return "pip install " + " ".join(["-c", *map(shlex.quote, [constraints, *parts])])


def _bracket(extras: str) -> str:
    return f"[{extras}]" if extras else ""


def _clone() -> Path | None:
    """Return the root of the clone that the core was installed from, or None."""
    try:
        source = distribution(CORE).read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    url = urlparse(json.loads(source)["url"]) if source else None
    if url is None or url.scheme != "file":
        return None
    root = Path(unquote(url.path)).parent
    return root if (root / "constraints.txt").is_file() and (root / folder_of(CORE)).is_dir() else None
