"""Series that a model cannot be fitted to: constant, short, hardly moving, with one huge cell."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from manyheads.forecasting import Forecaster
from manyheads.forecasting.models import MODELS
from manyheads.forecasting.series.panels import FitWarning, Scaler, collected_warnings, constant_channels

CLOSED = (
    "closed-form-auto",
    "linear-cf",
    "nlinear-cf",
    "dlinear-cf",
    "rlinear-cf",
    "nlinear-i-cf",
    "rlinear-chosen-cf",
)


def table(freq="h", **series):
    rows = max(len(y) for y in series.values())
    return pd.DataFrame({"ds": pd.date_range("2020-01-01", periods=rows, freq=freq), **series})


def fitted(frame, horizon=3, model="closed-form-auto", **options):
    with collected_warnings([]):
        return Forecaster(horizon, model=model, **options).fit(frame)


def long(**series):
    stamps = {name: pd.date_range("2024-01-01", periods=len(y), freq="D") for name, y in series.items()}
    return pd.concat([pd.DataFrame({"unique_id": n, "ds": stamps[n], "y": y}) for n, y in series.items()])


HARD = {
    "zero for 550 of 600 days": np.r_[np.zeros(550), np.random.default_rng(0).poisson(3, 50)],
    "one sale on the last day": np.r_[np.zeros(599), 1.0],
    "a step in 31 months": np.r_[np.zeros(23), np.full(8, 7.0)],
    "a step in 40 days": np.r_[np.zeros(33), np.full(7, 5.0)],
    "a start in 40 days": np.r_[np.full(36, 0.1), 1.0, 2.0, 3.0, 4.0],
    "intermittent demand": np.r_[0, 0, 4.0, np.zeros(9), 1.0],
    "two values in eight months": np.r_[np.zeros(6), 4.0, 0.0],
    "a line of five rows": np.arange(1.0, 6.0),
}


@pytest.mark.parametrize("model", CLOSED)
@pytest.mark.parametrize("name", HARD)
def test_forecasts_of_series_that_hardly_move_stay_near_their_range(name, model):
    y = HARD[name]
    forecast = fitted(table(y=y), model=model, levels=()).predict()["y_hat"].to_numpy()
    room = 10 * np.ptp(y)
    assert np.isfinite(forecast).all()
    assert (forecast >= y.min() - room).all()
    assert (forecast <= y.max() + room).all()


@pytest.mark.parametrize("model", CLOSED)
@pytest.mark.parametrize("cell", [1e8, 1e15, -1e300, 1.7e308])
def test_one_huge_cell_is_named_and_gives_the_naive_forecast(cell, model):
    y = np.sin(2 * np.pi * np.arange(240) / 24) + 0.05 * np.random.default_rng(0).normal(size=240)
    y[100] = cell
    forecaster = fitted(table(y=y), 24, model)
    found = forecaster.predict()["y_hat"].to_numpy()
    np.testing.assert_array_equal(found, y[-24:])  # the last season, repeated
    assert any("at 2020-01-05 04:00:00, beside which all else is nothing" in text for text in forecaster.warnings)


def test_a_constant_series_is_repeated_and_does_not_change_the_others():
    y = np.sin(np.arange(300) / 4) + 0.1 * np.random.default_rng(0).normal(size=300)
    for constant in (0.0, 5.0, 0.1, -1e300):
        beside = fitted([panel_of(a=y, c=np.full(300, constant), b=y[::-1])])
        alone = fitted([panel_of(a=y, b=y[::-1])])
        found, expected = beside.predict(), alone.predict()
        assert (found.loc[found["unique_id"] == "c", "y_hat"] == constant).all()
        rest = found[found["unique_id"] != "c"].reset_index(drop=True)
        pd.testing.assert_frame_equal(rest, expected)
        assert any("c is constant" in text for text in beside.warnings)


def panel_of(season=24, **series):
    from manyheads.forecasting import Panel

    values = np.stack(list(series.values()), axis=1)
    stamps = pd.date_range("2024-01-01", periods=len(values), freq="h")
    return Panel(values, tuple(series), stamps, season)


def test_values_that_differ_by_rounding_count_as_constant():
    y = np.where(np.arange(100) % 2, 0.3, 0.1 + 0.2)
    assert constant_channels(y[:, None]).all()
    assert not constant_channels((1e6 + 1e-6 * (np.arange(100) % 2))[:, None]).any()
    forecast = fitted([panel_of(y=y)]).predict()
    np.testing.assert_allclose(forecast["y_hat"], 0.3, rtol=1e-15)


def test_a_short_series_is_named_and_gets_the_naive_forecast():
    y = np.random.default_rng(0).normal(size=200)
    forecaster = fitted(long(new=np.array([4.0, 6.0, 5.0, 7.0]), old=y), 5)
    forecast = forecaster.predict()
    assert (forecast.loc[forecast["unique_id"] == "new", "y_hat"] == 7.0).all()
    alone = fitted(long(old=y), 5).predict()
    np.testing.assert_array_equal(forecast.loc[forecast["unique_id"] == "old", "y_hat"], alone["y_hat"])
    assert any(
        "new: the naive forecast is given, for closed-form-auto cannot be fitted: 4 rows are too few" in text
        for text in forecaster.warnings
    )


def test_a_short_series_with_two_seasons_repeats_the_last_one():
    y = np.tile([1.0, 5.0, 2.0, 8.0], 3)
    np.testing.assert_array_equal(
        fitted([panel_of(season=4, y=y)], 10).predict()["y_hat"], np.tile([1, 5, 2, 8], 3)[:10]
    )


def test_standardising_is_invariant_to_a_scale_by_powers_of_two():
    values = np.random.default_rng(0).normal(size=(50, 1))
    for power in (-1000, -40, 40, 1000):
        scaled = Scaler.fit(values * 2.0**power).transform(values * 2.0**power)
        np.testing.assert_array_equal(scaled, Scaler.fit(values).transform(values))


def test_the_estimator_warns_about_a_constant_series():
    with pytest.warns(FitWarning, match="y is constant"):
        Forecaster(3, levels=()).fit([panel_of(y=np.ones(50))])


def test_fits_in_threads_equal_fits_one_by_one():
    def fit(seed):
        g = np.random.default_rng(seed)
        y = g.normal(size=120 + 7 * seed).cumsum() if seed % 2 else np.r_[np.zeros(110 + seed), g.poisson(2, 10)]
        kept = []
        with collected_warnings(kept):
            model = ("closed-form-auto", "rlinear-cf")[seed % 2]
            forecaster = Forecaster(6, model=model).fit(table(y=y))
        return forecaster.predict()["y_hat"].to_numpy(), forecaster.warnings, kept

    alone = [fit(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(fit, range(8)))
    for (a, said_a, kept_a), (b, said_b, kept_b) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (said_a, kept_a) == (said_b, kept_b)


def test_every_closed_form_family_is_tested_here():
    assert {name.split("-")[0] for name in CLOSED} == {
        name.split("-")[0] for name, spec in MODELS.items() if spec.kind == "closed-form"
    }
