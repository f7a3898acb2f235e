"""Plots of learning curves and of attention over memory. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from manyheads.core.errors import DataError
from manyheads.rl.evaluation.statistics import estimate, interquartile_mean

# Steps and returns of one seed.
Curve = tuple[Sequence[float], Sequence[float]]
POINTS = 200
SAMPLES = 2000


def learning_curves(
    runs: Mapping[str, Sequence[Curve]],
    *,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Plot return against steps: a line for each agent, and a band around it over its seeds.

    The curves of the seeds are interpolated at common steps, from the latest first to the earliest last one. The line
    is a statistic over the seeds, the band its bootstrap interval. With fewer than three seeds, the band is their
    range.

    Args:
        runs: for each agent the curves ``(steps, returns)`` of its seeds.
        statistic: of an array, along its last axis.
        confidence: of the band.
        levels: dashed horizontal lines, for example ``{"random play": -20.3}``.
        title: above the figure.

    Raises:
        DataError: for an empty curve, or steps that do not grow.
    """
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, curves in runs.items():
        steps, values = at_common_steps(curves, label)
        line = statistic(values)
        if len(curves) < 3:
            low, high = values.min(axis=1), values.max(axis=1)
        else:
            points = [
                estimate({label: row}, statistic, confidence=confidence, samples=SAMPLES) for row in values.tolist()
            ]
            low, high = np.array([[p.low, p.high] for p in points]).T
        seeds = "1 seed" if len(curves) == 1 else f"{len(curves)} seeds"
        (drawn,) = axes.plot(steps, line, label=f"{label} ({seeds})")
        axes.fill_between(steps, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)
    for label, level in (levels or {}).items():
        axes.axhline(level, color="0.5", linestyle="--", linewidth=1)
        axes.annotate(label, (1.0, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.4")
    axes.set(xlabel="environment steps", ylabel="return of an episode", title=title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g} k" if value >= 1000 else f"{value:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def at_common_steps(curves: Sequence[Curve], label: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Interpolate the curves of several seeds: steps ``(points,)`` and returns ``(points, seeds)``.

    Raises:
        DataError: for an empty curve, or steps that do not grow.
    """
    if not curves:
        raise DataError(f"curves of {label}: found none, expected at least one: leave this agent out")
    arrays = [(np.asarray(steps, float), np.asarray(values, float)) for steps, values in curves]
    for steps, values in arrays:
        if not len(steps) or steps.shape != values.shape or (np.diff(steps) <= 0).any():
            raise DataError(
                f"curves of {label}: found {len(steps)} steps and {len(values)} returns, expected as many of both, and "
                "growing steps: correct it"
            )
    start, end = max(steps[0] for steps, _ in arrays), min(steps[-1] for steps, _ in arrays)
    if start > end:
        raise DataError(f"curves of {label}: found no common steps, expected some: compare runs of the same length")
    grid = np.linspace(start, end, POINTS)
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in arrays], axis=1)


def memory_attention(
    weights: np.ndarray,
    *,
    rewards: Sequence[float] | None = None,
    marks: Mapping[int, str] | None = None,
    title: str = "",
) -> Figure:
    """Plot the attention to each slot of the memory at each step of an episode.

    Args:
        weights: ``(steps, slots)``; the last slot is the newest, NaN is an empty one.
        rewards: of each step, plotted below.
        marks: words at steps, for example ``{0: "cue"}``.
        title: above the figure.

    Raises:
        DataError: for weights that are no matrix, or another number of rewards.
    """
    if weights.ndim != 2 or not weights.size:
        raise DataError(f"weights: found the shape {weights.shape}, expected (steps, slots): give a matrix")
    steps, slots = weights.shape
    if rewards is not None and len(rewards) != steps:
        raise DataError(f"rewards: found {len(rewards)}, expected one for each of {steps} steps: correct them")
    rows = 1 if rewards is None else 2
    figure = Figure(figsize=(8.0, 3.4 if rows == 1 else 4.4), layout="constrained")
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=(3, 1)[:rows])[:, 0]
    top = panels[0]
    # Rows are ages: the newest slot has age 0 and is at the bottom.
    ages = weights.T[::-1]
    extent = (-0.5, steps - 0.5, -0.5, slots - 0.5)
    image = top.imshow(ages, origin="lower", aspect="auto", interpolation="nearest", cmap="viridis", extent=extent)
    top.set_facecolor("0.9")
    figure.colorbar(image, ax=top, label="weight", pad=0.01)
    top.set(ylabel="age in memory (steps)", title=title)
    for step, words in (marks or {}).items():
        top.axvline(step, color="tab:red", linestyle=":", linewidth=1)
        top.annotate(words, (step, slots - 0.5), xytext=(2, -2), textcoords="offset points", va="top", color="tab:red")
    if rewards is not None:
        panels[1].bar(np.arange(steps), rewards, width=1.0)
        panels[1].set(ylabel="reward")
    panels[-1].set(xlabel="step of the episode")
    return figure
