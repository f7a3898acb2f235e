"""Files that are whole or not there."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes beside ``path``, syncs and renames: a crash leaves the old file or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table; the header is the keys of all rows in the order in which they are met."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, out.getvalue().encode())


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a matplotlib figure in the format that the name ends in."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=140)
    write_atomically(path, picture.getvalue())


def check_suffix(name: str, path: Path | None, allowed: Sequence[str]) -> None:
    """Raises :class:`ArgumentError` where the argument ``name`` ends in none of ``allowed``."""
    if path is not None and path.suffix not in allowed:
        raise ArgumentError(f"{name}: found {path}, expected a name that ends in {' or '.join(allowed)}")


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a rename inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
