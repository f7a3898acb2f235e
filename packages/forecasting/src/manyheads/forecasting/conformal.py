"""Split-conformal prediction intervals, one width a channel and a step of the horizon.

The model is fitted on the first rows and its absolute residuals are taken on the windows of a later calibration part.
The interval of coverage ``1 - a`` around a forecast is plus and minus their ``ceil((n + 1)(1 - a))``-th smallest, for
each channel and step (Lei et al. 2018, 1604.04173). For exchangeable residuals the coverage is guaranteed; residuals of
a time series are not exchangeable and windows overlap, so that the coverage is measured: quantiles of the first half of
the calibration windows against the second half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from manyheads.core.errors import ArgumentError
from manyheads.forecasting.series import FittedModel


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
    """The fewest calibration windows with a finite quantile at every level."""
    return max((math.ceil(1.0 / (1.0 - level) - 1e-9) - 1 for level in levels), default=0)


def calibrate(
    model: FittedModel, values_TC: np.ndarray, first_target: int, levels: Sequence[float]
) -> Intervals | None:
    """Intervals from the windows whose targets lie in rows ``first_target …``; None where they are too few."""
    levels = check_levels(levels)
    residuals = absolute_residuals(model, values_TC, first_target)
    if len(residuals) < max(windows_needed(levels), 1) or not levels:
        return None
    half = len(residuals) // 2
    coverage = np.full((len(levels), model.horizon), np.nan)
    apart = model.horizon - 1  # so that no target serves both halves
    if half - apart >= max(windows_needed(levels), 1):
        widths = quantiles(residuals[: half - apart], levels)
        coverage = (residuals[half:][None] <= widths[:, None]).mean(axis=(1, 3))
    return Intervals(levels, quantiles(residuals, levels), coverage, len(residuals))


def absolute_residuals(model: FittedModel, values_TC: np.ndarray, first_target: int) -> np.ndarray:
    """``(N, H, C)``."""
    start = max(first_target - model.look_back, 0)
    part = values_TC[start:]
    count = len(part) - model.look_back - model.horizon + 1
    if count < 1:
        return np.zeros((0, model.horizon, values_TC.shape[1]))
    past = sliding_window_view(part, model.look_back, axis=0)[:count].swapaxes(1, 2)
    future = sliding_window_view(part, model.horizon, axis=0)[model.look_back :][:count].swapaxes(1, 2)
    chunk = max(1, (4 << 20) // (model.look_back * values_TC.shape[1]))
    parts = [np.abs(model.forecast(past[i : i + chunk]) - future[i : i + chunk]) for i in range(0, count, chunk)]
    return np.concatenate(parts)


def quantiles(residuals: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """``(N, H, C)`` -> ``(levels, H, C)``: the ``ceil((n + 1) level)``-th smallest, infinite where there is none."""
    count = len(residuals)
    ordered = np.sort(residuals, axis=0)
    ranks = [math.ceil((count + 1) * level - 1e-9) for level in levels]
    endless = np.full(residuals.shape[1:], np.inf)
    return np.stack([ordered[rank - 1] if rank <= count else endless for rank in ranks])
