"""Prediction intervals from the absolute residuals of forecasts that did not see their targets.

The model is fitted on the first rows, several times where rows are few, each time on more of them, and its residuals
are taken on the windows whose targets come next. The half width of coverage ``p`` is their ``ceil((n + 1) p)``-th
smallest (split conformal: Lei et al. 2018, 1604.04173):

- for each channel and step alone, from four horizons of windows on;
- below that for each channel over all steps together, each residual divided by a common growth ``sqrt(a + b h)`` of the
  step ``h``, with ``a, b >= 0`` by least squares on the mean squared residuals.

For exchangeable residuals the coverage is guaranteed; residuals of a time series are not exchangeable and windows
overlap, so that the coverage is measured: quantiles of the first half of the calibration windows against the second
half, where there are four horizons of windows. Where there are fewer, benchmarks/forecasting_intervals.py measures it
by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.optimize import nnls

from manyheads.core.errors import ArgumentError
from manyheads.forecasting.series.panels import FittedModel

PLENTY = 4  # horizons of windows from which on each step has quantiles of its own


@dataclass(frozen=True)
class Intervals:
    """Half widths ``(levels, H, C)`` and what they covered on windows that they were not made from."""

    levels: tuple[float, ...]
    half_widths: np.ndarray  # (levels, H, C), in the units of the residuals
    coverage: np.ndarray  # (levels, H) measured; NaN where there were too few windows
    windows: int


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Raises :class:`ArgumentError` for a level outside (0, 1)."""
    for level in levels:
        if not 0.0 < level < 1.0:
            raise ArgumentError(f"levels: found {level:g}, expected coverages between 0 and 1, such as 0.8")
    return tuple(sorted(set(levels)))


def windows_needed(levels: Sequence[float]) -> int:
    """The fewest residuals with a finite quantile at every level."""
    return max((math.ceil(1.0 / (1.0 - level) - 1e-9) - 1 for level in levels), default=0)


def calibration_origins(rows: int, horizon: int) -> tuple[int, int]:
    """The first and one past the last row at which the targets of a calibration window begin.

    The windows lie in the last fifth, or the last third where a fifth is below three horizons; where that holds few
    windows, they begin half a horizon before the last one, but not before the middle. Empty where there are none.
    """
    part = max(rows // 5, min(rows // 3, 3 * horizon))
    first = max(1, min(rows - part, max(rows // 2, rows - horizon - horizon // 2)))
    return first, max(first, rows - horizon + 1)


def calibrate(
    model: FittedModel, values_TC: np.ndarray, first_target: int, levels: Sequence[float]
) -> Intervals | None:
    """Intervals from the windows whose targets lie in rows ``first_target …``; None where they are too few."""
    return intervals_from(absolute_residuals(model, values_TC, first_target, len(values_TC)), levels)


def intervals_from(residuals: np.ndarray, levels: Sequence[float]) -> Intervals | None:
    """``(N, H, C)`` absolute residuals in the order of time -> intervals; None where they are too few."""
    levels = check_levels(levels)
    windows, horizon, _ = residuals.shape
    needed = max(windows_needed(levels), 1)
    if not levels or windows * horizon < needed:
        return None
    coverage = np.full((len(levels), horizon), np.nan)
    if windows < max(needed, PLENTY * horizon):
        return Intervals(levels, pooled_quantiles(residuals, levels), coverage, windows)
    half, apart = windows // 2, horizon - 1  # apart, so that no target serves both halves
    if half - apart >= needed:
        widths = quantiles(residuals[: half - apart], levels)
        coverage = (residuals[half:][None] <= widths[:, None]).mean(axis=(1, 3))
    return Intervals(levels, quantiles(residuals, levels), coverage, windows)


def absolute_residuals(model: FittedModel, values_TC: np.ndarray, first: int, last: int) -> np.ndarray:
    """``(N, H, C)`` of the windows whose targets begin in rows ``[first, last)``, as far as they fit."""
    start = max(first - model.look_back, 0)
    part = values_TC[start : last - 1 + model.horizon]
    count = len(part) - model.look_back - model.horizon + 1
    if count < 1:
        return np.zeros((0, model.horizon, values_TC.shape[1]))
    past = sliding_window_view(part, model.look_back, axis=0)[:count].swapaxes(1, 2)
    future = sliding_window_view(part, model.horizon, axis=0)[model.look_back :][:count].swapaxes(1, 2)
    chunk = max(1, (4 << 20) // (model.look_back * values_TC.shape[1]))
    parts = [np.abs(model.forecast(past[i : i + chunk]) - future[i : i + chunk]) for i in range(0, count, chunk)]
    return np.concatenate(parts)


def pooled_quantiles(residuals: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """``(N, H, C)`` -> ``(levels, H, C)``: quantiles over windows and steps, times the growth with the step."""
    windows, horizon, channels = residuals.shape
    features = np.stack([np.ones(horizon), np.arange(1.0, horizon + 1)], axis=1)
    growth = np.zeros((horizon, channels))
    largest = residuals.max(axis=(0, 1))
    for channel in np.flatnonzero(largest > 0):
        mean_square = ((residuals[..., channel] / largest[channel]) ** 2).mean(axis=0)
        growth[:, channel] = largest[channel] * np.sqrt(features @ nnls(features, mean_square)[0])
    relative = np.divide(residuals, growth, out=np.zeros_like(residuals), where=growth > 0)
    return quantiles(relative.reshape(windows * horizon, 1, channels), levels) * growth


def quantiles(residuals: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """``(N, H, C)`` -> ``(levels, H, C)``: the ``ceil((n + 1) level)``-th smallest, infinite where there is none."""
    count = len(residuals)
    ordered = np.sort(residuals, axis=0)
    ranks = [math.ceil((count + 1) * level - 1e-9) for level in levels]
    endless = np.full(residuals.shape[1:], np.inf)
    return np.stack([ordered[rank - 1] if rank <= count else endless for rank in ranks])
