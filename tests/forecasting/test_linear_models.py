"""The linear family as modules: parameter counts, equations, and the linear map of a trained module."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.forecasting.models import MODELS, fit_model
from manyheads.forecasting.models.closed_form.normal_equations import moving_average
from manyheads.forecasting.models.linear import LinearForecaster
from manyheads.forecasting.models.networks import NETWORKS
from manyheads.forecasting.series.panels import History
from manyheads.forecasting.training.experiments import experiments, linear_experiment, recipe
from manyheads.forecasting.training.windows import HistoryWindows, Windows, history_splits
from manyheads.lab.training.experiment import find_experiment


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


FORMS = ("linear", "nlinear", "dlinear", "rlinear")


@pytest.mark.parametrize(
    ("form", "look_back", "horizon", "channels", "count"),
    [
        ("dlinear", 96, 720, None, 139_680),  # Table 8 of 2205.13504 says 139.7K
        ("linear", 336, 96, None, 32_352),
        ("nlinear", 336, 96, None, 32_352),
        ("rlinear", 336, 96, None, 32_352),
        ("nlinear", 336, 96, 7, 226_464),
        ("dlinear", 104, 24, 7, 35_280),
    ],
)
def test_parameter_counts(form, look_back, horizon, channels, count):
    assert sum(p.numel() for p in LinearForecaster(form, look_back, horizon, channels).parameters()) == count


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_module_equals_its_linear_map(form, individual, double):
    module = LinearForecaster(form, 30, 7, 3 if individual else None)
    x = torch.randn(5, 30, 3) * 2 + 1
    np.testing.assert_allclose(module.as_linear_map().forecast(x.numpy()), module(x).detach().numpy(), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_module_equals_its_equation_on_each_window(form, double):
    module = LinearForecaster(form, 40, 5, 2)
    x_NLC = torch.randn(3, 40, 2)
    got = module(x_NLC).detach().numpy()
    for n in range(3):
        for c in range(2):
            x = x_NLC[n, :, c].numpy()
            weight, bias = (p.detach().numpy()[c] for p in (module.main.weight, module.main.bias))
            if form == "linear":
                expected = x @ weight + bias
            elif form == "nlinear":
                expected = (x - x[-1]) @ weight + bias + x[-1]
            elif form == "rlinear":
                expected = x.std() * ((x - x.mean()) / x.std() @ weight + bias) + x.mean()
            else:
                padded = np.concatenate([np.full(12, x[0]), x, np.full(12, x[-1])])
                trend = np.convolve(padded, np.full(25, 1 / 25), "valid")
                second, second_bias = (p.detach().numpy()[c] for p in (module.trend.weight, module.trend.bias))
                expected = (x - trend) @ weight + bias + trend @ second + second_bias
            np.testing.assert_allclose(got[n, :, c], expected, atol=1e-10)


def test_a_level_shift_shifts_the_forecast_of_nlinear_and_rlinear():
    x = torch.randn(4, 30, 2, dtype=torch.float64)
    for form in ("nlinear", "rlinear"):
        module = LinearForecaster(form, 30, 5).double()
        torch.testing.assert_close(module(x + 10.0), module(x) + 10.0)
    module = LinearForecaster("linear", 30, 5).double()
    assert not torch.allclose(module(x + 10.0), module(x) + 10.0)


def test_a_constant_window_gives_finite_gradients():
    module = LinearForecaster("rlinear", 30, 5)
    x = torch.full((2, 30, 1), 3.0, requires_grad=True)
    module(x).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_the_trend_matrix_is_not_saved():
    assert set(LinearForecaster("dlinear", 30, 5).state_dict()) == {
        f"{part}.{name}" for part in ("main", "trend") for name in ("weight", "bias")
    }
    np.testing.assert_allclose(moving_average(30).sum(1), 1.0)


def test_windows_start_at_every_row_and_validation_look_backs_reach_into_the_train_part():
    values = torch.arange(100.0).unsqueeze(1)
    windows = Windows(values, 10, 4)
    assert len(windows) == 87
    past, future = windows.batch(torch.tensor([0, 86]))
    assert past[:, :, 0].tolist() == [list(range(10)), list(range(86, 96))]
    assert future[:, :, 0].tolist() == [[10, 11, 12, 13], [96, 97, 98, 99]]
    splits = history_splits(History(values.numpy(), 70, 1), 10, 4)
    assert len(splits.train) == 70 - 14 + 1
    past, future = splits.validation.batch(torch.tensor([0]))
    assert (past[0, -1, 0], future[0, 0, 0]) == (69, 70)
    with pytest.raises(DataError, match=r"fewer than look-back \+ horizon = 80 \+ 4"):
        HistoryWindows(History(values.numpy(), 70, 1), 80, 4).open()


def test_gradient_descent_comes_close_to_the_closed_form(hourly):
    values = hourly[["a", "b"]].to_numpy()
    history = History((values - values.mean(0)) / values.std(0), 320, 24)
    exact = fit_model("nlinear-cf", history, [4], look_back=24)[4]
    trained = fit_model("nlinear", history, [4], look_back=24, seed=1)[4]
    probe = history.values[None, -24:]
    assert np.abs(trained.forecast(probe) - exact.forecast(probe)).max() < 0.35


@pytest.mark.filterwarnings("ignore::manyheads.forecasting.series.panels.FitWarning")
# the published sizes are the same models, but large
@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith("-published")])
def test_every_model_fits_and_forecasts(hourly, name: str):
    values = hourly[["a", "b"]].to_numpy()[:150]
    history = History((values - values.mean(0)) / values.std(0), 110, 24)
    # networks are fitted for each horizon anew
    horizons = [5] if name in NETWORKS else [3, 5]
    fitted = fit_model(name, history, horizons, look_back=30)
    for horizon in horizons:
        forecast = fitted[horizon].forecast(history.values[None, -fitted[horizon].look_back :])
        assert forecast.shape == (1, horizon, 2)
        assert np.isfinite(forecast).all()


def test_batch_size_and_rate_are_those_of_the_authors_scripts():
    assert recipe("ETTh1", 96) == (32, 0.005)
    assert recipe("exchange_rate", 96) == (8, 0.0005)
    assert recipe("exchange_rate", 336) == (32, 0.0005)
    assert recipe("ETTm2", 96) == (32, 0.001)
    assert recipe("ETTm2", 720) == (32, 0.01)


def test_experiments_have_unique_names_and_published_figures():
    every = experiments()
    assert len({e.name for e in every}) == len(every) == 9 * 4 * (4 * 2 + 6)
    assert len({e.hash for e in every}) == len(every)
    chosen = find_experiment("etth1-96-dlinear", every)
    assert chosen == linear_experiment("ETTh1", 96, "dlinear")
    assert chosen.source.reported == {"mse": 0.375}


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="look-back and horizon: found 0 and 4"):
        LinearForecaster("linear", 0, 4)
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        LinearForecaster("xlinear", 4, 4)
