"""What every other module of this package speaks of: a panel of series, its split, and the past that a model may see.

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

SENTINEL = -9999.0  # how weather stations, and the weather set, write a missing value


@dataclass(frozen=True)
class Split:
    """Borders of the target rows: train ``[0, train_end)``, validation ``[train_end, validation_end)``,
    test ``[validation_end, test_end)``. The look-back of a part's first window reaches into the part before."""

    train_end: int
    validation_end: int
    test_end: int

    def __post_init__(self) -> None:
        if not 0 < self.train_end <= self.validation_end <= self.test_end:
            raise DataError(f"the borders {self.train_end}, {self.validation_end}, {self.test_end} must not fall")

    def test_windows(self, horizon: int) -> int:
        """How many windows have all ``horizon`` targets inside the test part (whatever the look-back)."""
        return max(0, self.test_end - self.validation_end - horizon + 1)


@dataclass(frozen=True)
class Scaler:
    """Standardises each channel with the mean and the population standard deviation of the train rows.
    A constant channel gets a scale of 1."""

    mean: np.ndarray  # (C,)
    scale: np.ndarray  # (C,)

    @classmethod
    def fit(cls, values_TC: np.ndarray) -> Scaler:
        unit = power_of_two(values_TC)  # so that no square leaves the range of the numbers
        mean, deviation = (values_TC / unit).mean(axis=0) * unit, (values_TC / unit).std(axis=0) * unit
        return cls(mean, np.where(constant_channels(values_TC) | (deviation == 0), 1.0, deviation))

    def transform(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.scale

    def inverse(self, values: np.ndarray) -> np.ndarray:
        return values * self.scale + self.mean


def power_of_two(values_TC: np.ndarray) -> np.ndarray:
    """``(C,)`` powers of two near the largest value of each channel; a division by them rounds nothing."""
    return np.exp2(np.frexp(np.abs(values_TC).max(axis=0))[1].clip(-1000, 1000))


def constant_channels(values_TC: np.ndarray) -> np.ndarray:
    """``(C,)`` bool: channels whose values differ by rounding errors at most, such as 0.3 and 0.1 + 0.2."""
    highest, lowest = values_TC.max(axis=0), values_TC.min(axis=0)
    largest = np.maximum(np.abs(highest), np.abs(lowest))
    return highest / 2 - lowest / 2 <= 4 * np.finfo(np.float64).eps * largest


@dataclass(frozen=True)
class Panel:
    """Channels on one regular time axis, in their original units."""

    values: np.ndarray  # (T, C) float64
    channels: tuple[str, ...]
    stamps: pd.DatetimeIndex  # (T,)
    season: int  # rows in one season (24 for hourly data)
    split: Split | None = None
    name: str = "series"
    notes: tuple[str, ...] = field(default=())  # what the loader found, left alone or filled
    freq: str | None = None  # pandas' alias; that of the stamps by default

    @property
    def rows(self) -> int:
        return self.values.shape[0]


@dataclass(frozen=True)
class History:
    """All that a model may see while it is fitted: standardised rows up to the end of validation. The test part is
    not in here, so that no model can look at it.

    A model that does not choose anything on the validation rows may ignore them; one that refits on train and
    validation says so. With ``refit`` the closed forms fit once more on all rows after their choices; the protocol of
    the benchmark fits on the train rows alone.
    """

    values: np.ndarray  # (validation_end, C) float64, standardised by the train rows
    train_end: int
    season: int
    refit: bool = False
    names: tuple[str, ...] = ()  # of the channels, for warnings

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def channels(self) -> int:
        return self.values.shape[1]

    def name(self, channel: int) -> str:
        return self.names[channel] if self.names else f"channel {channel}"


class FitWarning(ManyheadsWarning):
    """Something about the data or the fit that the user should know; the benchmark and the commands show it."""


_kept: ContextVar[list[str] | None] = ContextVar("kept", default=None)


def fit_warning(message: str) -> None:
    """Add the message to the list of :func:`collected_warnings`, or warn with :class:`FitWarning` outside of it."""
    kept = _kept.get()
    if kept is None:
        warnings.warn(message, FitWarning, stacklevel=3)
    elif message not in kept:
        kept.append(message)


@contextmanager
def collected_warnings(kept: list[str]) -> Generator[None]:
    """Append every :func:`fit_warning` of this thread to ``kept`` (once); filters of the process stay as they are."""
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)


class FittedModel(Protocol):
    """What fitting gives: windows in, forecasts out, both in the units of the :class:`History`."""

    @property
    def look_back(self) -> int: ...

    @property
    def horizon(self) -> int: ...

    def forecast(self, windows_NLC: np.ndarray) -> np.ndarray:
        """``(N, L, C)`` look-backs -> ``(N, H, C)`` forecasts."""
        ...
