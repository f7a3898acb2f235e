"""What every other module of this package speaks of: a panel of series, its split, and the past that a model may see.

Shapes: ``T`` rows (time), ``C`` channels, ``L`` look-back, ``H`` horizon, ``N`` windows.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError

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
        deviation = values_TC.std(axis=0)
        return cls(values_TC.mean(axis=0), np.where(deviation > 0, deviation, 1.0))

    def transform(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.scale

    def inverse(self, values: np.ndarray) -> np.ndarray:
        return values * self.scale + self.mean


@dataclass(frozen=True)
class Panel:
    """Channels on one regular time axis, in their original units."""

    values: np.ndarray  # (T, C) float64
    channels: tuple[str, ...]
    stamps: pd.DatetimeIndex  # (T,)
    season: int  # rows in one season (24 for hourly data)
    split: Split | None = None
    name: str = "series"
    notes: tuple[str, ...] = field(default=())  # what the loader found and left alone

    @property
    def rows(self) -> int:
        return self.values.shape[0]


@dataclass(frozen=True)
class History:
    """All that a model may see while it is fitted: standardised rows up to the end of validation. The test part is
    not in here, so that no model can look at it.

    A model that does not choose anything on the validation rows may ignore them; one that refits on train and
    validation says so.
    """

    values: np.ndarray  # (validation_end, C) float64, standardised by the train rows
    train_end: int
    season: int

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def channels(self) -> int:
        return self.values.shape[1]


class FitWarning(UserWarning):
    """Something about the data or the fit that the user should know; the benchmark and the commands show it."""


@contextmanager
def collected_warnings(kept: list[str]) -> Generator[None]:
    """Inside, every :class:`FitWarning` is appended to ``kept`` (once); other warnings are shown as ever."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FitWarning)
        yield
    for warning in caught:
        text = str(warning.message)
        if not issubclass(warning.category, FitWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif text not in kept:
            kept.append(text)


class FittedModel(Protocol):
    """What fitting gives: windows in, forecasts out, both in the units of the :class:`History`."""

    @property
    def look_back(self) -> int: ...

    @property
    def horizon(self) -> int: ...

    def forecast(self, windows_NLC: np.ndarray) -> np.ndarray:
        """``(N, L, C)`` look-backs -> ``(N, H, C)`` forecasts."""
        ...
