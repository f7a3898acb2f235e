"""The guard and the noise weights of closed-form-auto: no channel decides for the others."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from manyheads.forecasting import Forecaster, Panel
from manyheads.forecasting.models.closed_form.auto import RULE, AutoRule, _guard, _pooling_shares, fit_auto
from manyheads.forecasting.series.panels import History, collected_warnings


def test_a_channel_that_does_not_move_in_a_fold_does_not_guard_the_others():
    """Two good channels, and one for which Repeat has no error in the second fold (up to rounding)."""
    repeat = np.array([[1.0, 1.1, 0.9, 1.0], [2.0, 2.0, 2.0, 2.1], [1.0, 1e-16, 1.0, 1.0]])
    mixed = np.array([[0.2, 0.25, 0.15, 0.2], [0.5, 0.5, 0.6, 0.5], [0.9, 1e-6, 1.1, 1.0]])
    gain, error, naive = _guard(mixed, repeat, RULE)
    np.testing.assert_array_equal(naive, [False, False, False])
    by_hand = [np.median([0.8, 0.75, 0.1]), np.median([1 - 0.25 / 1.1, 0.75])]
    by_hand += [np.median([1 - 0.15 / 0.9, 0.7, -0.1]), np.median([0.8, 1 - 0.5 / 2.1, 0.0])]
    assert gain == pytest.approx(np.mean(by_hand))
    assert error == pytest.approx(np.std(by_hand, ddof=1) / 2)


def test_a_channel_with_its_own_gain_keeps_its_model_among_random_walks():
    rng = np.random.default_rng(0)
    repeat = np.ones((6, 4))
    mixed = 1.05 + 0.02 * rng.normal(size=(6, 4))
    mixed[2] = [0.3, 0.4, 0.35, 0.3]
    assert _guard(mixed, repeat, RULE)[2].tolist() == [True, True, False, True, True, True]


def test_a_channel_that_clearly_loses_is_guarded_in_a_panel_that_gains():
    mixed = np.array([[0.3, 0.4, 0.35, 0.3], [0.5, 0.6, 0.5, 0.4], [1.5, 1.4, 1.45, 1.6]])
    assert _guard(mixed, np.ones((3, 4)), RULE)[2].tolist() == [False, False, True]


def test_a_constant_channel_is_not_guarded():
    repeat = np.array([[0.0] * 4, [1.0] * 4])
    assert _guard(np.array([[0.0] * 4, [0.2, 0.3, 0.2, 0.3]]), repeat, RULE)[2].tolist() == [False, False]


def test_guarded_channels_are_named_and_repeat_the_last_value():
    rng = np.random.default_rng(1)
    t = np.arange(1500)
    values = rng.normal(size=(1500, 4)).cumsum(axis=0)
    values[:, 1] = np.sin(t / 4) + 0.1 * rng.normal(size=1500)
    values /= values.std(0)
    fit = fit_auto(History(values, 1500, 25, names=("a", "wave", "b", "c")), [10])
    assert fit.naive.tolist() == [True, False, True, True]
    assert fit.warnings == (
        "a, b, c: no gain over naive forecasts was seen in cross-validation: the last value is repeated",
    )
    window = values[None, -fit.map.look_back :]
    np.testing.assert_array_equal(fit.map.forecast(window)[0][:, fit.naive], np.tile(values[-1, fit.naive], (10, 1)))


def panel(values):
    names = ("load", "temperature", "rain")[: values.shape[1]]
    return Panel(values, names, pd.date_range("2024-01-01", periods=len(values), freq="h"), 24)


@pytest.mark.parametrize("seed", range(4))
def test_a_channel_with_a_long_constant_stretch_costs_the_others_little(seed):
    """benchmarks/forecasting_channels.py measures many tables: ratio at most 1.03 on average, 1.3 in one table."""
    rng, t = np.random.default_rng(seed), np.arange(1500)
    waves = [10.0, 5.0] * np.sin(2 * np.pi * t[:, None] / 24 + [0.0, 1.0]) + rng.normal(size=(1500, 2))
    rain = np.where((t < 200) | (t > 900), rng.gamma(0.3, 2.0, 1500), 0.0).round(3)
    errors = []
    for values in (np.column_stack([waves, rain]), waves):
        with collected_warnings([]):
            forecast = Forecaster(24, levels=()).fit(panel(values[:-24])).predict()["y_hat"].to_numpy()
        errors.append(((forecast[:48].reshape(2, 24).T - waves[-24:]) ** 2).mean())
    assert errors[0] < 1.3 * errors[1]


def test_a_noisy_channel_weighs_less_in_the_shared_ensemble():
    """Weight min(1, 1.5 median / residual), with the median over the channels that move."""
    residuals = np.array([[1.0, 2.0], [1.2, 2.0], [0.8, 2.0], [6.0, 0.0], [0.0, 0.0]])
    expected = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.5 * 1.1 / 6.0, 1.0], [1.0, 1.0]]
    np.testing.assert_allclose(_pooling_shares(residuals, RULE), expected)
    np.testing.assert_allclose(_pooling_shares(np.zeros(3), RULE), 1.0)


def test_the_shared_ensemble_is_the_weighted_ridge_of_explicit_windows():
    """Three channels, the last one noisy; at a huge temperature the own and the shared ensemble have equal weights."""
    rng, t = np.random.default_rng(0), np.arange(160)
    values = np.sin(2 * np.pi * t[:, None] / 8 + [0.0, 1.0, 2.0]) + [0.3, 0.3, 2.0] * rng.normal(size=(160, 3))
    rule = AutoRule(divisors=(1,), penalties=(0.1,), temperature=1e9, few_seasons=0, guard=-1e9)
    fit = fit_auto(History(values, 120, 8), [3], rule=rule)
    (look_back,) = fit.look_backs
    windows = np.lib.stride_tricks.sliding_window_view(values, look_back + 3, axis=0)  # (windows, channels, L + H)
    z, r = (part - windows[..., [look_back - 1]] for part in (windows[..., :look_back], windows[..., look_back:]))

    def ridge(gram, cross):
        return np.linalg.solve(gram + 0.1 * np.trace(gram) / look_back * np.eye(look_back), cross)

    own = [ridge(z[:, c].T @ z[:, c], z[:, c].T @ r[:, c]) for c in range(3)]
    left = np.array([((r[:, c] - z[:, c] @ own[c]) ** 2).sum() for c in range(3)])
    share = np.minimum(1.0, 1.5 * np.median(left) / left)
    assert share[2] < 0.5
    shared = ridge(
        sum(share[c] * z[:, c].T @ z[:, c] for c in range(3)), sum(share[c] * z[:, c].T @ r[:, c] for c in range(3))
    )
    probe = values[-look_back:]
    mixed = np.stack([(probe[:, c] - probe[-1, c]) @ (own[c] + shared) / 2 + probe[-1, c] for c in range(3)], 1)
    np.testing.assert_allclose(fit.map.forecast(probe.T[None, :, :].transpose(0, 2, 1))[0], mixed, atol=1e-6)
