"""Prediction intervals by split conformal prediction (Lei et al. 2018, 1604.04173), with measured coverage.

Calibration: the model is fitted on the first rows, and its absolute residuals are taken on the windows whose targets
come after. With few rows this is repeated for several fits, each on more rows. The half width of the interval with
coverage ``p`` is the ``ceil((n + 1) p)``-th smallest of ``n`` residuals:

- with at least four horizons of windows: for each channel and step separately;
- with fewer: for each channel over all steps together, each residual divided by a growth ``sqrt(a + b h)`` of the step
  ``h``, with ``a, b >= 0`` from least squares on the mean squared residuals.

The coverage is guaranteed for exchangeable residuals. The residuals of a time series are not exchangeable, and windows
overlap. The coverage is therefore measured: quantiles of the first half of the calibration windows, tested on the
second half, if there are four horizons of windows. For fewer windows, benchmarks/forecasting_intervals.py measures it
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

PLENTY = 4  # with at least so many horizons of windows, each step has its own quantiles


@dataclass(frozen=True)
class Intervals:
    """Half widths of the intervals, and their coverage measured on windows that did not make them."""

    levels: tuple[float, ...]
    half_widths: np.ndarray  # (levels, H, C), in the units of the residuals
    coverage: np.ndarray  # (levels, H), measured; NaN with too few windows
    windows: int  # calibration windows


def check_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """The levels sorted, without duplicates. Raises :class:`ArgumentError` for a level outside (0, 1)."""
    for level in levels:
        if not 0.0 < level < 1.0:
            raise ArgumentError(f"levels: found {level:g}, expected coverages between 0 and 1, such as 0.8")
    return tuple(sorted(set(levels)))


def windows_needed(levels: Sequence[float]) -> int:
    """The smallest number of residuals with a finite quantile at every level: ``ceil(1 / (1 - level)) - 1``."""
    return max((math.ceil(1.0 / (1.0 - level) - 1e-9) - 1 for level in levels), default=0)


def calibration_origins(rows: int, horizon: int) -> tuple[int, int]:
    """The range of rows at which the targets of the calibration windows begin (first, one past the last).

    The windows lie in the last fifth of the rows, or in the last third if a fifth is shorter than three horizons. If
    that gives few windows, they begin half a horizon before the last possible window, but not before the middle. The
    range is empty if no window fits.
    """
    part = max(rows // 5, min(rows // 3, 3 * horizon))
    first = max(1, min(rows - part, max(rows // 2, rows - horizon - horizon // 2)))
    return first, max(first, rows - horizon + 1)


def calibrate(
    model: FittedModel, values_TC: np.ndarray, first_target: int, levels: Sequence[float]
) -> Intervals | None:
    """Intervals from the windows with all targets in rows ``first_target …``; None for too few windows."""
    return intervals_from(absolute_residuals(model, values_TC, first_target, len(values_TC)), levels)


def intervals_from(residuals: np.ndarray, levels: Sequence[float]) -> Intervals | None:
    """Intervals from absolute residuals ``(N, H, C)`` in the order of time; None for too few residuals."""
    levels = check_levels(levels)
    windows, horizon, _ = residuals.shape
    needed = max(windows_needed(levels), 1)
    if not levels or windows * horizon < needed:
        return None
    coverage = np.full((len(levels), horizon), np.nan)
    if windows < max(needed, PLENTY * horizon):
        return Intervals(levels, pooled_quantiles(residuals, levels), coverage, windows)
    # H - 1 windows between the halves are left out, so that the halves share no target
    half, gap = windows // 2, horizon - 1
    if half - gap >= needed:
        widths = quantiles(residuals[: half - gap], levels)
        coverage = (residuals[half:][None] <= widths[:, None]).mean(axis=(1, 3))
    return Intervals(levels, quantiles(residuals, levels), coverage, windows)


def absolute_residuals(model: FittedModel, values_TC: np.ndarray, first: int, last: int) -> np.ndarray:
    """Absolute residuals ``(N, H, C)`` of the windows whose targets begin in rows ``[first, last)``, if they fit."""
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
    """Half widths ``(levels, H, C)`` from residuals ``(N, H, C)`` pooled over windows and steps.

    The half width of step ``h`` is the quantile of ``residual / sqrt(a + b h)``, times ``sqrt(a + b h)``.
    """
    windows, horizon, channels = residuals.shape
    features = np.stack([np.ones(horizon), np.arange(1.0, horizon + 1)], axis=1)
    growth = np.zeros((horizon, channels))
    largest = residuals.max(axis=(0, 1))
    # non-negative least squares of a + b h on the mean squared residual of each step
    for channel in np.flatnonzero(largest > 0):
        mean_square = ((residuals[..., channel] / largest[channel]) ** 2).mean(axis=0)
        growth[:, channel] = largest[channel] * np.sqrt(features @ nnls(features, mean_square)[0])
    relative = np.divide(residuals, growth, out=np.zeros_like(residuals), where=growth > 0)
    return quantiles(relative.reshape(windows * horizon, 1, channels), levels) * growth


def quantiles(residuals: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """The ``ceil((n + 1) level)``-th smallest of ``n`` residuals, ``(N, H, C)`` -> ``(levels, H, C)``.

    Infinite if ``n`` is too small.
    """
    count = len(residuals)
    ordered = np.sort(residuals, axis=0)
    ranks = [math.ceil((count + 1) * level - 1e-9) for level in levels]
    infinite = np.full(residuals.shape[1:], np.inf)
    return np.stack([ordered[rank - 1] if rank <= count else infinite for rank in ranks])
