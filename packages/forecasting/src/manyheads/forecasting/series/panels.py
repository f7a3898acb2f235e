"""The shared data types: panel of series, split, scaler, history (the rows a model may use), fitted model, warnings.

Shapes: ``T`` rows (time), ``C`` channels, ``L`` look-back, ``H`` horizon, ``N`` windows.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError, ManyheadsWarning

SENTINEL = -9999.0  # a missing value in the files of weather stations, and in the set weather


@dataclass(frozen=True)
class Split:
    """The rows of the targets of each part.

    Train ``[0, train_end)``, validation ``[train_end, validation_end)``, test ``[validation_end, test_end)``. The
    look-back of the first window of a part lies in the part before.
    """

    train_end: int
    validation_end: int
    test_end: int

    def __post_init__(self) -> None:
        if not 0 < self.train_end <= self.validation_end <= self.test_end:
            raise DataError(f"the borders {self.train_end}, {self.validation_end}, {self.test_end} must not fall")

    def test_windows(self, horizon: int) -> int:
        """Number of windows with all ``horizon`` targets in the test part; it does not depend on the look-back."""
        return max(0, self.test_end - self.validation_end - horizon + 1)


@dataclass(frozen=True)
class Scaler:
    """Standardise each channel by the mean and the population standard deviation of the rows it was fitted on.

    A constant channel gets a scale of 1.
    """

    mean: np.ndarray  # (C,)
    scale: np.ndarray  # (C,)

    @classmethod
    def fit(cls, values_TC: np.ndarray) -> Scaler:
        """Mean and scale of ``values_TC``."""
        # divide first, so that no square overflows
        unit = power_of_two(values_TC)
        mean, deviation = (values_TC / unit).mean(axis=0) * unit, (values_TC / unit).std(axis=0) * unit
        return cls(mean, np.where(constant_channels(values_TC) | (deviation == 0), 1.0, deviation))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Original units to standardised values; the last axis is ``C``."""
        return (values - self.mean) / self.scale

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Standardised values to original units; the last axis is ``C``."""
        return values * self.scale + self.mean


def power_of_two(values_TC: np.ndarray) -> np.ndarray:
    """Powers of two ``(C,)`` near the largest absolute value of each channel; division by them is exact."""
    return np.exp2(np.frexp(np.abs(values_TC).max(axis=0))[1].clip(-1000, 1000))


def constant_channels(values_TC: np.ndarray) -> np.ndarray:
    """Return whether each channel is constant up to rounding errors, such as 0.3 and 0.1 + 0.2; ``(C,)`` bool."""
    highest, lowest = values_TC.max(axis=0), values_TC.min(axis=0)
    largest = np.maximum(np.abs(highest), np.abs(lowest))
    return highest / 2 - lowest / 2 <= 4 * np.finfo(np.float64).eps * largest


@dataclass(frozen=True)
class Panel:
    """Channels (series) on one regular time axis, in their original units."""

    values: np.ndarray  # (T, C) float64
    channels: tuple[str, ...]
    stamps: pd.DatetimeIndex  # (T,)
    season: int  # rows in one season (24 for hourly data)
    split: Split | None = None
    name: str = "series"
    notes: tuple[str, ...] = field(default=())  # remarks of the loader: faults that it kept or filled
    freq: str | None = None  # pandas alias; by default that of the stamps

    @property
    def rows(self) -> int:
        return self.values.shape[0]


@dataclass(frozen=True)
class History:
    """The rows that a model may use while it is fitted: standardised, up to the end of the validation part.

    The test part is not included, so that no model can use it. A model that chooses nothing on the validation rows may
    ignore them; a model that refits on train and validation rows says so. With ``refit`` the closed forms fit once more
    on all rows after their choices; the benchmark protocol fits on the train rows only.
    """

    values: np.ndarray  # (validation_end, C) float64, standardised by the train rows
    train_end: int
    season: int
    refit: bool = False
    names: tuple[str, ...] = ()  # channel names, for warnings

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def channels(self) -> int:
        return self.values.shape[1]

    def name(self, channel: int) -> str:
        return self.names[channel] if self.names else f"channel {channel}"


class FitWarning(ManyheadsWarning):
    """A warning about the data or the fit; the benchmark and the commands show it."""


_kept: ContextVar[list[str] | None] = ContextVar("kept", default=None)


def fit_warning(message: str) -> None:
    """Warn with :class:`FitWarning`, or append to the list inside of :func:`collected_warnings`."""
    kept = _kept.get()
    if kept is None:
        warnings.warn(message, FitWarning, stacklevel=3)
    elif message not in kept:
        kept.append(message)


@contextmanager
def collected_warnings(kept: list[str]) -> Generator[None]:
    """Append each :func:`fit_warning` of this thread to ``kept``, once; the warning filters are not changed."""
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


class FittedModel(Protocol):
    """The result of a fit: maps windows to forecasts, both in the units of the :class:`History`."""

    @property
    def look_back(self) -> int: ...

    @property
    def horizon(self) -> int: ...

    def forecast(self, windows_NLC: np.ndarray) -> np.ndarray:
        """Forecasts ``(N, H, C)`` of look-backs ``(N, L, C)``."""
        ...
