"""The backtest (rolling origin): MASE against its definition, and series too short for all windows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from manyheads.forecasting import Forecaster
from manyheads.forecasting.evaluation.backtest import mase
from manyheads.forecasting.series.frames import read_panels
from manyheads.lab.cli.main import main

STAMPS = pd.date_range("2024-01-01", periods=300, freq="h")
RNG = np.random.default_rng(0)
SERIES = {name: RNG.normal(size=300).cumsum() for name in ("a", "b", "c")}

pytestmark = pytest.mark.filterwarnings("ignore::manyheads.forecasting.series.panels.FitWarning")


def rows(name, start, stop):
    return pd.DataFrame({"unique_id": name, "ds": STAMPS[start:stop], "y": SERIES[name][start:stop]})


def test_mase_scales_each_series_by_its_seasonal_naive_error_before_its_first_origin():
    table = pd.concat([rows("a", 0, 200), rows("b", 150, 300), rows("c", 190, 300).assign(y=0.0)])
    panels = read_panels(table)
    frame = Forecaster(5, model="repeat", levels=()).cross_validation(panels, windows=3)
    expected = {}
    for name, start, stop in (("a", 0, 200), ("b", 150, 300)):
        past, part = SERIES[name][start : stop - 15], frame[frame["unique_id"] == name]
        expected[name] = (part["y"] - part["y_hat"]).abs().mean() / np.abs(past[24:] - past[:-24]).mean()
        assert part["cutoff"].min() == STAMPS[stop - 16]
    found = mase(frame, panels)
    np.testing.assert_allclose(found[["a", "b"]], [expected["a"], expected["b"]], rtol=1e-12)
    assert np.isnan(found["c"])  # constant: no scale


def test_a_short_series_is_backtested_on_the_windows_that_fit_and_named(tmp_path, capsys):
    table = pd.concat([rows("a", 0, 200), rows("b", 0, 40), rows("c", 0, 8).assign(y=1.0)])
    table.to_csv(tmp_path / "t.csv", index=False)
    words = ["backtest", str(tmp_path / "t.csv"), "--horizon", "5", "--windows", "10", "--models", "repeat"]
    assert main(["forecasting", *words, "--out", str(tmp_path / "b.csv")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "t has 40 rows, enough for 6 of 10 windows of 5 steps, 5 rows apart: only these are forecast (b)" in said
    assert "t has 8 rows, enough for 0 of 10 windows" in said
    counted = pd.read_csv(tmp_path / "b.csv").groupby("unique_id")["cutoff"].nunique()
    assert dict(counted) == {"a": 10, "b": 6}
