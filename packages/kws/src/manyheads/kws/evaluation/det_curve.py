"""Miss rate against false alarms per hour: hits, misses and false alarms at one threshold, or at all (DET curve)."""

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

# Seconds after the end of a word in which a detection still counts as a hit.
TOLERANCE = 0.5


@dataclass(frozen=True)
class Match:
    """Hits, misses and false alarms."""

    hits: tuple[tuple[Spoken, Detection], ...]
    misses: tuple[Spoken, ...]
    false_alarms: tuple[Detection, ...]


def match(
    detections: Sequence[Detection], spoken: Sequence[Spoken], keywords: Sequence[str], tolerance: float = TOLERANCE
) -> Match:
    """Match detections with spoken words.

    A detection hits a spoken keyword of the same label if its time lies between the start of the word and ``tolerance``
    seconds after its end. Each word can be hit once, the earliest word first. All other detections are false alarms,
    also a second one for the same word.
    """
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
    """Detections with a verdict each, and the missed keywords."""

    detections: tuple[Detection, ...]
    verdicts: tuple[str, ...]  # one per detection: right or false alarm
    missed: tuple[Spoken, ...]
    keywords: int
    """Number of spoken keywords."""

    def document(self) -> dict[str, Any]:
        """Return the counts and the missed words for JSON."""
        return {
            "keywords": self.keywords,
            "right": self.verdicts.count(RIGHT),
            "false_alarms": self.verdicts.count(FALSE_ALARM),
            "missed": [asdict(word) for word in self.missed],
        }

    def summary(self) -> str:
        """Return one line: ``5 right, 2 false alarms, 1 missed of 6 keywords``."""
        right, alarms = self.verdicts.count(RIGHT), self.verdicts.count(FALSE_ALARM)
        return (
            f"{right} right, {alarms} false alarm{'' if alarms == 1 else 's'}, {len(self.missed)} missed of "
            f"{self.keywords} keyword{'' if self.keywords == 1 else 's'}"
        )

    def table(self) -> Any:
        """Return a table of detections and missed words in order of time, for a terminal."""
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
    """Mark each detection as right or false alarm, and list the missed words, by :func:`match`."""
    found = match(detections, spoken, keywords, tolerance)
    wrong = {id(detection) for detection in found.false_alarms}
    verdicts = tuple(FALSE_ALARM if id(detection) in wrong else RIGHT for detection in detections)
    return Judged(tuple(detections), verdicts, found.misses, len(found.hits) + len(found.misses))


@dataclass(frozen=True)
class OperatingPoint:
    """Miss rate and false alarms per hour at one threshold."""

    threshold: float
    miss_rate: float
    false_alarms_per_hour: float
    misses: int
    false_alarms: int


@dataclass(frozen=True)
class DetCurve:
    """DET curve: operating points by rising threshold, and the amount of test data."""

    points: tuple[OperatingPoint, ...]
    keywords: int
    """Number of spoken keywords."""
    hours: float
    """Hours of audio of all recordings."""

    def at(self, false_alarms_per_hour: float) -> OperatingPoint:
        """Return the point with the fewest misses among those with at most this false alarm rate.

        A rate below one false alarm in the whole audio means no false alarm at all. Raises :class:`ArgumentError` if no
        threshold gives so few.
        """
        allowed = [p for p in self.points if p.false_alarms_per_hour <= false_alarms_per_hour]
        if not allowed:
            raise ArgumentError(
                f"false alarms per hour: found {false_alarms_per_hour:g}, no threshold gives so few; the fewest are "
                f"{min(p.false_alarms_per_hour for p in self.points):g}"
            )
        return min(allowed, key=lambda p: (p.misses, p.threshold))


def thresholds(count: int = 61) -> np.ndarray:
    """Return ``count`` thresholds from 0.02 to 1 - 1e-6, evenly spaced in log odds, and 1.01 (no detections)."""
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
    """Compute the DET curve of a spotter over recordings.

    Args:
        spotter: its rule gives smoothing and refractory time.
        tapes: recordings with their spoken words.
        levels: thresholds to apply; :func:`thresholds` by default.
        tolerance: seconds after the end of a word in which a detection still counts as a hit.
        heard: scores of each recording, if already computed.
    """
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
    """Detection latency over the hits, in seconds of audio, look-ahead included."""

    hits: int
    after_start: tuple[float, float]  # median, 90th percentile
    after_end: tuple[float, float]
    before_end: float
    """Share of hits before the end of the word."""


def latency(hits: Sequence[tuple[Spoken, Detection]], lookahead: float = 0.0) -> Latency:
    """Compute the latency of hits. ``lookahead`` in seconds is added to the time of each detection."""
    times = np.array([found.time + lookahead for _, found in hits])
    start, end = (np.array([getattr(word, name) for word, _ in hits]) for name in ("start", "end"))

    def two(waits: np.ndarray) -> tuple[float, float]:
        if not len(waits):
            return float("nan"), float("nan")
        return float(np.median(waits)), float(np.quantile(waits, 0.9))

    early = float((times < end).mean()) if len(hits) else float("nan")
    return Latency(len(hits), two(times - start), two(times - end), early)
