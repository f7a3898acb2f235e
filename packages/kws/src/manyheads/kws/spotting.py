"""Training for streams instead of clips: other words have a label of their own, and words are heard after noise.

A network that only ever heard keywords calls everything a keyword. ``_other_`` is never reported, as no label is that
begins with an underscore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from manyheads.kws.clips import Clip, Split, clips_of, hold_out, labels_of, only
from manyheads.kws.data import ClipSet, splits_of
from manyheads.lab.experiment import Splits

OTHER = "_other_"
TRAIN, VALIDATION = 0.5, 0.2  # shares of the speakers of other words; the rest is for testing


@dataclass(frozen=True)
class SpottingSet(ClipSet):
    """A :class:`ClipSet` with a second set of words that are none of its labels."""

    others: str = "gsc_v001_sample"

    def open(self) -> Splits:
        clips = clips_of(self.set)
        clips = only(clips, self.labels) if self.labels else clips
        clips = hold_out(clips, self.held_out) if self.held_out else clips
        return splits_of([*clips, *other_words(self.others, labels_of(clips))], self)


def other_words(name: str, known: Iterable[str]) -> list[Clip]:
    """The clips of a set whose words are not ``known``, labelled :data:`OTHER`. Where the set has no split of its own
    it is split by a hash of the speaker: half to train, a fifth to choose, three tenths to test."""
    words = set(known)
    clips = [clip for clip in clips_of(name) if clip.label not in words]
    return [replace(clip, label=OTHER, split=clip.split or _part(clip.speaker)) for clip in clips]


def _part(speaker: str) -> Split:
    share = int.from_bytes(hashlib.sha256(f"other {speaker}".encode()).digest()[:4], "big") / 2**32
    return "train" if share < TRAIN else "validation" if share < TRAIN + VALIDATION else "test"
