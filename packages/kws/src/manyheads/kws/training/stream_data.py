"""Training for streams instead of clips: other words have a label of their own, and words are heard after noise.

A network that only ever heard keywords calls everything a keyword. ``_other_`` is never reported, as no label is that
begins with an underscore.
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
TRAIN, VALIDATION = 0.5, 0.2  # shares of the speakers of other words; the rest is for testing


@dataclass(frozen=True)
class SpottingSet(ClipSet):
    """A :class:`ClipSet` with a second set of words that are none of its labels, and with sounds that are no words."""

    others: str = "gsc_v001_sample"
    repeat: int = 3
    """How often each of the other words is heard in an epoch, as there are few of them beside the keywords."""
    distractors: int = 0
    """Synthetic sounds in training (:mod:`manyheads.kws.audio.distractors`), each once an epoch."""

    def open(self) -> Splits:
        """As :meth:`ClipSet.open`."""
        clips = self.clips()
        words = labels_of(clips)
        times = {**dict.fromkeys(words, self.repeats(clips)), OTHER: self.repeat}
        rate = self.features.sample_rate
        made = [(OTHER, Sound(samples, rate)) for samples in distractors(self.distractors, rate)]
        return splits_of([*clips, *other_words(self.others, words)], self, times=times, made=made)


def other_words(name: str, known: Iterable[str]) -> list[Clip]:
    """The clips of a set whose words are not ``known``, labelled :data:`OTHER`. Where the set has no split of its own
    it is split by a hash of the speaker: half to train, a fifth to choose, three tenths to test."""
    words = set(known)
    clips = [clip for clip in clips_of(name) if clip.label not in words]
    return [replace(clip, label=OTHER, split=clip.split or _part(clip.speaker)) for clip in clips]


def _part(speaker: str) -> Split:
    share = int.from_bytes(hashlib.sha256(f"other {speaker}".encode()).digest()[:4], "big") / 2**32
    return "train" if share < TRAIN else "validation" if share < TRAIN + VALIDATION else "test"
