"""Clip accuracy of a spotter: accuracy, confusion matrix, and accuracy by decision time (early decision).

Shapes: N clips, T steps of a clip, C labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from manyheads.core.errors import DataError
from manyheads.kws.audio.clips import Clip
from manyheads.kws.audio.reading import read_sound
from manyheads.kws.evaluation.confidence import accuracy_text, wilson
from manyheads.kws.streaming.spotter import KeywordSpotter

BATCH = 64


@dataclass(frozen=True)
class ClipResults:
    """Logits of a spotter on labelled clips."""

    labels: tuple[str, ...]
    truth: np.ndarray  # (N,) indices into labels
    logits: list[np.ndarray]  # N arrays (T, C); T differs
    known: list[np.ndarray]  # N arrays (T,): seconds of the clip after which each output is known
    seconds: np.ndarray  # (N,) lengths of the clips

    @cached_property
    def predicted(self) -> np.ndarray:
        """Index ``(N,)`` of the label with the largest mean logit over time; -1 for a clip too short for an output."""
        return np.array([int(z.mean(0).argmax()) if len(z) else -1 for z in self.logits], dtype=int)

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.truth).mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy, with clips taken as independent."""
        return wilson(float((self.predicted == self.truth).sum()), len(self.truth))

    @property
    def accuracy_text(self) -> str:
        """Accuracy with its confidence interval, as text."""
        return accuracy_text(float((self.predicted == self.truth).sum()), len(self.truth))

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix ``(C, C + 1)`` of counts: rows are spoken words, columns predictions. The last column counts
        clips without an output."""
        counts = np.zeros((len(self.labels), len(self.labels) + 1), dtype=int)
        np.add.at(counts, (self.truth, np.where(self.predicted < 0, len(self.labels), self.predicted)), 1)
        return counts

    def early(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the accuracy if each clip is decided after ``times`` seconds, by the mean of the logits known then.

        A look-ahead counts as audio already received. Before its first output a clip counts as wrong; after its end it
        keeps its decision.
        """
        right = np.zeros(len(times))
        for truth, logits, known in zip(self.truth, self.logits, self.known, strict=True):
            mean = logits.cumsum(0) / np.arange(1, len(logits) + 1)[:, None]
            decided = mean.argmax(1)
            steps = np.searchsorted(known, np.asarray(times) + 1e-9, side="right")  # outputs known by then
            right += [step > 0 and decided[step - 1] == truth for step in steps]
        return right / len(self.truth)

    @property
    def longest(self) -> float:
        """Seconds after which all outputs are known: the longest clip and the quiet frames after it."""
        return max([float(self.seconds.max()), *(float(known[-1]) for known in self.known if len(known))])

    def time_to(self, share: float) -> float:
        """Return the time in seconds from which on the early decision has ``share`` of the final accuracy or more."""
        times = np.arange(1, round(self.longest * 100) + 2) / 100
        below = np.flatnonzero(self.early(times) < share * self.accuracy)
        return float(times[min(below[-1] + 1, len(times) - 1)]) if len(below) else float(times[0])


def evaluate_clips(spotter: KeywordSpotter, clips: Iterable[Clip]) -> ClipResults:
    """Run a spotter on every clip, each from a fresh state.

    Raises :class:`DataError` for no clips, and for labels that the spotter does not know.
    """
    clips = list(clips)
    check_labels(spotter, {clip.label for clip in clips})
    if not clips:
        raise DataError("clips: found none, expected at least one")
    sounds = [read_sound(clip.path, spotter.sample_rate).samples for clip in clips]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, sound in enumerate(sounds):
        by_length[len(sound)].append(index)
    logits, known = [np.empty(0)] * len(clips), [np.empty(0)] * len(clips)
    for indices in by_length.values():
        for start in range(0, len(indices), BATCH):
            chosen = indices[start : start + BATCH]
            chunk = np.stack([sounds[index] for index in chosen])
            steps = spotter.clip_logits(chunk).float().cpu().numpy()
            times = (
                spotter.time_of_clip(0) + np.arange(steps.shape[1]) * spotter.step_seconds + spotter.lookahead_seconds
            )
            for row, index in enumerate(chosen):
                logits[index], known[index] = steps[row], times
    truth = np.array([spotter.labels.index(clip.label) for clip in clips])
    seconds = np.array([len(sound) / spotter.sample_rate for sound in sounds])
    return ClipResults(spotter.labels, truth, logits, known, seconds)


def check_labels(spotter: KeywordSpotter, labels: Iterable[str]) -> None:
    """Raise :class:`DataError` for a label that the spotter does not know."""
    unknown = sorted(set(labels) - set(spotter.labels))
    if unknown:
        raise DataError(
            f"labels: found {_listed(unknown)}, but the spotter was trained on "
            f"{_listed(spotter.labels)}: choose the set it belongs to"
        )


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
