"""Plots of forecasts, errors and the weights of a linear forecaster. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from manyheads.forecasting.models.linear_map import LinearMap


def forecast_fan(
    past: np.ndarray,
    forecast: np.ndarray,
    *,
    past_stamps: Sequence | None = None,
    forecast_stamps: Sequence | None = None,
    intervals: Mapping[float, tuple[np.ndarray, np.ndarray]] | None = None,
    actual: np.ndarray | None = None,
    title: str = "",
    unit: str = "",
) -> Figure:
    """Fan chart of one channel: the end of the past ``(P,)``, the forecast ``(H,)`` and its prediction intervals.

    ``intervals`` maps a coverage to ``(low, high)``, each ``(H,)``; ``actual (H,)`` draws the values that followed.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    before = np.arange(-len(past), 0) if past_stamps is None else past_stamps
    after = np.arange(len(forecast)) if forecast_stamps is None else forecast_stamps
    axes.plot(before, past, color="0.35", linewidth=1, label="past")
    if actual is not None:
        axes.plot(after, actual, color="0.35", linewidth=1, linestyle=":", label="what happened")
    for index, (coverage, (low, high)) in enumerate(sorted((intervals or {}).items(), reverse=True)):
        # opaque, so that the colour in the legend is the colour of the overlapping bands
        colour = 1 - (0.2 + 0.25 * min(index, 2)) * (1 - np.array(to_rgb("C0")))
        axes.fill_between(after, low, high, color=colour, linewidth=0, label=f"{coverage:.0%} interval")
    axes.plot(after, forecast, color="C0", linewidth=1.4, label="forecast")
    axes.set(ylabel=unit, xlabel="" if past_stamps is not None else "steps from now")
    if past_stamps is not None:
        axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    axes.set_title(title, loc="left")
    figure.legend(loc="outside upper right", fontsize="small", frameon=False, ncols=5)
    axes.margins(x=0)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def error_by_step(curves: Mapping[str, np.ndarray], *, title: str = "") -> Figure:
    """Mean squared error ``(H,)`` of each model by step of the horizon."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(np.arange(1, len(curve) + 1), curve, label=name, linewidth=1.2)
    axes.set(title=title, xlabel="horizon step", ylabel="MSE (standardised)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.margins(x=0)
    axes.legend(fontsize="small", frameon=False, ncols=2)
    return figure


def weight_map(linear_map: LinearMap, *, channel: int = 0, title: str = "") -> Figure:
    """Heat map ``(H, L)`` of the weights of one channel: forecast steps by lags."""
    weight_LH = linear_map.weight[0 if linear_map.shared else channel]
    look_back, horizon = weight_LH.shape
    bound = float(np.quantile(np.abs(weight_LH), 0.995)) or 1.0
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(
        weight_LH.T,
        aspect="auto",
        origin="lower",
        cmap="RdBu_r",
        vmin=-bound,
        vmax=bound,
        extent=(-look_back, 0, 0, horizon),
        interpolation="nearest",
    )
    axes.set(title=title, xlabel="steps before now", ylabel="horizon step")
    figure.colorbar(picture, ax=axes, label="weight", extend="both")
    return figure


def look_back_curve(look_backs: Sequence[int], errors: Mapping[str, Sequence[float]], *, title: str = "") -> Figure:
    """Error of each model against the length of the look-back window, like the paper's Figure 5."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in errors.items():
        axes.plot(look_backs, curve, marker="o", markersize=3.5, linewidth=1.2, label=name)
    axes.set(title=title, xlabel="look-back (steps)", ylabel="test MSE (standardised)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
    return figure
