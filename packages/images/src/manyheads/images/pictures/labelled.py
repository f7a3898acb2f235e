"""Labelled pictures: scikit-learn's digits, or a folder with one subfolder for each label.

A folder is ``label/*.png``, split at random into train, validation and test part with the same share of every label;
or ``train/label/*.png`` and ``test/label/*.png``, with or without ``validation``, which are kept as they are.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyheads.core.errors import DataError
from manyheads.images.pictures.catalogue import DIGITS
from manyheads.lab.data.pictures import SUFFIXES, read_picture, resized
from manyheads.lab.data.registry import read

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Labelled:
    """Pictures ``(N, H, W, C)`` of bytes with the number of each one's label, in three parts."""

    pixels: np.ndarray
    targets: np.ndarray
    labels: tuple[str, ...]
    parts: dict[str, np.ndarray]
    """Part -> indices."""
    notes: tuple[str, ...] = ()
    """What was converted on reading."""


def digits(size: int, shares: tuple[float, float]) -> Labelled:
    """Read scikit-learn's digits, resized to ``size``; see :func:`split` for the shares."""
    table = np.loadtxt(io.BytesIO(read(DIGITS)), delimiter=",", dtype=np.float32)
    pixels = np.stack([resized(one.reshape(8, 8, 1) / 16, size) for one in table[:, :-1]])
    targets = table[:, -1].astype(np.int64)
    return Labelled(_bytes(pixels), targets, tuple("0123456789"), split(targets, shares))


def folder(root: Path, size: int, channels: int, shares: tuple[float, float]) -> Labelled:
    """Read a folder of labelled pictures, resized to ``size`` x ``size``; see the module for its layouts.

    Raises :class:`DataError` for a folder that is absent, has fewer than two labels, a label with fewer than three
    pictures, a label in the test part that the train part lacks, or a file that is no picture.
    """
    if not root.is_dir():
        raise DataError(f"{root}: found no folder, expected one with a subfolder of pictures for each label")
    inside = {path.name for path in root.iterdir() if path.is_dir()}
    divided = {"train", "test"} <= inside <= set(PARTS)
    files = {part: _files(root / part) for part in PARTS if part in inside} if divided else {"": _files(root)}
    first = files["train" if divided else ""]
    labels = tuple(sorted(first))
    if len(labels) < 2:
        raise DataError(f"{root}: found {len(labels)} labels, expected a subfolder of pictures for each of two or more")
    converted: Counter[str] = Counter()
    pixels, targets, places = [], [], []
    for part, found in files.items():
        for label, paths in sorted(found.items()):
            if label not in first:
                raise DataError(f"{root / part / label}: found a label that the train part lacks: add it or remove it")
            if not divided and len(paths) < 3:
                raise DataError(f"{root / label}: found {len(paths)} pictures, expected three or more to be split")
            for path in paths:
                picture = read_picture(path, channels)
                converted.update(picture.notes)
                pixels.append(_bytes(resized(picture.pixels, size)))
                targets.append(labels.index(label))
                places.append(part)
    numbers = np.array(targets, dtype=np.int64)
    parts = split(numbers, shares)
    if divided:
        own = np.array(places)
        parts = {part: np.flatnonzero(own == part) for part in PARTS}
    notes = tuple(f"{root}: {count} of {len(numbers)} pictures: {what}" for what, count in converted.items())
    return Labelled(np.stack(pixels), numbers, labels, parts, notes)


def split(targets: np.ndarray, shares: tuple[float, float], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return indices of the train, validation and test part, with the same share of each label in each.

    ``shares`` are those of validation and test; a label has at least one picture in the test part.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    chosen: dict[str, list[int]] = {part: [] for part in PARTS}
    for label in np.unique(targets):
        own = [int(i) for i in order if targets[i] == label]
        test = max(1, round(shares[1] * len(own)))
        validation = round(shares[0] * len(own))
        chosen["test"] += own[:test]
        chosen["validation"] += own[test : test + validation]
        chosen["train"] += own[test + validation :]
    return {part: np.array(sorted(found), dtype=np.int64) for part, found in chosen.items()}


def _files(root: Path) -> dict[str, list[Path]]:
    """Label -> picture files, hidden ones left out."""
    found = {}
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            own = _pictures(path.iterdir())
            if own:
                found[path.name] = own
    return found


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.round(pixels * 255).astype(np.uint8)
