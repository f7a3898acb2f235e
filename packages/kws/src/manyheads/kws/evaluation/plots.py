"""Plots of detections, accuracy, DET curves and spike rates. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from manyheads.kws.audio.recordings import Spoken
from manyheads.kws.evaluation.det_curve import MISSED, RIGHT
from manyheads.kws.streaming.detection import Detection

if TYPE_CHECKING:
    from manyheads.kws.evaluation.clip_accuracy import ClipResults
    from manyheads.kws.evaluation.det_curve import DetCurve
    from manyheads.kws.evaluation.spikes import SpikeCount

# Number of columns in the envelope of a waveform.
COLUMNS = 3000
# Colours of right detections and of errors.
CORRECT, WRONG = "tab:green", "tab:red"
# A label is drawn in colour if its score reaches this value.
SHOWN = 0.25


def timeline(
    samples: np.ndarray,
    sample_rate: int,
    times: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    detections: Sequence[Detection],
    *,
    threshold: float,
    truth: Sequence[Spoken] | None = None,
    verdicts: Sequence[str] | None = None,
    missed: Sequence[Spoken] = (),
    title: str = "",
) -> Figure:
    """Plot the waveform ``(N,)`` with spoken words and detections, and below it the scores ``(T, C)`` at ``times``.

    With ``verdicts`` (one per detection), right detections are green, false alarms red, and ``missed`` words have a red
    frame. Without ``truth`` the spoken words are not drawn.
    """
    seconds = len(samples) / sample_rate
    figure = Figure(figsize=(min(40.0, max(10.0, 0.55 * seconds)), 4.6), layout="constrained")
    wave, score = figure.subplots(2, sharex=True, height_ratios=(1, 1.2))
    low, high, at = _envelope(samples, sample_rate)
    wave.fill_between(at, low, high, color="0.55", linewidth=0)
    top = float(max(np.abs(low).max(initial=0), np.abs(high).max(initial=0), 1e-3))
    colours = _colours(labels, scores, detections)
    for word in truth or ():
        if word.start >= seconds:
            continue
        known = word.label in labels
        wave.axvspan(word.start, word.end, color=colours.get(word.label, "0.85") if known else "0.85", alpha=0.25)
        wave.text(
            (word.start + word.end) / 2,
            1.08 * top,
            word.label,
            ha="center",
            va="bottom",
            fontsize=8,
            color="black" if known else "0.6",
        )
        if word in missed:
            wave.axvspan(word.start, word.end, fill=False, edgecolor=WRONG, linewidth=1.4, linestyle="--")
            middle = (word.start + word.end) / 2
            wave.text(middle, 1.06 * top, MISSED, ha="center", va="top", fontsize=7, color=WRONG, style="italic")
    for index, found in enumerate(detections):
        verdict = None if verdicts is None else verdicts[index]
        colour = colours.get(found.label, "black")
        judged = colour if verdict is None else CORRECT if verdict == RIGHT else WRONG
        wave.axvline(found.time, color=judged, linewidth=1.2 if verdict is None else 1.8)
        text = found.label if verdict in (None, RIGHT) else f"{found.label}\n{verdict}"
        wave.text(found.time, -1.08 * top, text, ha="center", va="top", fontsize=8, color=judged, fontweight="bold")
        score.plot([found.time], [found.score], marker="v", color=colour, markersize=6, clip_on=False, zorder=3)
    wave.set(ylim=(-1.7 * top, 1.45 * top), yticks=[], ylabel="spoken / detected" if truth else "detected")
    for index, label in enumerate(labels):
        shown = label in colours
        score.plot(
            times,
            scores[:, index],
            color=colours.get(label, "0.8"),
            linewidth=1.4 if shown else 0.7,
            label=label if shown else None,
            zorder=2 if shown else 1,
        )
    score.axhline(threshold, color="black", linewidth=0.8, linestyle=":", label="threshold")
    score.set(xlabel="seconds of audio", ylabel="score", ylim=(0, 1.02), xlim=(0, seconds))
    score.legend(fontsize="small", frameon=False, ncols=12, loc="upper left", bbox_to_anchor=(0, -0.22))
    wave.set_title(title, loc="left")
    return figure


def confusion(results: ClipResults) -> Figure:
    """Plot the confusion matrix in per cent of the row: rows are spoken words, columns predictions."""
    counts = results.confusion
    nothing = counts[:, -1].any()
    shown = counts if nothing else counts[:, :-1]
    share = 100 * shown / np.maximum(shown.sum(1, keepdims=True), 1)
    size = max(4.0, 1.4 + 0.42 * len(results.labels))
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    names = [*results.labels, "nothing"] if nothing else list(results.labels)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(results.labels)), results.labels)
    axes.set(xlabel="predicted", ylabel="spoken")
    for row, column in np.argwhere(shown > 0):
        value = share[row, column]
        axes.text(
            column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 55 else "black"
        )
    axes.set_title(results.accuracy_text, loc="left")
    return figure


def det(curves: Mapping[str, DetCurve]) -> Figure:
    """Plot DET curves: the fewest misses with at most x false alarms per hour, as steps on logarithmic axes.

    Dots are thresholds. A threshold with as many false alarms and more misses than another one is not drawn. A count of
    zero is drawn at half of one event.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        floor_x, floor_y = 0.5 / curve.hours, 0.5 / max(curve.keywords, 1)
        x, y = (np.array(values) for values in best_points(curve))
        x, y = np.maximum(x, floor_x), np.maximum(y, floor_y)
        axes.plot(x, y, drawstyle="steps-post", linewidth=1.4, color=f"C{index}", label=name)
        axes.plot(x, y, "o", markersize=3, color=f"C{index}")
        axes.axvline(1 / curve.hours, color=f"C{index}", linewidth=0.7, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="false alarms per hour", ylabel="share of keywords missed")
    lowest = min(0.5 / max(curve.keywords, 1) for curve in curves.values())
    axes.set_ylim(0.7 * lowest, 1.2)
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        few = np.log10(high / low) < 1.5
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False, title="dotted: one false alarm in all audio", title_fontsize="small")
    return figure


def best_points(curve: DetCurve) -> tuple[list[float], list[float]]:
    """Return the best operating points of a curve: rising false alarms per hour, and falling miss rates.

    Each point has fewer misses than all points with as many false alarms or fewer.
    """
    alarms: list[float] = []
    misses: list[float] = []
    for point in sorted(curve.points, key=lambda p: (p.false_alarms_per_hour, p.miss_rate)):
        # Also skips NaN, the miss rate without spoken keywords.
        if point.miss_rate < (misses[-1] if misses else np.inf):
            alarms.append(point.false_alarms_per_hour)
            misses.append(point.miss_rate)
    return alarms, misses


def early_decision(results: ClipResults, *, title: str = "") -> Figure:
    """Plot the accuracy against the decision time."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    times = np.arange(0, round(results.longest * 100) + 1) / 100
    axes.plot(times, 100 * results.early(times), color="C0", linewidth=1.4)
    axes.axhline(100 * results.accuracy, color="0.5", linewidth=0.8, linestyle=":", label="final accuracy")
    reached = results.time_to(0.99)
    axes.axvline(reached, color="C3", linewidth=0.9, label=f"99 % of it at {reached:.2f} s")
    axes.axvline(
        float(np.median(results.seconds)), color="0.7", linewidth=0.8, linestyle="--", label="median end of clip"
    )
    axes.set(xlabel="decision time: seconds of audio, look-ahead included", ylabel="accuracy, %", ylim=(0, 101))
    axes.set_title(title, loc="left")
    axes.margins(x=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False, loc="lower right")
    return figure


def spike_rates(count: SpikeCount) -> Figure:
    """Plot spike rates by site, and the operations of each matrix product beside its dense operations."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(count.rates)
    left.barh(names, [100 * count.rates[name] for name in names], color="C0")
    left.invert_yaxis()
    left.set(xlabel="spike rate per step and neuron, %", title=f"{count.zero_share:.1%} of all outputs are zero")
    products = [product.name for product in count.products]
    right.barh(products, [product.macs for product in count.products], color="0.85", label="dense multiply-adds")
    colours = ["C0" if product.source else "C3" for product in count.products]
    right.barh(products, [product.operations for product in count.products], color=colours, height=0.5)
    right.invert_yaxis()
    right.set(
        xlabel="operations per step; blue: additions by spikes, red: dense", title=f"{count.saving:.1f} times fewer"
    )
    right.legend(fontsize="small", frameon=False)
    return figure


def _colours(labels: Sequence[str], scores: np.ndarray, detections: Sequence[Detection]) -> dict[str, object]:
    """Return a colour for each keyword that is detected or has a high score; the same in every plot of these labels."""
    keywords = [label for label in labels if not label.startswith("_")]
    few = len(keywords) <= 10
    table = colormaps["tab10" if few else "tab20"]
    found = {detection.label for detection in detections}
    peak = dict(zip(labels, scores.max(0) if len(scores) else np.zeros(len(labels)), strict=True))
    return {
        label: table(index % table.N)
        for index, label in enumerate(keywords)
        if label in found or (few and peak[label] >= SHOWN)
    }


def _envelope(samples: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return minimum, maximum and time in seconds of each column of a waveform."""
    size = max(1, len(samples) // COLUMNS)
    count = len(samples) // size
    blocks = samples[: count * size].reshape(count, size)
    at = (np.arange(count) + 0.5) * size / sample_rate
    return (blocks.min(1), blocks.max(1), at) if count else (np.zeros(1), np.zeros(1), np.zeros(1))
