"""``predict(data=newer)``: newer rows of all series or some, in any order, each continued from its own last row."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from manyheads.core.errors import DataError
from manyheads.forecasting import Forecaster
from manyheads.lab.cli.main import main

STAMPS = pd.date_range("2024-01-01", periods=300, freq="h")
RNG = np.random.default_rng(0)
SERIES = {name: RNG.normal(size=300).cumsum() for name in ("a", "b", "c")}

pytestmark = pytest.mark.filterwarnings("ignore::manyheads.forecasting.series.panels.FitWarning")


def rows(name, start, stop):
    return pd.DataFrame({"unique_id": name, "ds": STAMPS[start:stop], "y": SERIES[name][start:stop]})


@pytest.fixture(scope="module")
def fitted():
    table = pd.concat([rows("a", 0, 200), rows("b", 0, 200), rows("c", 50, 200)])
    return Forecaster(4, model="nlinear-cf", look_back=24).fit(table)


def forecast_alone(fitted, name, stop):
    """The forecast of one series from its rows up to ``stop``, computed from the arrays of the fitted model."""
    part = next(part for part in fitted.panels if name in part.panel.channels)
    index = part.panel.channels.index(name)
    window = np.zeros((1, 24, len(part.panel.channels)))
    window[0, :, index] = (SERIES[name][stop - 24 : stop] - part.scaler.mean[index]) / part.scaler.scale[index]
    return part.map.forecast(window)[0, :, index] * part.scaler.scale[index] + part.scaler.mean[index]


@pytest.mark.parametrize(
    "ends",
    [
        {"a": 250, "b": 250, "c": 250},
        {"c": 250, "b": 249, "a": 251},
        {"b": 260},
        {"c": 230, "a": 230},
    ],
)
def test_newer_rows_may_hold_any_subset_order_and_alignment_of_the_series(fitted, ends):
    newer = pd.concat([rows(name, stop - 60, stop) for name, stop in ends.items()])
    found = fitted.predict(data=newer)
    assert sorted(found["unique_id"].unique()) == sorted(ends)
    for name, stop in ends.items():
        one = found[found["unique_id"] == name]
        np.testing.assert_allclose(one["y_hat"], forecast_alone(fitted, name, stop), rtol=1e-12)
        assert list(one["ds"]) == list(STAMPS[stop : stop + 4])
        assert (one["lo-80"] < one["hi-80"]).all()


def test_a_series_that_is_constant_in_the_newer_rows_is_continued(fitted):
    newer = rows("a", 200, 260).assign(y=3.0)
    np.testing.assert_allclose(fitted.predict(data=newer)["y_hat"], 3.0, atol=0.2)


def test_other_series_and_other_frequencies_raise(fitted):
    with pytest.raises(DataError, match="fitted on the series a, b, c; the new data hold d: give some of the series"):
        fitted.predict(data=rows("a", 0, 60).assign(unique_id="d"))
    quarters = rows("a", 0, 60).assign(ds=pd.date_range("2024-02-01", periods=60, freq="15min"))
    with pytest.raises(DataError, match="series 'a': found rows at frequency 15min, expected h"):
        fitted.predict(data=quarters)


def test_the_options_named_in_errors_of_predict_exist_and_fix_them(fitted, tmp_path, capsys):
    fitted.save(tmp_path / "f.safetensors")
    newer = rows("a", 0, 60)
    newer.drop(index=30).to_csv(tmp_path / "gap.csv", index=False)
    newer.rename(columns={"ds": "when"}).to_csv(tmp_path / "when.csv", index=False)
    command = ["forecasting", "predict", str(tmp_path / "f.safetensors"), "--data"]
    for name, options in (("gap.csv", ["--fill", "interpolate"]), ("when.csv", ["--time", "when"])):
        assert main([*command, str(tmp_path / name)]) == 2
        assert options[0] in capsys.readouterr().err
        assert main([*command, str(tmp_path / name), *options]) == 0
        said = " ".join(capsys.readouterr().out.split())  # long paths wrap the line
        assert ("1 of 60 rows at frequency h were missing" in said) == (name == "gap.csv")
