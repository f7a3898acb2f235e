"""Closed forms against explicit windows, explicit least squares and independently measured errors."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.forecasting.datasets.benchmark_sets import history, load_set, standardise
from manyheads.forecasting.models import fit_models
from manyheads.forecasting.models.closed_form.auto import AutoRule, fit_auto
from manyheads.forecasting.models.closed_form.error import gram_mse, gram_mse_by_step
from manyheads.forecasting.models.closed_form.hankel import window_moments, with_deviation
from manyheads.forecasting.models.closed_form.normal_equations import moving_average
from manyheads.forecasting.models.closed_form.ridge import fit_ridge, fit_ridges
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series.panels import History
from manyheads.forecasting.training.scoring import score

FORMS = ("linear", "nlinear", "dlinear", "rlinear")


def walk(rows=220, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    season = np.sin(np.arange(rows)[:, None] / 3 + np.arange(channels))
    return 0.1 * rng.normal(size=(rows, channels)).cumsum(0) + season + 0.3 * rng.normal(size=(rows, channels))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 20), st.integers(1, 40), st.integers(0, 3))
def test_moments_equal_the_sums_over_explicit_windows(look_back, horizon, start, count, seed):
    series = walk(start + count + look_back + horizon, 1, seed)[:, 0]
    window = np.array([series[n : n + look_back + horizon] for n in range(start, start + count)])
    plain = window_moments(series, look_back, horizon, start, start + count)
    for found, feature in (
        (plain, np.ones(count)),
        (with_deviation(plain, series, start), window[:, :look_back].std(1)),
    ):
        np.testing.assert_allclose(found.products, window[:, :look_back].T @ window, atol=1e-9)
        np.testing.assert_allclose(found.squares, (window**2).sum(0), atol=1e-9)
        np.testing.assert_allclose(found.side, feature @ window, atol=1e-6)
        assert found.side_energy == pytest.approx((feature**2).sum(), abs=1e-8)


def test_moments_subtract_like_sets_of_windows_and_windows_outside_the_series_raise():
    series = walk(100, 1)[:, 0]
    whole, part = window_moments(series, 8, 4, 0, 80), window_moments(series, 8, 4, 30, 50)
    rest = window_moments(series, 8, 4, 0, 30) + window_moments(series, 8, 4, 50, 80)
    np.testing.assert_allclose((whole - part).products, rest.products, atol=1e-9)
    assert (whole - part).windows == rest.windows == 60
    for start, stop in ((0, 90), (-1, 5), (5, 5)):
        with pytest.raises(DataError, match="do not fit"):
            window_moments(series, 8, 4, start, stop)


def test_moving_average_repeats_the_edges():
    x = np.random.default_rng(0).normal(size=40)
    padded = np.concatenate([np.repeat(x[0], 12), x, np.repeat(x[-1], 12)])
    expected = [padded[i : i + 25].mean() for i in range(40)]
    np.testing.assert_allclose(moving_average(40) @ x, expected, atol=1e-12)


def explicit_ridge(x, y, form, penalty):
    """Ridge as augmented least squares on explicit windows ``(N, L)``, ``(N, H)``; returns the forecast function."""
    look_back = x.shape[1]

    def features(x):
        if form == "nlinear":
            return x - x[:, -1:], np.ones((len(x), 1)), x[:, -1:]
        if form == "rlinear":
            return x - x.mean(1, keepdims=True), x.std(1, keepdims=True), x.mean(1, keepdims=True)
        if form == "dlinear":
            trend = x @ moving_average(look_back).T
            return np.concatenate([x - trend, trend], 1), np.ones((len(x), 1)), np.zeros((len(x), 1))
        return x, np.ones((len(x), 1)), np.zeros((len(x), 1))

    z, f, level = features(x)
    rows = np.concatenate([np.concatenate([z, f], 1), np.sqrt(penalty) * np.eye(z.shape[1], z.shape[1] + 1)])
    targets = np.concatenate([y - level, np.zeros((z.shape[1], y.shape[1]))])
    solution = np.linalg.lstsq(rows, targets, rcond=None)[0]

    def forecast(x):
        z, f, level = features(x)
        return np.concatenate([z, f], 1) @ solution + level

    return forecast


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("individual", [False, True])
def test_ridge_equals_augmented_least_squares_on_explicit_windows(form, individual):
    values = walk()
    past = History(values[:180], 140, 7)
    fit = fit_ridge(past, 5, form=form, look_back=12, individual=individual, penalties=[3.0])
    window = np.array([values[n : n + 17] for n in range(140 - 17 + 1)])
    for c in range(3):
        chosen = window[:, :, [c]] if individual else window
        stacked = chosen.transpose(0, 2, 1).reshape(-1, 17)
        expected = explicit_ridge(stacked[:, :12], stacked[:, 12:], form, 3.0)
        probe = values[100:112, c][None]
        found = fit.map.forecast(np.repeat(probe[:, :, None], 3, axis=2))[0, :, c]
        np.testing.assert_allclose(found, expected(probe)[0], atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_the_validation_error_equals_that_of_explicit_forecasts(form):
    values = walk()
    past = History(values[:180], 140, 7)
    fit = fit_ridge(past, 5, form=form, look_back=12)
    assert fit.validation_mse == pytest.approx(score(fit.map, values, 140, 180).mse, rel=1e-8)
    errors = [
        fit_ridge(past, 5, form=form, look_back=12, penalties=[p]).validation_mse for p in (0.01, 1.0, 100.0, 1e4)
    ]
    assert fit.validation_mse <= min(errors) + 1e-12


@pytest.mark.parametrize("scale_bias", [False, True])
@pytest.mark.parametrize("sets", [1, 3])
def test_the_error_from_moments_equals_that_of_explicit_forecasts(scale_bias, sets):
    rng, values = np.random.default_rng(0), walk()
    bias, extra = rng.normal(size=(sets, 4)), rng.normal(size=(sets, 4))
    weights = rng.normal(size=(sets, 9, 4))
    model = LinearMap(weights, np.zeros((sets, 4)), extra) if scale_bias else LinearMap(weights, bias)
    assert gram_mse(model, values, 50, 200) == pytest.approx(score(model, values, 50, 200).mse, rel=1e-9)
    first = score(model, values, 50, 50 + 64 + 3)
    assert first.windows == 64
    assert gram_mse(model, values, 50, 200, windows=64) == pytest.approx(first.mse, rel=1e-9)
    with pytest.raises(ArgumentError, match="no window"):
        gram_mse(model, values, 50, 52)


def test_models_fitted_together_equal_models_fitted_alone():
    past = History(walk()[:180], 140, 7)
    members = [(form, individual) for individual in (True, False) for form in FORMS]
    for (form, individual), fit in zip(members, fit_ridges(past, 5, members, look_back=12), strict=True):
        alone = fit_ridge(past, 5, form=form, look_back=12, individual=individual)
        assert (fit.form, fit.individual, fit.penalties) == (form, individual, alone.penalties)
        np.testing.assert_array_equal(fit.map.weight, alone.map.weight)


def test_errors_of_several_maps_together_equal_those_of_each_alone():
    rng, values = np.random.default_rng(0), walk()
    maps = [
        LinearMap(rng.normal(size=(sets, 9, 4)), rng.normal(size=(sets, 4)) * (not scaled), extra)
        for sets in (1, 3)
        for scaled in (False, True)
        for extra in [rng.normal(size=(sets, 4)) if scaled else None]
    ]
    for linear_map, found in zip(maps, gram_mse_by_step(maps, values, 50, 200), strict=True):
        np.testing.assert_allclose(found, score(linear_map, values, 50, 200).mse_by_step, rtol=1e-9)


def test_memory_does_not_grow_with_the_number_of_windows():
    def peak(rows):
        values = walk(rows, 2)
        past = History(values[: rows * 4 // 5], rows * 3 // 5, 7)
        tracemalloc.start()
        for form in FORMS:
            fit = fit_ridge(past, 96, form=form, look_back=192)
            gram_mse(fit.map, values, past.rows, rows)
            score(fit.map, values, past.rows, rows)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    more_rows = 60_000
    few, many = peak(10_000), peak(10_000 + more_rows)
    window_matrix = more_rows * 192 * 8
    assert many - few < 10 * more_rows * 8 < window_matrix / 10  # a few copies of the series itself


def test_look_back_and_sharing_are_chosen_by_validation_error():
    values = walk(1500, 2)
    past = History(values[:1300], 1000, 7)
    fit = fit_ridge(past, 5, look_back=None, individual=None)
    tried = [
        fit_ridge(past, 5, look_back=length, individual=kind).validation_mse
        for length in (96, 192)
        for kind in (False, True)
    ]
    assert fit.validation_mse == min(tried)
    assert fit.look_back in (96, 192)
    by_name = fit_models(["nlinear-chosen-cf"], past, [5], look_back=1)["nlinear-chosen-cf"][5]
    np.testing.assert_array_equal(by_name.weight, fit.map.weight)


def test_a_too_small_validation_part_chooses_neither_look_back_nor_sharing():
    past = History(walk(500, 2), 440, 7)
    fit = fit_ridge(past, 5, look_back=None, individual=None)
    assert (fit.look_back, fit.individual, fit.penalties) == (96, False, (0.0,))
    assert "56 validation windows are too few" in fit.warnings[0]


def test_a_too_small_validation_part_gives_ordinary_least_squares_and_a_warning():
    values = walk(150)
    fit = fit_ridge(History(values[:140], 120, 7), 5, look_back=20)
    assert fit.penalties == (0.0,)
    assert "16 validation windows are too few" in fit.warnings[0]
    plain = fit_ridge(History(values[:140], 120, 7), 5, look_back=20, penalties=[0.0])
    np.testing.assert_allclose(plain.map.weight, fit.map.weight)


def test_bad_arguments_are_named():
    past = History(walk(100), 80, 7)
    with pytest.raises(DataError, match=r"80 rows, fewer than look-back \+ horizon = 70 \+ 20"):
        fit_ridge(past, 20, look_back=70)
    with pytest.raises(ArgumentError, match="penalties"):
        fit_ridge(past, 5, look_back=10, penalties=[-1.0])
    with pytest.raises(UnknownNameError, match="did you mean 'nlinear'"):
        fit_ridge(past, 5, look_back=10, form="nlinar")


PUBLISHED = {"ETTh1": (0.3696, 0.4027, 0.4261, 0.4338), "ETTh2": (0.2719, 0.3338, 0.3582, 0.3924)}
PUBLISHED |= {"ETTm2": (0.1645, 0.2195, 0.2732, 0.3672)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_closed_form_nlinear_has_the_independently_measured_errors(name):
    panel = load_set(name)
    values, _ = standardise(panel)
    for horizon, expected in zip((96, 192, 336, 720), PUBLISHED[name], strict=True):
        fit = fit_ridge(history(panel), horizon)
        error = gram_mse(fit.map, values, panel.split.validation_end, panel.split.test_end)
        assert error == pytest.approx(expected, abs=5e-4)


def seasonal(rows, channels=2, seed=0, season=12):
    rng = np.random.default_rng(seed)
    t = np.arange(rows)[:, None]
    return np.sin(2 * np.pi * t / season + np.arange(channels)) + 0.3 * rng.normal(size=(rows, channels))


def test_auto_serves_every_horizon_with_one_fit_and_beats_repeat():
    values = seasonal(900)
    fit = fit_auto(History(values[:700], 600, 12), [6, 20])
    assert fit.borders == (6, 20)
    assert (fit.prior, fit.naive.any()) == ("last value", False)
    assert fit.map.horizon == 20
    repeat = LinearMap(np.eye(1, 5, 4).T.reshape(1, 5, 1).repeat(20, 2), np.zeros((1, 20)))
    assert score(fit.map, values, 700, 900).mse < 0.3 * score(repeat, values, 700, 900).mse
    probe = values[None, -fit.map.look_back :]
    np.testing.assert_allclose(fit.map.head(6).forecast(probe), fit.map.forecast(probe)[:, :6], atol=1e-12)


def test_auto_repeats_the_last_value_of_a_random_walk():
    values = np.random.default_rng(3).normal(size=(1200, 4)).cumsum(0)
    fit = fit_auto(History(values / values.std(0), 900, 5), [10])
    assert fit.naive.all()
    probe = np.random.default_rng(0).normal(size=(2, fit.map.look_back, 4))
    np.testing.assert_array_equal(fit.map.forecast(probe), np.repeat(probe[:, -1:], 10, axis=1))


def test_auto_uses_the_seasonal_prior_with_few_seasons():
    values = seasonal(200, season=24)
    fit = fit_auto(History(values, 150, 24), [12])
    assert fit.prior == "seasonal naive"
    assert fit.look_backs == (72, 36, 24)


def test_auto_ensembles_are_the_mean_of_explicit_ridges():
    """One channel, penalty and look-back, no folds: the map is one ridge regression of the prior's residual."""
    values = seasonal(80, 1)
    rule = AutoRule(divisors=(1,), penalties=(0.1,), folds=1000, few_seasons=0)
    fit = fit_auto(History(values, 60, 4), [5], rule=rule)
    (look_back,) = fit.look_backs
    window = np.array([values[n : n + look_back + 5, 0] for n in range(80 - look_back - 5 + 1)])
    z, r = window[:, :look_back] - window[:, [look_back - 1]], window[:, look_back:] - window[:, [look_back - 1]]
    gram = z.T @ z
    weights = np.linalg.solve(gram + 0.1 * np.trace(gram) / look_back * np.eye(look_back), z.T @ r)
    probe = values[-look_back:]
    expected = probe[-1, 0] + (probe[:, 0] - probe[-1, 0]) @ weights
    np.testing.assert_allclose(fit.map.forecast(probe[None])[0, :, 0], expected, atol=1e-9)
    assert "too few for cross-validation" in fit.warnings[0]


def test_auto_raises_for_too_few_rows_and_a_horizon_of_0():
    with pytest.raises(DataError, match="10 rows are too few for a horizon of 8"):
        fit_auto(History(seasonal(10), 8, 4), [8])
    with pytest.raises(ArgumentError, match="horizons"):
        fit_auto(History(seasonal(100), 80, 4), [0])


def test_auto_weights_are_finite_with_a_constant_channel():
    values = seasonal(300)
    values[:, 1] = 0.0
    fit = fit_auto(History(values, 240, 12), [6])
    assert np.isfinite(fit.map.weight).all()
