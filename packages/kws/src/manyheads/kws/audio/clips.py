"""Clips of spoken words: file, label, speaker and split."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.kws.audio.catalogue import datasets
from manyheads.kws.audio.containers import KINDS, SUFFIXES, UNREADABLE
from manyheads.kws.audio.split import FEWEST, Split, speaker_of, split_clips
from manyheads.lab.data.registry import find


@dataclass(frozen=True)
class Clip:
    """One recording of one word."""

    path: Path
    label: str
    speaker: str
    split: Split


def clips_of(name: str) -> list[Clip]:
    """Return the clips of a data set by name, or of a folder of ``label/*.wav``.

    Raises :class:`UnknownNameError` for an unknown name, :class:`DataError` for data that cannot be used.
    """
    if Path(name).is_dir():
        return clips_of_folder(Path(name))
    try:
        collection = find(name, datasets)
    except UnknownNameError as error:
        raise UnknownNameError("set or folder", name, [d.name for d in datasets]) from error
    folder = collection.open()
    if collection.rows:
        return [Clip(folder / r["path"], r["label"], r["speaker"], cast(Split, r["split"])) for r in collection.rows]
    return speech_commands(folder)


def speech_commands(folder: Path) -> list[Clip]:
    """Return the clips of Google Speech Commands with its official split: clips on neither list are for training.

    Raises :class:`DataError` if a list is missing.
    """
    lists: dict[str, Split] = {}
    for filename, split in (("validation_list.txt", "validation"), ("testing_list.txt", "test")):
        path = folder / filename
        if not path.is_file():
            raise DataError(f"{path}: no such file: expected the lists of Speech Commands beside its folders")
        lists |= dict.fromkeys(path.read_text().split(), split)
    found = sorted(p for p in folder.glob("*/*.wav") if not p.parent.name.startswith("_"))
    return [
        Clip(p, p.parent.name, p.name.split("_")[0], lists.get(f"{p.parent.name}/{p.name}", "train")) for p in found
    ]


def clips_of_folder(folder: Path) -> list[Clip]:
    """Return the clips of a folder of ``label/*.wav``, split by :func:`manyheads.kws.audio.split.split_clips`.

    Other suffixes of ``containers.SUFFIXES`` are read too. The speaker is the part of the file name before
    ``_nohash_``, as in Speech Commands. A clip without this mark counts as a speaker of its own.

    Raises :class:`DataError` for fewer than two labels, and for a label with fewer than three clips.
    """
    clips = [Clip(path, path.parent.name, speaker_of(path.parent.name, path.stem), "") for path in _sounds_of(folder)]
    counts = Counter(clip.label for clip in clips)
    if len(counts) < 2:
        raise DataError(
            f"{folder}: found {len(counts)} labels, expected two or more folders of sound files: "
            "add a folder of clips for each further word"
        )
    label, fewest = min(counts.items(), key=lambda item: item[1])
    if fewest < FEWEST:
        raise DataError(
            f"{folder / label}: found {fewest} clips, expected at least {FEWEST}: to train, to choose and to test: "
            f"record {FEWEST - fewest} more"
        )
    return split_clips(clips)


def _sounds_of(folder: Path) -> list[Path]:
    """Return the sound files in the label folders.

    Other files there, and sound files at another depth, are reported on standard error. Hidden files, and folders whose
    name begins with an underscore, are skipped.

    Raises :class:`DataError` for a sound file in a format that cannot be read.
    """
    found, others, misplaced = [], [], []
    for path in sorted(folder.rglob("*")):
        parts, suffix = path.relative_to(folder).parts, path.suffix.lower()
        if any(part.startswith(".") for part in parts) or parts[0].startswith("_") or not path.is_file():
            continue
        if suffix in UNREADABLE:
            raise DataError(f"{path}: found {suffix}, expected a {KINDS} file: convert it, or take it out")
        if len(parts) == 2:
            (found if suffix in SUFFIXES else others).append(path)
        elif suffix in SUFFIXES:
            misplaced.append(path)
    for paths, why in ((others, "no sound by its name"), (misplaced, "not in the folder of a label: label/file")):
        if paths:
            more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
            print(f"{paths[0]}{more}: left out: {why}", file=sys.stderr)
    return found


def hold_out(clips: Iterable[Clip], speaker: str) -> list[Clip]:
    """Put all clips of one speaker into the test part and all others into the train part (leave one speaker out).

    Raises :class:`ArgumentError` for an unknown speaker.
    """
    clips = list(clips)
    speakers = sorted({clip.speaker for clip in clips})
    if speaker not in speakers:
        raise ArgumentError(f"held out: found {speaker!r}, expected one of {', '.join(speakers)}")
    return [replace(clip, split="test" if clip.speaker == speaker else "train") for clip in clips]


def labels_of(clips: Iterable[Clip]) -> tuple[str, ...]:
    """Return the labels in alphabetical order."""
    return tuple(sorted({clip.label for clip in clips}))


def only(clips: Sequence[Clip], labels: Iterable[str]) -> list[Clip]:
    """Return the clips with one of these labels."""
    wanted = set(labels)
    return [clip for clip in clips if clip.label in wanted]
