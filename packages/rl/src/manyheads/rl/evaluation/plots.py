"""Plots of learning curves and of attention over memory. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from manyheads.core.errors import DataError
from manyheads.rl.encoders.frame_picture import draw_shares
from manyheads.rl.evaluation.attention import MemoryAttention
from manyheads.rl.evaluation.statistics import estimate, interquartile_mean

# Steps and returns of one seed.
Curve = tuple[Sequence[float], Sequence[float]]
POINTS = 200
SAMPLES = 2000
# Steps and parts of an observation that a plot of attention has room for.
DRAWN, PARTS = 100, 12


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
    found: MemoryAttention, *, title: str = "What the agent reads from its memory", by_head: bool = False
) -> Figure:
    """Plot which earlier steps each step of an episode reads, one panel for each layer (or head), above what was seen.

    Of a long episode the last steps are drawn. Parts of the observation are drawn from their least to their largest
    value in the episode.

    Args:
        found: of :func:`~manyheads.rl.evaluation.attention.attention_over_memory`.
        title: above the figure.
        by_head: a panel for each head of each layer instead of their mean.
    """
    layers, heads, steps, _ = found.weights.shape
    start = max(0, steps - DRAWN)
    if by_head:
        panels = [
            (f"layer {layer + 1}, head {head + 1}", found.weights[layer, head])
            for layer in range(layers)
            for head in range(heads)
        ]
    else:
        panels = [(f"layer {layer + 1}", found.weights[layer].mean(0)) for layer in range(layers)]
    across = min(len(panels), max(heads if by_head else 3, 1), 4)
    down = -(-len(panels) // across)
    parts = min(len(found.parts), PARTS)
    strips = [0.16 * max(parts, 1) + 0.1] * (parts > 0) + [0.6] * bool(found.rewards.any())
    heights = [3.3] * down + strips
    figure = Figure(figsize=(3.6 * across + 1.6, sum(heights) + 1.0), layout="constrained")
    grid = figure.subplots(len(heights), across, sharex=True, squeeze=False, height_ratios=heights)
    ticks = MaxNLocator(integer=True)
    top = max(float(matrix[start:, start:].max()) for _, matrix in panels)
    for index, axes in enumerate(grid[:down].flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        name, matrix = panels[index]
        shown = np.ma.masked_equal(matrix[start:, start:], 0.0)
        extent = (start - 0.5, steps - 0.5, steps - 0.5, start - 0.5)
        axes.imshow(shown, cmap="viridis", vmin=0.0, vmax=top, aspect="auto", extent=extent)
        axes.set_facecolor("0.93")
        most, share = int(matrix[-1].argmax()), float(matrix[-1].max())
        axes.set_title(f"{name}\nthe last step reads step {most} most ({100 * share:.0f} %)", fontsize=9)
        if index == 0 and steps > 2:
            axes.annotate("not yet seen", (0.97, 0.95), xycoords="axes fraction", ha="right", va="top", color="0.5")
        axes.xaxis.set_major_locator(ticks)
        axes.yaxis.set_major_locator(ticks)
        if index % across == 0:
            axes.set_ylabel("step that reads")
    figure.colorbar(grid[0, 0].images[0], ax=list(grid[:down].flat), label="share of its attention", pad=0.01)
    for column in range(across):
        rest = list(grid[down:, column])
        if parts:
            _draw_parts(rest.pop(0), found, start, parts, named=column == 0)
        if rest:
            axes = rest.pop(0)
            axes.bar(np.arange(start, steps), found.rewards[start:], width=0.8, color="tab:green")
            axes.axhline(0.0, color="0.7", linewidth=0.8)
            axes.margins(y=0.2)
            if column == 0:
                axes.set_ylabel("reward", rotation=0, ha="right", va="center")
        grid[-1, column].set_xlabel("step that is read")
        grid[-1, column].set_xlim(start - 0.5, steps - 0.5)
    cut = f" (the last {DRAWN} of {steps} steps)" if start else ""
    figure.suptitle(f"{title}{cut}", fontsize=11)
    return figure


def _draw_parts(axes: Axes, found: MemoryAttention, start: int, parts: int, *, named: bool) -> None:
    seen = found.seen[:parts]
    low, high = seen.min(1, keepdims=True), seen.max(1, keepdims=True)
    scaled = (seen - low) / np.maximum(high - low, 1e-12)
    extent = (start - 0.5, seen.shape[1] - 0.5, parts - 0.5, -0.5)
    axes.imshow(scaled[:, start:], cmap="Oranges", vmin=0.0, vmax=1.3, aspect="auto", extent=extent)
    axes.set_yticks(range(parts), found.parts[:parts] if named else [""] * parts, fontsize=8)
    axes.tick_params(length=0, axis="y")
    for line in range(1, parts):
        axes.axhline(line - 0.5, color="white", linewidth=0.8)
    if named:
        axes.set_ylabel("seen", rotation=0, ha="right", va="center")


def frame_attention(
    frames: np.ndarray, shares: np.ndarray, steps: Sequence[int], *, covered: tuple[int, int]
) -> Figure:
    """Draw frames of an episode, and below each how much the encoder reads each patch.

    Args:
        frames: ``(N, H, W, C)`` bytes: three channels are colours, of any other number the last one is drawn.
        shares: ``(N, rows, columns)``.
        steps: of the frames in the episode.
        covered: height and width of the pixels that the patches cover.
    """
    shown = frames if frames.shape[-1] == 3 else frames[..., -1]
    titles = [f"step {step}" for step in steps]
    return draw_shares(shown, shares, titles, covered=covered, heading="Frames, and what the encoder reads in them")
