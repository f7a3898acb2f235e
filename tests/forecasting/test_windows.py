"""Scores and naive forecasts against loops and published figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyheads.core.errors import DataError
from manyheads.forecasting.evaluation.bench import run_bench
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.models.naive import fit_naive
from manyheads.forecasting.series.panels import History
from manyheads.forecasting.training import scoring as windows
from manyheads.forecasting.training.scoring import count_windows, score


def loop_errors(model, values, first, last, count=None):
    errors = []
    for origin in range(first, last - model.horizon + 1):
        forecast = model.forecast(values[None, origin - model.look_back : origin])[0]
        errors.append(forecast - values[origin : origin + model.horizon])
    return np.array(errors if count is None else errors[:count])


def random_map(rng, shared, scale_bias=False):
    sets = 1 if shared else 3
    extra = rng.normal(size=(sets, 4)) if scale_bias else None
    return LinearMap(rng.normal(size=(sets, 9, 4)), rng.normal(size=(sets, 4)) * (not scale_bias), extra)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("scale_bias", [True, False])
def test_scores_equal_an_explicit_loop_for_every_chunk_size(shared, scale_bias, monkeypatch):
    rng = np.random.default_rng(0)
    values, model = rng.normal(size=(60, 3)), random_map(rng, shared, scale_bias)
    expected = loop_errors(model, values, 20, 55)
    for chunk in (1, 1000, 16 << 20):
        monkeypatch.setattr(windows, "_CHUNK_BYTES", chunk)
        found = score(model, values, 20, 55)
        assert found.windows == len(expected) == 32
        np.testing.assert_allclose(found.mse, (expected**2).mean(), rtol=1e-12)
        np.testing.assert_allclose(found.mae, np.abs(expected).mean(), rtol=1e-12)
        np.testing.assert_allclose(found.mse_by_step, (expected**2).mean((0, 2)), rtol=1e-12)
        np.testing.assert_allclose(found.mae_by_step, np.abs(expected).mean((0, 2)), rtol=1e-12)
        single = score(model, values, 20, 55, dtype=np.float32)
        np.testing.assert_allclose([single.mse, single.mae], [found.mse, found.mae], rtol=2e-6)


@pytest.mark.parametrize("name", ["repeat", "seasonal-naive", "drift", "window-mean"])
def test_naive_forecasts_equal_their_definition(name):
    rng = np.random.default_rng(1)
    past = rng.normal(size=(1, 12, 2))
    model = fit_naive(History(rng.normal(size=(50, 2)), 40, 5), [7], look_back=12, name=name)[7]
    found = model.forecast(past)[0]
    for h in range(7):
        for c in range(2):
            x = past[0, :, c]
            expected = {
                "repeat": x[-1],
                "seasonal-naive": x[-5 + h % 5],
                "drift": x[-1] + (h + 1) * (x[-1] - x[0]) / 11,
                "window-mean": sum(x) / 12,
            }[name]
            assert found[h, c] == pytest.approx(expected, abs=1e-12)
    as_map = model.as_linear_map()
    np.testing.assert_allclose(as_map.forecast(past), model.forecast(past), atol=1e-12)


@given(st.integers(1, 30), st.integers(1, 200), st.integers(1, 70))
def test_the_paper_protocol_keeps_whole_batches(horizon, rows, batch):
    honest = count_windows(0, rows, horizon)
    paper = count_windows(0, rows, horizon, drop_to_multiple_of=batch)
    assert paper % batch == 0
    assert 0 <= honest - paper < batch


def test_the_paper_protocol_scores_the_windows_before_the_dropped_batch():
    rng = np.random.default_rng(2)
    values, model = rng.normal(size=(60, 3)), random_map(rng, True)
    expected = (loop_errors(model, values, 20, 55, count=28) ** 2).mean()
    found = score(model, values, 20, 55, drop_to_multiple_of=14)
    assert found.windows == 28
    assert found.mse == pytest.approx(expected, rel=1e-12)


def test_scoring_without_a_window_raises():
    model = random_map(np.random.default_rng(0), True)
    for first, last in ((20, 23), (5, 55), (20, 61)):
        with pytest.raises(DataError, match="no window of look-back 9 and horizon 4"):
            score(model, np.zeros((60, 3)), first, last)


def test_repeat_under_the_paper_protocol_equals_table_2_on_illness():
    rows = run_bench(["ili"], models=["repeat"], protocols=["paper"]).rows
    assert [round(row.mse, 3) for row in rows] == [6.587, 7.130, 6.575, 5.893]
    assert [round(row.mse, 3) for row in rows] == [row.published_mse for row in rows]


def test_repeat_under_the_paper_protocol_equals_table_2_on_exchange_720(needs):
    needs("exchange_rate")
    rows = run_bench(["exchange"], [720], ["repeat"], protocols=["paper", "honest"]).rows
    assert [round(row.mse, 3) for row in rows] == [0.823, 0.810]


HONEST = {
    "repeat": {"ETTh1": (1.294, 1.325, 1.330, 1.335), "national_illness": (6.213, 7.714, 7.851, 6.885)},
    "seasonal-naive": {"ETTh1": (0.512, 0.581, 0.650, 0.655), "national_illness": (2.564, 2.266, 2.142, 1.917)},
    "window-mean": {"ETTh1": (0.706, 0.713, 0.706, 0.701), "national_illness": (4.10, 4.12, 4.17, 4.33)},
    "drift": {"ETTh1": (1.42, None, None, 3.06), "national_illness": (6.7, None, None, 7.8)},
}


@pytest.mark.parametrize("model", HONEST)
@pytest.mark.parametrize("name", ["ETTh1", "national_illness"])
def test_honest_naive_errors_equal_independently_measured_ones(model, name):
    rows = run_bench([name], models=[model]).rows
    for row, expected in zip(rows, HONEST[model][name], strict=True):
        if expected is not None:
            digits = 3 if expected < 3 and model != "drift" else 2 if model != "drift" else 1
            assert row.mse == pytest.approx(expected, abs=0.6 * 10**-digits)
