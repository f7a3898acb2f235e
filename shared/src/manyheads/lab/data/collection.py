"""Data sets that are folders of many files: find, download and verify them.

The places, in order: ``$MANYHEADS_DATA``; the checkout that the package was installed from; the archives fetched from
an official address (checked by hash, unpacked once into the user's cache folder). The package contains the manifest, a
CSV with the columns ``path`` and ``sha256`` and any columns that the domain adds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from manyheads.core.errors import DataError
from manyheads.lab.data.files import folder_atomically
from manyheads.lab.data.registry import ENVIRONMENT, Origin, cache_folder


@dataclass(frozen=True)
class Collection:
    """A folder of files, with all that is needed to find, verify and cite it.

    Kinds of origins: ``checkout`` is a folder relative to the package of the manifest, present in a clone but not in a
    wheel; ``url`` is an archive with its ``sha256``, where ``member`` is the folder inside; ``manual`` holds
    instructions for the user.
    """

    name: str
    domain: str
    title: str
    licence: str
    citation: str
    bytes: int
    sha256: str | None
    """Of the manifest, or of the archive if there is no manifest."""
    local: str
    """Folder below ``$MANYHEADS_DATA``."""
    manifest: str | None
    """``"package:resource"``; None if the hash of the archive is the only check."""
    landmark: str
    """A file that the folder must contain."""
    origins: tuple[Origin, ...] = ()
    aliases: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """The rows of the manifest; empty if there is none."""
        if self.manifest is None:
            return []
        package, _, name = self.manifest.partition(":")
        return list(csv.DictReader(io.StringIO(files(package).joinpath(name).read_text())))

    def where(self) -> str | None:
        """Return the folder, or None if it is not found without the network."""
        for folder in self._places():
            if (folder / self.landmark).is_file():
                return str(folder)
        return None

    def fetch(self, out: Path | None = None) -> str | None:
        """Download the folder if it is absent; copy it into ``out`` if given. Returns its path."""
        folder = self.open()
        if out is None:
            return str(folder)
        shutil.copytree(folder, out / self.name, dirs_exist_ok=True)
        return str(out / self.name)

    def open(self, *, download: bool = True) -> Path:
        """Return the folder, downloading it if needed.

        Raises :class:`DataError` that names the places that were searched, and the fix.
        """
        found = self.where()
        if found is not None:
            return Path(found)
        looked = [f"${ENVIRONMENT}/{self.local}" + ("" if os.environ.get(ENVIRONMENT) else " (not set)")]
        for origin in self.origins:
            if origin.kind == "url" and download:
                try:
                    return self._fetch(origin)
                except OSError as error:
                    looked.append(f"{origin.location} ({type(error).__name__})")
        hints = [origin.location for origin in self.origins if origin.kind == "manual"]
        fix = hints[0] if hints else f"put the folder at ${ENVIRONMENT}/{self.local}"
        raise DataError(f"data set {self.name!r} was not found; looked at {', '.join(looked)}: {fix}")

    def verify(self) -> str:
        """Return ``"ok"``, ``"absent"``, or a message on the first file that is missing or not the published one."""
        found = self.where()
        if found is None:
            return "absent"
        for row in self.rows:
            path = Path(found) / row["path"]
            if not path.is_file():
                return f"{path} is missing: put a good copy of the folder there"
            if hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
                return f"{path} is not the published file: put a good copy of it there"
        return "ok"

    def _places(self) -> list[Path]:
        root = os.environ.get(ENVIRONMENT)
        places = [Path(root) / self.local] if root else []
        for origin in self.origins:
            if origin.kind == "checkout":
                package, _, relative = origin.location.partition(":")
                places.append((Path(str(files(package))) / relative).resolve())
            elif origin.kind == "url":
                places.append(self._unpacked(origin) / (origin.member or ""))
        return places

    def _unpacked(self, origin: Origin) -> Path:
        return cache_folder() / f"{(origin.sha256 or '')[:16]}-{self.name}"

    def _fetch(self, origin: Origin) -> Path:
        import pooch
        import requests

        if origin.sha256 is None:
            raise DataError(f"data set {self.name!r}: {origin.location} has no declared hash and is not downloaded")
        name = f"{origin.sha256[:16]}-{origin.location.rsplit('/', 1)[-1]}"
        try:
            pooch.get_logger().setLevel("WARNING")
            archive = pooch.retrieve(
                origin.location,
                known_hash=f"sha256:{origin.sha256}",
                fname=name,
                path=cache_folder(),
                progressbar=False,
            )
        except ValueError as error:
            raise DataError(
                f"data set {self.name!r}: what {origin.location} gave does not have the expected sha256 "
                f"{origin.sha256[:12]}…: put a good copy of the folder at ${ENVIRONMENT}/{self.local}"
            ) from error
        except requests.RequestException as error:
            raise ConnectionError(str(error)) from error
        target = self._unpacked(origin)
        if not target.is_dir():
            _unpack(Path(archive), target)
        return target / (origin.member or "")


def _unpack(archive: Path, target: Path) -> None:
    """Unpack an archive atomically: into a temporary folder that is renamed to ``target`` at the end."""
    try:
        with folder_atomically(target) as folder:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as packed:
                    # zipfile strips absolute paths and parent folders itself
                    packed.extractall(folder)
            else:
                with tarfile.open(archive) as packed:
                    packed.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{archive} is truncated or damaged ({type(error).__name__}): remove it and fetch again"
        ) from error
