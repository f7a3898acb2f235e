"""Split clips into train, validation and test, by speaker where that is possible, and say what is kept apart.

A hash of the speaker's name decides, 80 / 10 / 10, so that a clip that is added later moves no other. If a part would
be empty, or less than half of the speakers would be for training, the borders move by as few speakers as needed. Clips
without names of speakers, and those of one or two speakers, are split by a hash of the clip, each word for itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from manyheads.kws.audio.clips import Clip

Split = Literal["train", "validation", "test", ""]
PARTS: tuple[Split, ...] = ("train", "validation", "test")
BORDERS = (0.8, 0.9)  # of the hash: where validation and test begin
FEWEST = 3  # clips of a word, and speakers of a split by speaker
TRAINED = 1 / 4  # share of the clips that a split by speaker must leave for training
MARK = "_nohash_"  # what ends a speaker's name in a file name


def speaker_of(label: str, stem: str) -> str:
    """What stands before ``_nohash_``, as in Speech Commands; otherwise the clip is a speaker of its own."""
    return stem.split(MARK)[0] if MARK in stem else f"{label}/{stem}"


def split_clips(clips: Sequence[Clip]) -> list[Clip]:
    """The clips with their part, by speaker if at least three are named, if every word is left for training, and with
    it a quarter of the clips; otherwise by clip. Each word has :data:`FEWEST` clips or more."""
    speakers = {clip.speaker for clip in clips}
    if sum(_is_named(speaker) for speaker in speakers) and len(speakers) >= FEWEST:
        parts = parts_of(speakers)
        split = [replace(clip, split=parts[clip.speaker]) for clip in clips]
        trained = [clip for clip in split if clip.split == "train"]
        every_word = {clip.label for clip in trained} == {clip.label for clip in clips}
        if every_word and len(trained) >= TRAINED * len(clips):
            return split
    by_clip: dict[str, Split] = {}
    for label in {clip.label for clip in clips}:
        by_clip |= parts_of(_name(clip) for clip in clips if clip.label == label)
    return [replace(clip, split=by_clip[_name(clip)]) for clip in clips]


def parts_of(names: Iterable[str]) -> dict[str, Split]:
    """A part for each of three or more names, by its hash; no part is empty, and half of the names are for training
    (one of three)."""
    order = sorted(set(names), key=lambda name: (_hash(name), name))
    validation, test = (sum(_hash(name) < border for name in order) for border in BORDERS)
    validation = min(max(validation, len(order) // 2, 1), len(order) - 2)
    test = min(max(test, validation + 1), len(order) - 1)
    return {
        name: "train" if place < validation else "validation" if place < test else "test"
        for place, name in enumerate(order)
    }


def parted(clips: Sequence[Clip]) -> list[Clip]:
    """The clips as they are if their set has a split, otherwise split by :func:`split_clips`."""
    return list(clips) if any(clip.split for clip in clips) else split_clips(clips)


def separation(clips: Sequence[Clip]) -> str:
    """One line: which parts are of the same speakers, and what an accuracy on them therefore leaves unknown."""
    named = {clip.speaker for clip in clips if _is_named(clip.speaker)}
    if not named:
        return (
            f"no speaker is named (<speaker>{MARK}<n>.wav): the parts hold other clips, maybe of the same people; "
            "accuracy on other people is unknown"
        )
    count = f"{len(named)} speaker{'s' if len(named) > 1 else ''}"
    heard = {part: {c.speaker for c in clips if c.split == part and c.speaker in named} for part in PARTS}
    filled = [part for part in PARTS if any(clip.split == part for clip in clips)]
    unnamed = sum(clip.speaker not in named for clip in clips)
    more = f"; {unnamed} of {len(clips)} clips name no speaker" if unnamed else ""
    shared = [part for part in filled[1:] if heard["train"] & heard[part]]
    if not shared:
        sizes = ", ".join(f"{len(heard[part])} in {part}" for part in filled)
        return f"{count}: {sizes}, none in two parts{more}"
    same = "speaker" if len(named) == 1 else "speakers"
    unknown = "; accuracy on other people is unknown" if "test" in shared else ""
    return f"{count}: {_listed(['train', *shared])} hold other clips of the same {same}{unknown}{more}"


def _is_named(speaker: str) -> bool:
    return "/" not in speaker


def _name(clip: Clip) -> str:
    return f"{clip.label}/{clip.path.stem}"


def _hash(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
