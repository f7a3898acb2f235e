"""Split clips into train, validation and test (80 / 10 / 10), by speaker if possible.

A hash of the speaker's name decides the part, so that a clip added later moves no other clip. If a part would be empty,
or if fewer than half of the speakers would be for training, the borders move by as few speakers as needed. Clips
without speaker names, and those of one or two speakers, are split by a hash of the clip, separately for each word.
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
# Hash values from which on a name belongs to validation and to test.
BORDERS = (0.8, 0.9)
# Fewest clips of a word, and fewest speakers of a split by speaker.
FEWEST = 3
# Smallest share of the clips that a split by speaker must leave for training.
TRAINED = 1 / 4
# End of the speaker's name in a file name.
MARK = "_nohash_"


def speaker_of(label: str, stem: str) -> str:
    """Return the speaker: the file name before ``_nohash_``, as in Speech Commands; else a unique name of the clip."""
    return stem.split(MARK)[0] if MARK in stem else f"{label}/{stem}"


def split_clips(clips: Sequence[Clip]) -> list[Clip]:
    """Assign each clip to train, validation or test.

    Clips are split by speaker if there are three or more, some of them named, and if the train part then contains every
    word and a quarter of the clips. Otherwise they are split by clip. Each word needs :data:`FEWEST` clips or more.
    """
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
    """Assign each of three or more names to a part by its hash.

    No part is empty. At least half of the names are for training (one of three).
    """
    order = sorted(set(names), key=lambda name: (_hash(name), name))
    validation, test = (sum(_hash(name) < border for name in order) for border in BORDERS)
    validation = min(max(validation, len(order) // 2, 1), len(order) - 2)
    test = min(max(test, validation + 1), len(order) - 1)
    return {
        name: "train" if place < validation else "validation" if place < test else "test"
        for place, name in enumerate(order)
    }


def parted(clips: Sequence[Clip]) -> list[Clip]:
    """Return the clips with the split of their data set, or split by :func:`split_clips` if it has none."""
    return list(clips) if any(clip.split for clip in clips) else split_clips(clips)


def separation(clips: Sequence[Clip]) -> str:
    """Return one line: how many speakers each part has, which parts share speakers, and whether the accuracy therefore
    says nothing about other people."""
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
