"""Fixtures: a guard for data sets that are not shipped, and an hourly table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from manyheads.forecasting.datasets.catalogue import datasets
from manyheads.lab.data.registry import find, where


@pytest.fixture
def needs():
    """Skip the test if a set that may not be shipped is missing."""

    def check(name):
        if where(find(name, datasets)) is None:
            pytest.skip(f"{name} may not be shipped and MANYHEADS_DATA does not hold it")

    return check


@pytest.fixture
def hourly():
    """Two channels of 400 hours with a daily season and noise, one with a trend."""
    rng = np.random.default_rng(0)
    t = np.arange(400)
    daily = np.sin(2 * np.pi * t / 24)
    values = {"a": 10 + 3 * daily + 0.01 * t + 0.3 * rng.normal(size=400), "b": -daily + 0.2 * rng.normal(size=400)}
    return pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=400, freq="h"), **values})
