"""Naive forecasts: no parameters, the baselines of every table.

====================  =======================================================================================
repeat                the last value
seasonal naive        the value one season before, or as many seasons as are needed to reach a known value
drift                 the line through the first and the last value of the look-back
window mean           the mean of the look-back
====================  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from manyheads.core.errors import DataError, UnknownNameError
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series.panels import FittedModel, History


@dataclass(frozen=True)
class Naive:
    """One of the naive forecasts :data:`RULES`, with its look-back, horizon and season in rows."""

    name: str
    look_back: int
    horizon: int
    season: int

    def forecast(self, windows_NLC: np.ndarray) -> np.ndarray:
        return RULES[self.name](windows_NLC[:, -self.look_back :], self.horizon, self.season)

    def as_linear_map(self) -> LinearMap:
        """The same forecast as one matrix: the forecasts of the unit windows, as every rule is linear."""
        weight = np.array(self.forecast(np.eye(self.look_back)[:, :, None])[:, :, 0])
        return LinearMap(weight[None], np.zeros((1, self.horizon)))


def repeat(windows_NLC: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """Forecasts ``(N, H, C)``: the last value."""
    return np.broadcast_to(windows_NLC[:, -1:], (len(windows_NLC), horizon, windows_NLC.shape[2]))


def seasonal_naive(windows_NLC: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """Forecasts ``(N, H, C)``: the last season again and again."""
    return windows_NLC[:, -season + np.arange(horizon) % season]


def drift(windows_NLC: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """Forecasts ``(N, H, C)``: the line through the first and the last value, continued."""
    last = windows_NLC[:, -1:]
    slope = (last - windows_NLC[:, :1]) / (windows_NLC.shape[1] - 1)
    return last + slope * np.arange(1, horizon + 1, dtype=windows_NLC.dtype)[None, :, None]


def window_mean(windows_NLC: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """Forecasts ``(N, H, C)``: the mean of the look-back."""
    mean = windows_NLC.mean(axis=1, keepdims=True)
    return np.broadcast_to(mean, (len(windows_NLC), horizon, windows_NLC.shape[2]))


RULES: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "repeat": repeat,
    "seasonal-naive": seasonal_naive,
    "drift": drift,
    "window-mean": window_mean,
}


def fit_naive(
    history: History, horizons: Sequence[int], *, look_back: int, seed: int = 0, name: str
) -> dict[int, FittedModel]:
    """Bind a naive forecast to the season and the look-back; nothing is fitted.

    Raises :class:`UnknownNameError`, and :class:`DataError` if the history is shorter than the look-back of the rule.
    """
    if name not in RULES:
        raise UnknownNameError("naive forecast", name, RULES)
    reads = {"repeat": 1, "seasonal-naive": history.season}.get(name, look_back)
    if reads > history.rows or (name == "drift" and reads < 2):
        raise DataError(f"{name} reads {reads} rows, the history has {history.rows}: give more rows or another model")
    return {horizon: Naive(name, reads, horizon, history.season) for horizon in horizons}


def naive_map(values_TC: np.ndarray, season: int, horizon: int) -> LinearMap:
    """The naive forecast of each channel as one map: the last value or the last season.

    The season is taken if the rows hold two of them and it has the lower error on these rows.
    """
    rows, channels = values_TC.shape
    steps_back = np.ones((channels, horizon), dtype=int)
    if season > 1 and rows >= 2 * season:
        # a scale per channel, so that no difference overflows
        unit = np.abs(values_TC).max(axis=0) + np.finfo(np.float64).tiny
        values = values_TC / unit
        lags = np.unique(np.linspace(1, min(horizon, season), 12).round().astype(int))
        # medians, so that a few outliers decide nothing
        repeat = np.mean([np.median(np.abs(values[lag:] - values[:-lag]), axis=0) for lag in lags], axis=0)
        seasonal = np.median(np.abs(values[season:] - values[:-season]), axis=0) < repeat
        steps_back[seasonal] = season - np.arange(horizon) % season
    look_back = int(steps_back.max())
    weight = np.zeros((channels, look_back, horizon))
    weight[np.arange(channels)[:, None], look_back - steps_back, np.arange(horizon)] = 1.0
    return LinearMap(weight, np.zeros((channels, horizon)))
