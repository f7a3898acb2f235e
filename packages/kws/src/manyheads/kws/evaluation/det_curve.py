"""Misses against false alarms: detections held against what was said, for one threshold or for all (the DET curve)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from manyheads.core.errors import ArgumentError
from manyheads.kws.audio.recordings import Spoken, Tape
from manyheads.kws.streaming.detection import Detection
from manyheads.kws.streaming.spotter import KeywordSpotter
from manyheads.kws.streaming.stream_state import Heard

TOLERANCE = 0.5  # seconds after the end of a word in which it may still be detected


@dataclass(frozen=True)
class Match:
    """Detections told apart."""

    hits: tuple[tuple[Spoken, Detection], ...]
    misses: tuple[Spoken, ...]
    false_alarms: tuple[Detection, ...]


def match(
    detections: Sequence[Detection], spoken: Sequence[Spoken], keywords: Sequence[str], tolerance: float = TOLERANCE
) -> Match:
    """A detection hits the first keyword of its label that is not yet hit and in whose stretch, from its start to
    ``tolerance`` seconds after its end, it lies; any other is a false alarm, a second one for the same word too."""
    wanted = [word for word in spoken if word.label in set(keywords)]
    hit: dict[int, Detection] = {}
    false_alarms = []
    for found in sorted(detections, key=lambda d: d.time):
        for index, word in enumerate(wanted):
            inside = word.start <= found.time <= word.end + tolerance
            if index not in hit and word.label == found.label and inside:
                hit[index] = found
                break
        else:
            false_alarms.append(found)
    hits = tuple((wanted[index], found) for index, found in sorted(hit.items()))
    return Match(hits, tuple(w for i, w in enumerate(wanted) if i not in hit), tuple(false_alarms))


RIGHT, FALSE_ALARM, MISSED = "right", "false alarm", "missed"


@dataclass(frozen=True)
class Judged:
    """Detections with what each of them was, and the keywords that were missed."""

    detections: tuple[Detection, ...]
    verdicts: tuple[str, ...]  # of each detection: right or false alarm
    missed: tuple[Spoken, ...]
    keywords: int
    """Spoken keywords."""

    def document(self) -> dict[str, Any]:
        return {
            "keywords": self.keywords,
            "right": self.verdicts.count(RIGHT),
            "false_alarms": self.verdicts.count(FALSE_ALARM),
            "missed": [asdict(word) for word in self.missed],
        }

    def summary(self) -> str:
        """``5 right, 2 false alarms, 1 missed of 6 keywords``."""
        right, alarms = self.verdicts.count(RIGHT), self.verdicts.count(FALSE_ALARM)
        return (
            f"{right} right, {alarms} false alarm{'' if alarms == 1 else 's'}, {len(self.missed)} missed of "
            f"{self.keywords} keyword{'' if self.keywords == 1 else 's'}"
        )

    def table(self) -> Any:
        """Detections and missed words in the order of time, for a terminal."""
        from manyheads.lab.reporting.tables import table

        rows = [
            (found.time, f"{found.time:.2f}", found.label, f"{found.score:.2f}", verdict)
            for found, verdict in zip(self.detections, self.verdicts, strict=True)
        ]
        rows += [(word.start, f"{word.start:.2f} to {word.end:.2f}", word.label, "", MISSED) for word in self.missed]
        return table(("s", "word", "score", "verdict"), [row[1:] for row in sorted(rows)])


def judge(
    detections: Sequence[Detection], spoken: Sequence[Spoken], keywords: Sequence[str], tolerance: float = TOLERANCE
) -> Judged:
    """Which detections were right and which words were missed, as :func:`match` counts them."""
    found = match(detections, spoken, keywords, tolerance)
    wrong = {id(detection) for detection in found.false_alarms}
    verdicts = tuple(FALSE_ALARM if id(detection) in wrong else RIGHT for detection in detections)
    return Judged(tuple(detections), verdicts, found.misses, len(found.hits) + len(found.misses))


@dataclass(frozen=True)
class OperatingPoint:
    """What one threshold gives."""

    threshold: float
    miss_rate: float
    false_alarms_per_hour: float
    misses: int
    false_alarms: int


@dataclass(frozen=True)
class DetCurve:
    """Operating points by rising threshold, and what they were counted on."""

    points: tuple[OperatingPoint, ...]
    keywords: int
    """Spoken keywords."""
    hours: float
    """Of audio, all tapes."""

    def at(self, false_alarms_per_hour: float) -> OperatingPoint:
        """The point with the fewest misses among those with at most so many false alarms; below one false alarm in all
        the audio, that is none at all."""
        allowed = [p for p in self.points if p.false_alarms_per_hour <= false_alarms_per_hour]
        if not allowed:
            raise ArgumentError(
                f"false alarms per hour: found {false_alarms_per_hour:g}, no threshold gives so few; the fewest are "
                f"{min(p.false_alarms_per_hour for p in self.points):g}"
            )
        return min(allowed, key=lambda p: (p.misses, p.threshold))


def thresholds(count: int = 61) -> np.ndarray:
    """Even in log odds from 0.02 to 1 - 1e-6, and one that nothing reaches."""
    odds = np.linspace(np.log(0.02 / 0.98), np.log(1e6 - 1), count)
    return np.append(1 / (1 + np.exp(-odds)), 1.01)


def det_curve(
    spotter: KeywordSpotter,
    tapes: Sequence[Tape],
    *,
    levels: Sequence[float] | None = None,
    tolerance: float = TOLERANCE,
    heard: Sequence[Heard] | None = None,
) -> DetCurve:
    """Applies every threshold to the scores of every tape, smoothed and held quiet as the spotter's rule says;
    ``heard`` are the scores where they are known."""
    tried = thresholds() if levels is None else np.sort(np.asarray(levels, dtype=float))
    keywords = spotter.keywords
    tracks = [spotter.scores(tape.samples, tape.sample_rate) for tape in tapes] if heard is None else heard
    total = sum(word.label in keywords for tape in tapes for word in tape.spoken)
    hours = sum(tape.seconds for tape in tapes) / 3600
    points = []
    for level in tried:
        misses = false_alarms = 0
        for tape, track in zip(tapes, tracks, strict=True):
            [trigger] = spotter.triggers(1, float(level))
            events = trigger(track.scores, 0)
            found = [Detection(spotter.labels[e.label], float(track.times[e.step]), e.score, 0.0) for e in events]
            result = match(found, tape.spoken, keywords, tolerance)
            misses, false_alarms = misses + len(result.misses), false_alarms + len(result.false_alarms)
        rate = misses / total if total else float("nan")
        points.append(OperatingPoint(float(level), rate, false_alarms / hours, misses, false_alarms))
    return DetCurve(tuple(points), total, hours)


@dataclass(frozen=True)
class Latency:
    """Seconds of real audio from a word to its detection, over the hits; look-ahead counts."""

    hits: int
    after_start: tuple[float, float]  # median, 90th percentile
    after_end: tuple[float, float]
    before_end: float
    """Share that was detected before the word had ended."""


def latency(hits: Sequence[tuple[Spoken, Detection]], lookahead: float = 0.0) -> Latency:
    """How long it took. ``lookahead`` in seconds is added to the time of each detection."""
    times = np.array([found.time + lookahead for _, found in hits])
    start, end = (np.array([getattr(word, name) for word, _ in hits]) for name in ("start", "end"))

    def two(waits: np.ndarray) -> tuple[float, float]:
        if not len(waits):
            return float("nan"), float("nan")
        return float(np.median(waits)), float(np.quantile(waits, 0.9))

    early = float((times < end).mean()) if len(hits) else float("nan")
    return Latency(len(hits), two(times - start), two(times - end), early)
