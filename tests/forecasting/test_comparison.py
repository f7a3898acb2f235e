"""A model trained by gradient descent is compared with closed-form-auto and the seasonal naive on held-out rows."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from manyheads.forecasting import Forecaster, Panel, fit_auto
from manyheads.forecasting.estimator.conformal import calibration_origins
from manyheads.forecasting.series.panels import FitWarning, History, Scaler, collected_warnings
from manyheads.lab.cli.main import main

T = np.arange(160)
VALUES = np.sin(2 * np.pi * T[:, None] / 12 + [0.0, 1.0]) + 0.1 * np.random.default_rng(0).normal(size=(160, 2))
STAMPS = pd.date_range("2024-01-01", periods=160, freq="h")
PANEL = Panel(VALUES, ("a", "b"), STAMPS, 12)
NETWORK = "itransformer"
TRAINED = "nlinear"  # by gradient descent too, in less time


@pytest.fixture(scope="module")
def fitted():
    with collected_warnings([]):
        return Forecaster(4, model=TRAINED, look_back=16).fit(PANEL)


def test_held_out_errors_equal_those_of_fits_on_the_rows_before(fitted):
    first, last = calibration_origins(160, 4)
    scaled = Scaler.fit(VALUES).transform(VALUES)
    auto = fit_auto(History(scaled[:first], first, 12), [4]).map
    errors = {"closed-form-auto": [], "seasonal-naive": []}
    for origin in range(first, last):
        target = scaled[origin : origin + 4]
        errors["closed-form-auto"].append(auto.forecast(scaled[None, origin - auto.look_back : origin])[0] - target)
        errors["seasonal-naive"].append(scaled[origin - 12 : origin - 8] - target)
    found = fitted.held_out_errors()
    assert list(found.index) == [TRAINED, "closed-form-auto", "seasonal-naive"]
    for name, error in errors.items():
        assert found.loc[name, "mse"] == pytest.approx(np.mean(np.square(error)), rel=1e-9)
        assert found.loc[name, "mae"] == pytest.approx(np.mean(np.abs(error)), rel=1e-9)
        assert found.loc[name, "windows"] == last - first


def test_the_comparison_does_not_change_forecast_intervals_or_stored_warnings(fitted):
    assert not any("held-out" in warning for warning in fitted.warnings)
    assert fitted.panels[0].intervals.windows == 29


def test_a_trained_model_that_loses_warns_and_names_the_best_model():
    walk = Panel(np.random.default_rng(1).normal(size=(160, 2)).cumsum(0), ("a", "b"), STAMPS, 12)
    with pytest.warns(FitWarning, match=r"held-out MSE \(29 windows.*nlinear .*: use model 'closed-form-auto' instead"):
        Forecaster(4, model=TRAINED, look_back=16).fit(walk)


def test_errors_of_several_series_are_averaged_over_their_values():
    one, two = Panel(VALUES, ("a", "b"), STAMPS, 12), Panel(VALUES[:90, :1] ** 3, ("c",), STAMPS[:90], 12)
    parts = [
        Forecaster(4, model="nlinear-cf", look_back=16).fit(panel).held_out_errors().iloc[0] for panel in (one, two)
    ]
    both = Forecaster(4, model="nlinear-cf", look_back=16).fit([one, two]).held_out_errors()
    values = np.array([2 * parts[0]["windows"], parts[1]["windows"]])
    assert list(both.index) == ["nlinear-cf"]
    assert both["mse"].iloc[0] == pytest.approx(values @ [part["mse"] for part in parts] / values.sum(), rel=1e-9)


def test_there_are_no_held_out_errors_without_levels_or_after_loading(fitted, tmp_path):
    fitted.save(tmp_path / "f.safetensors")
    assert Forecaster.load(tmp_path / "f.safetensors").held_out_errors().empty
    assert Forecaster(4, model="nlinear-cf", look_back=16, levels=()).fit(PANEL).held_out_errors().empty


def test_the_command_prints_one_comparison_on_stderr_and_none_in_the_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(VALUES, columns=["a", "b"]).assign(ds=STAMPS).to_csv("t.csv", index=False)
    words = ["forecasting", "fit", "t.csv", "--horizon", "4", "--look-back", "16", "--season", "12", "--json"]
    assert main([*words, "--model", NETWORK, "--report", "r.html"]) == 0
    said = capsys.readouterr()
    [note] = [line for line in said.err.splitlines() if line.startswith("note: ")]
    assert f"{NETWORK} " in note
    assert "closed-form-auto " in note
    assert " is the best" in note
    assert "held-out" not in json.dumps(json.loads(said.out))
    assert "Held-out errors" in (tmp_path / "r.html").read_text()
    assert main([*words, "--model", "nlinear-cf", "--report", "r.html"]) == 0
    assert "note: " not in capsys.readouterr().err
    assert "Held-out errors" not in (tmp_path / "r.html").read_text()
    assert main([*words, "--model", TRAINED, "--levels"]) == 0
    assert "was not compared with closed-form-auto and seasonal-naive" in capsys.readouterr().err
