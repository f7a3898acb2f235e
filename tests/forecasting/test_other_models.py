"""Models that are not linear maps: in the forecaster and in an experiment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from manyheads.core.errors import ArgumentError
from manyheads.forecasting import Forecaster, Panel
from manyheads.forecasting.models import MODELS, ModelSpec, fit_model
from manyheads.forecasting.models.network_forecast import ModuleForecast
from manyheads.forecasting.series.panels import History, Scaler
from manyheads.forecasting.training.scoring import score
from manyheads.forecasting.training.windows import SetWindows, SquaredError
from manyheads.lab.training.experiment import Budget, Experiment
from manyheads.lab.training.loop import train_model
from manyheads.lab.training.optimisers import Optimiser

pytestmark = pytest.mark.filterwarnings("ignore::manyheads.forecasting.series.panels.FitWarning")


@dataclass(frozen=True)
class Bent:
    """``max(last, 0)^2 + h``: not affine, so unit windows do not determine it."""

    horizon: int
    look_back: int = 3

    def forecast(self, windows_NLC):
        last = windows_NLC[:, -1:]
        return np.maximum(last, 0.0) ** 2 + np.arange(1.0, self.horizon + 1)[:, None]


@dataclass(frozen=True)
class Shifted:
    """``last + 1``: affine; unit windows cannot separate its bias from a weight."""

    horizon: int
    look_back: int = 1

    def forecast(self, windows_NLC):
        return np.repeat(windows_NLC[:, -1:] + 1.0, self.horizon, axis=1)


def fit_toy(history, horizons, *, look_back, seed, kind):
    return {horizon: kind(horizon) for horizon in horizons}


@pytest.fixture
def toys(monkeypatch):
    place = f"{__name__}:fit_toy"
    monkeypatch.setattr("manyheads.forecasting.models.load", lambda found: fit_toy)
    for name, kind in (("bent", Bent), ("shifted", Shifted)):
        monkeypatch.setitem(MODELS, name, ModelSpec(name, name, "closed-form", place, {"kind": kind}))


def panel(rows=80, channels=2):
    values = np.random.default_rng(0).normal(size=(rows, channels)).cumsum(axis=0)
    names = tuple(f"c{index}" for index in range(channels))
    return Panel(values, names, pd.date_range("2024-01-01", periods=rows, freq="h"), 24)


@pytest.mark.parametrize(("name", "kind"), [("bent", Bent), ("shifted", Shifted)])
def test_a_forecaster_forecasts_with_its_model_unchanged(toys, name, kind):
    data = panel()
    forecaster = Forecaster(4, model=name).fit(data)
    scaler = Scaler.fit(data.values)
    expected = scaler.inverse(kind(4).forecast(scaler.transform(data.values)[None, -3:])[0])
    found = forecaster.predict()["y_hat"].to_numpy().reshape(2, 4).T
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_constant_channel_works_beside_any_model(toys):
    values = np.column_stack([panel().values[:, 0], np.full(80, 5.0), panel().values[:, 1]])
    mixed = Panel(values, ("a", "still", "b"), panel().stamps, 24)
    found = Forecaster(4, model="bent").fit(mixed).predict()
    alone = Forecaster(4, model="bent").fit(panel()).predict()
    assert (found.loc[found["unique_id"] == "still", "y_hat"] == 5.0).all()
    rest = found.loc[found["unique_id"] != "still", "y_hat"]
    np.testing.assert_allclose(rest, alone["y_hat"], rtol=1e-12)


def test_saving_a_model_that_cannot_be_stored_raises(toys, tmp_path):
    with pytest.raises(ArgumentError, match="the model 'bent': found a Bent, expected a model that can be stored"):
        Forecaster(4, model="bent").fit(panel()).save(tmp_path / "f.safetensors")
    assert list(tmp_path.iterdir()) == []


class Bends(nn.Module):
    """``(N, L, C) -> (N, H, C)`` with a hidden layer."""

    def __init__(self, look_back, horizon):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(look_back, 8), nn.Tanh(), nn.Linear(8, horizon))

    def forward(self, x_NLC):
        return self.layers(x_NLC.transpose(1, 2)).transpose(1, 2)


@dataclass(frozen=True)
class BendsModel:
    def build(self, splits):
        return Bends(splits.facts["look_back"], splits.facts["horizon"])


def test_an_experiment_measures_any_model_on_all_test_windows():
    data = SetWindows("national_illness", 26, 24)
    budget = Budget(epochs=1, batch_size=64)
    experiment = Experiment("bends", data, BendsModel(), SquaredError(), Optimiser("adam", 0.01), budget)
    module, result = train_model(experiment, 0, None, progress=False)
    part = data.open().test
    windows = range(part.first_target, part.last_target - 24 + 1)
    squared, absolute = [], []
    for row in windows:
        past = torch.from_numpy(part.values[row - 26 : row]).float()[None]
        error = module(past)[0].detach().numpy() - part.values[row : row + 24]
        squared.append((error**2).mean())
        absolute.append(np.abs(error).mean())
    assert result.metrics["windows"] == len(windows)
    assert result.metrics["mse"] == pytest.approx(np.mean(squared), rel=1e-5)
    assert result.metrics["mae"] == pytest.approx(np.mean(absolute), rel=1e-5)


def test_a_module_runs_in_its_own_dtype_and_in_evaluation_mode():
    module = nn.Sequential(Bends(5, 2), nn.Dropout(0.9)).double()
    values = np.random.default_rng(0).normal(size=(40, 3))
    model = ModuleForecast(module, 5, 2)
    np.testing.assert_array_equal(model.forecast(values[None, -5:]), model.forecast(values[None, -9:]))
    assert score(model, values, 10, 40).windows == 29


def test_trainings_in_threads_equal_trainings_one_by_one():
    def fit(seed):
        values = np.random.default_rng(seed).normal(size=(120, 1)).cumsum(axis=0)
        history = History(values / values.std(0), 96, 1)
        return fit_model("nlinear", history, [2], look_back=6, seed=seed)[2].weight

    alone = [fit(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(fit, range(4)), alone, strict=True):
            np.testing.assert_array_equal(found, expected)
