"""Complete evaluation of a spotter: clip accuracy, streams at several SNRs, and spike counts."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError
from manyheads.kws.audio.clips import Clip
from manyheads.kws.audio.reading import read_sound
from manyheads.kws.audio.recordings import Tape, compose
from manyheads.kws.evaluation.clip_accuracy import ClipResults, evaluate_clips
from manyheads.kws.evaluation.confidence import poisson_rate, rate_text, share_text
from manyheads.kws.evaluation.det_curve import TOLERANCE, DetCurve, Latency, Match, det_curve, latency, match
from manyheads.kws.evaluation.spikes import SpikeCount, count_spikes
from manyheads.kws.streaming.detection import Detection
from manyheads.kws.streaming.spotter import KeywordSpotter
from manyheads.kws.streaming.stream_state import Heard
from manyheads.lab.training.environment import command_line

# Largest number of clips on which spikes are counted.
HEARD_AT_MOST = 200
# False alarms per hour at which the miss rate is reported.
RATES = (1.0, 10.0, 60.0)


@dataclass(frozen=True)
class StreamResult:
    """Results of one stream, at the spotter's threshold and at all thresholds."""

    snr: float
    tape: Tape
    heard: Heard
    detections: tuple[Detection, ...]
    match: Match
    latency: Latency
    curve: DetCurve

    def document(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        seconds = self.tape.seconds
        at = {}
        for rate in RATES:
            try:
                # Less than one false alarm in the whole audio cannot be resolved.
                resolved = rate * self.curve.hours >= 1
                at[f"{rate:g}"] = asdict(self.curve.at(rate)) if resolved else None
            except ArgumentError:
                at[f"{rate:g}"] = None
        return {
            "snr_db": self.snr,
            "hours": seconds / 3600,
            "keywords": self.curve.keywords,
            "misses": len(self.match.misses),
            "miss_rate": len(self.match.misses) / max(1, self.curve.keywords),
            "false_alarms": len(self.match.false_alarms),
            "false_alarms_per_hour": len(self.match.false_alarms) * 3600 / seconds,
            "false_alarms_per_hour_interval": poisson_rate(len(self.match.false_alarms), seconds / 3600),
            "latency": asdict(self.latency),
            "at_false_alarms_per_hour": at,
            "det": [asdict(point) for point in self.curve.points],
        }


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a spotter on a data set."""

    name: str
    spotter: KeywordSpotter
    clips: ClipResults
    streams: tuple[StreamResult, ...]
    spikes: SpikeCount | None
    early: dict[str, float] = field(default_factory=dict)
    """Decision time in seconds -> accuracy."""

    def document(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        spotter, clips = self.spotter, self.clips
        document = {
            "spotter": dict(spotter.trained),
            "set": self.name,
            "labels": spotter.labels,
            "clips": len(clips.truth),
            "accuracy": clips.accuracy,
            "accuracy_interval": clips.interval,
            "confusion": clips.confusion,
            "early": self.early,
            "seconds_to_99_percent_of_it": clips.time_to(0.99),
            "lookahead_seconds": spotter.lookahead_seconds,
            "parameters": spotter.network.parameter_count,
            "rule": asdict(spotter.rule),
            "streams": [stream.document() for stream in self.streams],
            "macs_per_step": sum(product.macs for product in spotter.network.products()),
            "steps_per_second": 1 / spotter.step_seconds,
        }
        if self.spikes is not None:
            document["spikes"] = spike_document(self.spikes)
        return document


def spike_document(count: SpikeCount) -> dict[str, Any]:
    """Return spike rates, operations and energy per step for JSON."""
    return {
        "rates": count.rates,
        "neurons": count.neurons,
        "zero_share": count.zero_share,
        "products": [asdict(product) for product in count.products],
        "dense_macs": count.dense,
        "effective_acs": count.effective_acs,
        "effective_macs": count.effective_macs,
        "synaptic_operations": count.synaptic_operations,
        "saving": count.saving,
        "energy_nj": count.energy_nj,
        "dense_energy_nj": count.dense_energy_nj,
    }


def evaluate_spotter(
    spotter: KeywordSpotter,
    clips: Sequence[Clip],
    negatives: Sequence[Clip] = (),
    *,
    snr: Sequence[float] = (20.0,),
    noise: Path | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    name: str = "",
) -> Evaluation:
    """Evaluate a spotter on single clips, then on one stream per SNR, composed of all clips and negatives over noise.

    Args:
        spotter: is reset.
        clips: labelled clips of its labels.
        negatives: clips of distractor words.
        snr: signal-to-noise ratios in dB.
        noise: recording of background noise. Default: pink noise.
        tolerance: seconds after the end of a word in which a detection still counts as a hit.
        seed: random seed of the streams.
        name: title of the results.
    """
    results = evaluate_clips(spotter, clips)
    streams = []
    for level in snr:
        tape = compose([*clips, *negatives], spotter.sample_rate, snr=level, noise=noise, seed=seed)
        streams.append(hear_tape(spotter, tape, level, tolerance))
    spikes = count_spikes(spotter.network, _frames(spotter, clips[:HEARD_AT_MOST]))
    times = [round(0.1 * n, 1) for n in range(1, round(10 * float(results.seconds.max())) + 1)]
    early = {f"{time:g}": float(accuracy) for time, accuracy in zip(times, results.early(times), strict=True)}
    return Evaluation(name, spotter, results, tuple(streams), spikes if spikes.rates else None, early)


def hear_tape(spotter: KeywordSpotter, tape: Tape, snr: float, tolerance: float = TOLERANCE) -> StreamResult:
    """Run a spotter on a recording with known words, and compute hits, latency and DET curve."""
    spotter.reset()
    detections, [heard] = spotter.hear(tape.samples, tape.sample_rate)
    spotter.reset()
    result = match(detections, tape.spoken, spotter.keywords, tolerance)
    waits = latency(result.hits, spotter.lookahead_seconds)
    curve = det_curve(spotter, [tape], tolerance=tolerance, heard=[heard])
    return StreamResult(snr, tape, heard, tuple(detections), result, waits, curve)


def tune_threshold(found: Evaluation, false_alarms_per_hour: float) -> float:
    """Choose the threshold with the fewest misses at a target of false alarms per hour, over all streams together.

    The choice is among the thresholds of the DET curve; of equal ones the lowest.

    Raises :class:`ArgumentError` if no threshold gives so few false alarms.
    """
    hours = sum(stream.curve.hours for stream in found.streams)
    totals: dict[float, tuple[int, int]] = {}
    for stream in found.streams:
        for point in stream.curve.points:
            misses, alarms = totals.get(point.threshold, (0, 0))
            totals[point.threshold] = (misses + point.misses, alarms + point.false_alarms)
    allowed = [(m, level) for level, (m, alarms) in totals.items() if alarms / hours <= false_alarms_per_hour]
    if not allowed:
        raise ArgumentError(
            f"tune: found {false_alarms_per_hour:g}, but no threshold gives so few false alarms an hour"
        )
    return min(allowed)[1]


KEY = ("experiment", "seed", "set", "snr_db")


def summary_rows(found: Evaluation) -> list[dict[str, Any]]:
    """Return the figures of an evaluation as CSV rows, one per stream."""
    trained, clips = found.spotter.trained, found.clips
    # The path of the CSV file is not part of the result.
    command = command_line().split(" --csv ")[0]
    own: dict[str, Any] = {
        "clips": len(clips.truth),
        "accuracy": f"{clips.accuracy:.6f}",
        "seconds_to_99_percent": f"{clips.time_to(0.99):.2f}",
        "parameters": found.spotter.network.parameter_count,
    }
    if found.spikes is not None:
        s = found.spikes
        own |= {"zero_share": f"{s.zero_share:.4f}", "dense_macs": s.dense, "saving": f"{s.saving:.3f}"}
        own |= {"effective_acs": f"{s.effective_acs:.0f}", "effective_macs": f"{s.effective_macs:.0f}"}
        own |= {"energy_nj": f"{s.energy_nj:.1f}", "dense_energy_nj": f"{s.dense_energy_nj:.1f}"}
    rows = []
    for stream in found.streams:
        d, wait = stream.document(), stream.latency
        key = (trained.get("experiment", ""), trained.get("seed", ""), found.name, f"{stream.snr:g}")
        at_sixty = d["at_false_alarms_per_hour"]["60"]
        rows.append(
            {
                **dict(zip(KEY, key, strict=True)),
                **own,
                "hours": f"{d['hours']:.4f}",
                "threshold": f"{found.spotter.rule.threshold:.6g}",
                "miss_rate": f"{d['miss_rate']:.4f}",
                "false_alarms_per_hour": f"{d['false_alarms_per_hour']:.1f}",
                "miss_rate_at_60_an_hour": "" if at_sixty is None else f"{at_sixty['miss_rate']:.4f}",
                "latency_after_start": f"{wait.after_start[0]:.3f}",
                "latency_after_end": f"{wait.after_end[0]:.3f}",
                "command": command,
            }
        )
    return rows


def merged_rows(path: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a CSV file and new rows, which replace rows of the same spotter, set and SNR."""
    kept: list[dict[str, Any]] = []
    if path.is_file():
        with path.open() as stream:
            kept = list(csv.DictReader(stream))
    new = {tuple(str(row[name]) for name in KEY) for row in rows}
    return [row for row in kept if tuple(row.get(name, "") for name in KEY) not in new] + list(rows)


def text_of(found: Evaluation) -> Any:
    """Return the results as a table for a terminal."""
    from rich.console import Group

    from manyheads.lab.reporting.tables import table

    clips, spotter = found.clips, found.spotter
    rows: list[tuple[str, str]] = [
        ("accuracy", clips.accuracy_text),
        (
            "99 % of it after",
            f"{clips.time_to(0.99):.2f} s of audio, look-ahead of {spotter.lookahead_seconds:g} s included",
        ),
        ("parameters", f"{spotter.network.parameter_count:,}"),
    ]
    for stream in found.streams:
        d, wait = stream.document(), stream.latency
        rows += [
            (
                f"stream at {stream.snr:g} dB",
                f"missed {share_text(d['misses'], d['keywords'])} keywords at threshold {spotter.rule.threshold:g}",
            ),
            ("false alarms", rate_text(d["false_alarms"], d["hours"])),
            (
                "latency",
                f"median {wait.after_start[0]:.2f} s after a word begins, {wait.after_end[0]:.2f} s after it ends "
                f"(90 %: {wait.after_end[1]:.2f} s)",
            ),
        ]
        for rate, point in d["at_false_alarms_per_hour"].items():
            if point is not None:
                rows.append((f"misses at {rate} false alarms an hour", f"{point['miss_rate']:.1%}"))
    if found.spikes is not None:
        s = found.spikes
        rows += [
            ("zero outputs of neurons", f"{s.zero_share:.1%}"),
            (
                "operations a step",
                f"{s.effective_acs:,.0f} additions by spikes + {s.effective_macs:,.0f} dense multiply-adds, "
                f"{s.saving:.1f} times fewer than {s.dense:,}",
            ),
            ("arithmetic a step at 45 nm", f"{s.energy_nj:.0f} nJ, dense {s.dense_energy_nj:.0f} nJ (an estimate)"),
        ]
    return Group(table(("", found.name), rows))


def _frames(spotter: KeywordSpotter, clips: Iterable[Clip]) -> Iterable[Tensor]:
    for clip in clips:
        samples = torch.from_numpy(np.ascontiguousarray(read_sound(clip.path, spotter.sample_rate).samples))
        frames = spotter.running_mean(spotter.log_mel(samples.unsqueeze(0).to(spotter.device))[0])[0]
        yield frames.to(spotter.dtype)
