"""Labelled pictures: scikit-learn's digits, or a folder with one subfolder for each label.

A folder is ``label/*.png``, split at random into train, validation and test part with the same share of every label;
or ``train/label/*.png`` and ``test/label/*.png``, with or without ``validation``, which are kept as they are.
"""

from __future__ import annotations

import io
from collections import Counter
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
    """What was converted and what left out on reading."""


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
    notes: list[str] = []
    places_of = {part: root / part for part in PARTS if part in inside} if divided else {"": root}
    files = {part: _files(place, notes) for part, place in places_of.items()}
    first = files["train" if divided else ""]
    labels = tuple(sorted(first))
    if len(labels) < 2:
        raise DataError(
            f"{root}: found {len(labels)} label{'' if len(labels) == 1 else 's'}, expected two or more, each a "
            f"subfolder of pictures ({', '.join(SUFFIXES)})"
        )
    converted: Counter[str] = Counter()
    for part, found in files.items():
        if part and (absent := sorted(set(first) - set(found))):
            notes.append(f"{root / part}: no picture of {', '.join(absent)}")
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
    notes += [f"{root}: {count} of {len(numbers)} pictures: {what}" for what, count in converted.items()]
    if divided and "validation" not in inside:
        notes.append(
            f"{root}: found no folder validation beside train and test: no choice of weights, no early stopping"
        )
    return Labelled(np.stack(pixels), numbers, labels, parts, tuple(notes))


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


def _files(root: Path, notes: list[str]) -> dict[str, list[Path]]:
    """Label -> picture files. Files that are left out enter the notes; hidden ones are skipped."""
    found: dict[str, list[Path]] = {}
    others, misplaced = [], []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts) or not path.is_file():
            continue
        known = path.suffix.lower() in SUFFIXES
        if known and len(parts) == 2:
            found.setdefault(parts[0], []).append(path)
        elif known:
            misplaced.append(path)
        else:
            others.append(path)
    for paths, why in ((others, "no picture by its name"), (misplaced, "not in the folder of a label: label/file")):
        if paths:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            notes.append(f"{paths[0]}{more}: left out: {why}")
    return found


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.round(pixels * 255).astype(np.uint8)
