"""Training data for streams: keywords after noise, and distractor words and sounds under the label ``_other_``.

A network trained on keywords alone classifies every sound as a keyword. ``_other_`` is never reported, like every label
that begins with an underscore.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from manyheads.kws.audio.clips import Clip, clips_of, labels_of
from manyheads.kws.audio.distractors import distractors
from manyheads.kws.audio.reading import Sound
from manyheads.kws.audio.split import Split
from manyheads.kws.training.data import ClipSet, splits_of
from manyheads.lab.training.experiment import Splits

OTHER = "_other_"
# Shares of the speakers of distractor words for training and validation; the rest is for test.
TRAIN, VALIDATION = 0.5, 0.2


@dataclass(frozen=True)
class SpottingSet(ClipSet):
    """A :class:`ClipSet` with distractor words from a second data set and synthetic distractor sounds."""

    others: str = "gsc_v001_sample"
    """Data set of distractor words. Words that are keywords are left out."""
    repeat: int = 3
    """How often each distractor word is used in an epoch. There are few of them beside the keywords."""
    distractors: int = 0
    """Number of synthetic distractor sounds for training (:mod:`manyheads.kws.audio.distractors`); each is used once in
    an epoch."""

    def open(self) -> Splits:
        """Read all clips and return the splits, like :meth:`ClipSet.open`."""
        clips = self.clips()
        words = labels_of(clips)
        times = {**dict.fromkeys(words, self.repeats(clips)), OTHER: self.repeat}
        rate = self.features.sample_rate
        made = [(OTHER, Sound(samples, rate)) for samples in distractors(self.distractors, rate)]
        return splits_of([*clips, *other_words(self.others, words)], self, times=times, made=made)


def other_words(name: str, known: Iterable[str]) -> list[Clip]:
    """Return the clips of a set whose words are not ``known``, labelled :data:`OTHER`.

    A set without its own split is split by a hash of the speaker: 50 % train, 20 % validation, 30 % test.
    """
    words = set(known)
    clips = [clip for clip in clips_of(name) if clip.label not in words]
    return [replace(clip, label=OTHER, split=clip.split or _part(clip.speaker)) for clip in clips]


def _part(speaker: str) -> Split:
    share = int.from_bytes(hashlib.sha256(f"other {speaker}".encode()).digest()[:4], "big") / 2**32
    return "train" if share < TRAIN else "validation" if share < TRAIN + VALIDATION else "test"
