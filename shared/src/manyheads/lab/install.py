"""The command that installs what is missing: from the clone that this installation came from, or from the git URL."""

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
    """The folder of a distribution in a clone."""
    return "shared" if package == CORE else f"packages/{package.removeprefix('manyheads-')}"


def need_package(module: str, package: str, extra: str, *, place: str = "") -> None:
    """Check that an optional library is installed.

    Args:
        module: name of the library as it is imported.
        package: the distribution that uses it, such as ``manyheads-kws``.
        extra: the extra of ``package`` that brings it.
        place: the file or setting that needs it, for the message.

    Raises:
        MissingPackageError: with the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise missing(module, package, extra, place=place)


def missing(module: str, package: str, extra: str = "", *, place: str = "") -> MissingPackageError:
    """The error for a library that is not installed; the arguments of :func:`need_package`."""
    where = f"{place}: " if place else ""
    return MissingPackageError(f"{where}{module} is not installed: {install_command(package, extra)}")


def install_command(package: str, extra: str = "") -> str:
    """The pip command that installs a distribution of this library together with the core.

    The distributions are on no index. The command names folders of the clone that the core was installed from, relative
    if that is the working directory, and the git URL if there is no clone.
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
    """The root of the clone that the core was installed from."""
    try:
        source = distribution(CORE).read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    url = urlparse(json.loads(source)["url"]) if source else None
    if url is None or url.scheme != "file":
        return None
    root = Path(unquote(url.path)).parent
    return root if (root / "constraints.txt").is_file() and (root / folder_of(CORE)).is_dir() else None
