"""Atomic writes: a reader finds the old content of a file or the new one, never a part."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import functools
import hashlib
import io
import os
import secrets
import shutil
import stat
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Ending of the name of a file that is being written.
PART = ".part"


def write_atomically(path: str | os.PathLike[str], *content: bytes | memoryview) -> None:
    """Write a file atomically: write a temporary file beside ``path``, sync it, rename it.

    A crash leaves the old file or the new one. A symbolic link stays and its target is written. Devices, pipes and
    paths below ``/dev`` or ``/proc`` are written directly, as no rename may replace them. An existing file keeps its
    mode. Temporary files that a killed writer of the same file left behind are removed.

    Raises:
        OSError: with the errno of the cause and ``path`` as its file name.
    """
    asked = os.fspath(path)
    try:
        target = os.path.realpath(asked)
        mode = _mode_of(asked)
        if (mode is not None and not stat.S_ISREG(mode)) or target.startswith(("/dev/", "/proc/")):
            _write_through(asked, content)
            return
        make_folder(os.path.dirname(target))
        _write_beside(target, mode, content)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror or os.strerror(error.errno), asked) from error


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and its parents. Raises :class:`NotADirectoryError` if a file has that name."""
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path)) from error


def remove_parts(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove the temporary files of killed writers from a folder, those of the file ``name`` or of any file.

    A writer holds a lock on its temporary file while it lives, so that no file in use is removed.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_prefix(name)) and entry.name.endswith(PART):
                _remove_unless_locked(entry.path)


@contextlib.contextmanager
def folder_atomically(target: Path) -> Generator[Path]:
    """Write a folder atomically: yield a temporary folder, renamed to ``target`` if the block ends without an error.

    The next call removes a temporary folder that a killed process left behind.
    """
    remove_parts(target.parent, target.name)
    part = target.parent / f"{_prefix(target.name)}{secrets.token_hex(4)}{PART}"
    part.mkdir()
    descriptor = os.open(part, os.O_RDONLY)
    try:
        # some file systems have no locks
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield part
        part.rename(target)
    finally:
        os.close(descriptor)
        shutil.rmtree(part, ignore_errors=True)


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the header holds the keys of all rows, in order of first appearance."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, out.getvalue().encode())


def write_figure(path: Path, figure: Figure) -> None:
    """Write a matplotlib figure in the format of the file's suffix; the same figure gives the same bytes."""
    import matplotlib

    kind, picture = path.suffix[1:], io.BytesIO()
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "manyheads"}):
        figure.savefig(picture, format=kind, dpi=140, metadata=undated.get(kind))
    write_atomically(path, picture.getvalue())


def digest_of(*paths: str | Path | None) -> str | None:
    """Return 16 hexadecimal digits for files, and for all files below folders; None if no path exists.

    They change with any byte and any name. Hidden files are left out, and so are paths that are None or absent.
    """
    whole = hashlib.sha256()
    given = [Path(path) for path in paths if path is not None and Path(path).exists()]
    for path in given:
        for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
            inside = file.relative_to(path)
            if any(part.startswith(".") for part in inside.parts):
                continue
            status = file.stat()
            own = _digest_of_file(file.resolve(), status.st_size, status.st_mtime_ns)
            whole.update(f"{inside.as_posix()}\0{own}\n".encode())
        whole.update(b"\0")
    return whole.hexdigest()[:16] if given else None


@functools.lru_cache(maxsize=1 << 17)
def _digest_of_file(path: Path, size: int, changed: int) -> str:
    """The hash of a file, read once while size and time of change stay the same."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_suffix(name: str, path: Path | None, allowed: Sequence[str]) -> None:
    """Check that a path ends in one of ``allowed``. Raises :class:`ArgumentError` about the argument ``name``."""
    if path is not None and path.suffix not in allowed:
        raise ArgumentError(f"{name}: found {path}, expected a name that ends in {' or '.join(allowed)}")


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Sync a folder, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode_of(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _write_through(path: str, content: Sequence[bytes | memoryview]) -> None:
    try:
        # without O_NONBLOCK, opening a pipe without a reader would block forever
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "a pipe that nobody reads: start its reader first", path) from error
        raise
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as stream:
        stream.writelines(content)


def _write_beside(target: str, mode: int | None, content: Sequence[bytes | memoryview]) -> None:
    folder, name = os.path.split(target)
    remove_parts(folder, name)
    with _locked_part(folder, name) as (descriptor, part):
        with open(descriptor, "wb", closefd=False) as stream:
            stream.writelines(content)
        os.fsync(descriptor)
        if mode is not None:
            os.fchmod(descriptor, stat.S_IMODE(mode))
        os.replace(part, target)
    sync_folder(folder)


@contextlib.contextmanager
def _locked_part(folder: str, name: str) -> Generator[tuple[int, str]]:
    """Yield descriptor and path of a new temporary file, locked while open and removed if writing fails."""
    descriptor, part = _new_part(folder, name)
    try:
        yield descriptor, part
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
    finally:
        os.close(descriptor)


def _new_part(folder: str, name: str) -> tuple[int, str]:
    while True:
        part = os.path.join(folder, f"{_prefix(name)}{secrets.token_hex(4)}{PART}")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # another writer is removing it as an orphan
            os.close(descriptor)
            continue
        except OSError:
            # a file system without locks
            return descriptor, part
        if os.fstat(descriptor).st_nlink:
            return descriptor, part
        os.close(descriptor)


def _prefix(name: str | None) -> str:
    """Return the prefix of temporary file names, cut to the length that a file system allows."""
    return "." if name is None else f".{name[:200]}."


def _remove_unless_locked(path: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
        finally:
            os.close(descriptor)
