"""Forecaster: original units, intervals and their coverage, saving, newer rows, cross-validation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

from manyheads.core.errors import ArgumentError, CheckpointError, DataError, UnknownNameError
from manyheads.forecasting import Forecaster, Panel, fit_ridge
from manyheads.forecasting.estimator.conformal import (
    calibrate,
    calibration_origins,
    pooled_quantiles,
    quantiles,
    windows_needed,
)
from manyheads.forecasting.evaluation.plots import forecast_fan
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series.panels import History, Scaler

pytestmark = pytest.mark.filterwarnings("ignore::manyheads.forecasting.series.panels.FitWarning")


def repeat_map(horizon):
    return LinearMap(np.ones((1, 1, horizon)), np.zeros((1, horizon)))


def noise(rows, seed=0, channels=1):
    """A random walk: its one-step residuals under Repeat are independent and thus exchangeable."""
    return np.random.default_rng(seed).normal(size=(rows, channels)).cumsum(0)


@pytest.mark.parametrize("model", ["closed-form-auto", "nlinear-cf", "rlinear-cf", "seasonal-naive", "nlinear"])
def test_forecasts_come_in_original_units_with_intervals_around_them(hourly, model):
    forecast = Forecaster(12, model=model, look_back=48).fit(hourly).predict()
    assert list(forecast) == ["unique_id", "ds", "y_hat", "lo-80", "hi-80", "lo-95", "hi-95"]
    assert list(forecast["ds"][:12]) == list(pd.date_range("2024-01-17 16:00", periods=12, freq="h"))
    first = forecast[forecast["unique_id"] == "a"]
    t = np.arange(400, 412)
    assert np.abs(first["y_hat"] - (10 + 3 * np.sin(2 * np.pi * t / 24) + 0.01 * t)).max() < 1.5
    for low, high in (("lo-95", "lo-80"), ("lo-80", "y_hat"), ("y_hat", "hi-80"), ("hi-80", "hi-95")):
        assert (forecast[low] <= forecast[high]).all()


def test_a_fit_equals_ridge_regression_on_the_standardised_rows(hourly):
    forecaster = Forecaster(6, model="nlinear-cf", look_back=24, levels=()).fit(hourly)
    values = hourly[["a", "b"]].to_numpy()
    scaler = Scaler.fit(values)
    expected = fit_ridge(History(scaler.transform(values), 320, 24, refit=True), 6, form="nlinear", look_back=24).map
    window = scaler.transform(values[-24:])[None]
    forecast = forecaster.predict()["y_hat"].to_numpy().reshape(2, 6).T
    np.testing.assert_allclose(forecast, scaler.inverse(expected.forecast(window)[0]), atol=1e-9)


@pytest.mark.parametrize(("form", "model"), [("nlinear", "nlinear-cf"), ("linear", "linear-cf")])
def test_closed_forms_are_refitted_on_all_rows_with_the_chosen_penalty(form, model):
    """The series changes in its last fifth, the validation part; the oracle is an explicit ridge on all rows."""
    t = np.arange(300)
    noise = np.random.default_rng(0).normal(size=300)
    y = np.where(t < 240, np.sin(t / 4), np.sin(t / 3)) + 0.1 * noise
    table = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=300, freq="h"), "y": y})
    found = Forecaster(4, model=model, look_back=12, levels=()).fit(table).predict()["y_hat"]
    z = (y - y.mean()) / y.std()
    [penalty] = fit_ridge(History(z[:, None], 240, 24), 4, form=form, look_back=12).penalties
    windows = np.lib.stride_tricks.sliding_window_view(z, 16)
    last = windows[:, 11:12] if form == "nlinear" else np.zeros((len(windows), 1))
    past, future = windows[:, :12] - last, windows[:, 12:] - last
    centred = past - past.mean(axis=0)
    weight = np.linalg.solve(centred.T @ centred + penalty * np.eye(12), centred.T @ (future - future.mean(axis=0)))
    level = z[-1] if form == "nlinear" else 0.0
    expected = level + future.mean(axis=0) + (z[-12:] - level - past.mean(axis=0)) @ weight
    np.testing.assert_allclose(found, expected * y.std() + y.mean(), rtol=1e-9)


def test_quantiles_are_order_statistics_of_n_plus_one():
    residuals = np.arange(1.0, 20.0)[:, None, None]  # 19 of them: 1 … 19
    found = quantiles(residuals, (0.5, 0.9, 0.95, 0.99))[:, 0, 0]
    np.testing.assert_array_equal(found, [10.0, 18.0, 19.0, np.inf])
    assert windows_needed((0.8, 0.95)) == 19


def test_intervals_have_their_nominal_coverage_for_exchangeable_residuals():
    covered = []
    for seed in range(40):
        values = noise(600, seed)
        intervals = calibrate(repeat_map(1), values[:400], 1, (0.8, 0.95))
        fresh = np.abs(np.diff(values[400:, 0]))
        covered.append([(fresh <= half).mean() for half in intervals.half_widths[:, 0, 0]])
    np.testing.assert_allclose(np.mean(covered, axis=0), [0.8, 0.95], atol=0.015)


def test_coverage_is_measured_on_windows_that_did_not_make_the_interval():
    values = noise(600)
    values[300:] *= 4.0  # four times the standard deviation in the second half: the first half cannot cover it
    intervals = calibrate(repeat_map(1), values, 1, (0.95,))
    assert intervals.coverage[0, 0] < 0.6
    assert intervals.windows == 599


def test_coverage_is_reported_for_every_step_and_level(hourly):
    forecaster = Forecaster(3).fit(hourly)
    measured = forecaster.coverage()
    assert list(measured["step"]) == [1, 2, 3, 1, 2, 3]
    assert measured["coverage"].between(0.4, 1.0).all()
    assert measured.groupby("level")["coverage"].mean().is_monotonic_increasing


def test_too_few_rows_give_no_intervals_and_a_warning(hourly):
    forecaster = Forecaster(12).fit(hourly.head(30))
    assert list(forecaster.predict()) == ["unique_id", "ds", "y_hat"]
    assert any("too few for intervals" in warning for warning in forecaster.warnings)


def test_intervals_of_short_series_have_their_nominal_coverage():
    """AR(1), 60 rows, horizon 12, fixed seeds; benchmarks/forecasting_intervals.py measures more kinds of series."""
    covered = []
    for seed in range(80):
        rng = np.random.default_rng([seed, 99])
        noise = rng.normal(size=172)
        values = np.zeros(172)
        for t in range(1, 172):
            values[t] = 0.5 * values[t - 1] + noise[t]
        values = values[100:]
        forecast = Forecaster(12, levels=(0.8,)).fit(panel_of(values[:60])).predict()
        covered.append(((values[60:] >= forecast["lo-80"]) & (values[60:] <= forecast["hi-80"])).mean())
    assert 0.74 <= np.mean(covered) <= 0.86


def panel_of(values, season=12):
    stamps = pd.date_range("2020-01-01", periods=len(values), freq="MS")
    return Panel(values[:, None], ("y",), stamps, season)


def test_pooled_intervals_equal_a_grid_search_over_the_growth():
    """The oracle takes the best sqrt(a + b h) on a grid, and the quantile over all windows and steps."""
    rng = np.random.default_rng(0)
    steps = np.arange(1.0, 7.0)
    residuals = np.abs(rng.normal(size=(9, 6, 1))) * np.sqrt(2.0 + steps)[:, None]
    target = (residuals[..., 0] ** 2).mean(axis=0)
    grid = [(a, b) for a in np.linspace(0, 8, 161) for b in np.linspace(0, 4, 161)]
    a, b = min(grid, key=lambda pair: ((pair[0] + pair[1] * steps - target) ** 2).sum())
    growth = np.sqrt(a + b * steps)
    relative = np.sort((residuals[..., 0] / growth).ravel())
    expected = relative[int(np.ceil(55 * 0.8)) - 1] * growth
    np.testing.assert_allclose(pooled_quantiles(residuals, (0.8,))[0, :, 0], expected, rtol=0.02)


def test_constant_errors_pool_to_one_width_and_zero_errors_to_zero():
    residuals = np.tile(np.arange(1.0, 20.0)[:, None, None], (1, 4, 2))
    residuals[..., 1] = 0.0
    np.testing.assert_allclose(pooled_quantiles(residuals, (0.5,))[0], [[10.0, 0.0]] * 4, rtol=1e-9)


def test_calibration_windows_lie_after_the_fitted_rows_and_inside_the_series():
    for rows in range(1, 200):
        for horizon in (1, 5, 12, 40):
            first, last = calibration_origins(rows, horizon)
            assert 1 <= first <= last
            assert first >= rows // 2 or rows < 2
            assert last == first or last + horizon - 1 == rows
    assert calibration_origins(1000, 12) == (800, 989)  # a fifth
    assert calibration_origins(60, 12) == (40, 49)  # a third
    assert calibration_origins(36, 12) == (18, 25)  # half a horizon before the last window


def test_interval_residuals_come_from_fits_that_end_before_their_targets(hourly):
    """The oracle makes the four fits by public calls; each forecasts the windows up to the next fit."""
    values = hourly["a"].to_numpy()[:60]
    first, last = calibration_origins(60, 12)
    step = int(np.ceil((last - first) / 4))
    residuals = []
    for origin in range(first, last):
        fitted_rows = first + (origin - first) // step * step
        early = Forecaster(12, model="seasonal-naive", levels=()).fit(panel_of(values[:fitted_rows]))
        look_back = early.panels[0].map.look_back
        forecast = early.panels[0].map.forecast(values[None, origin - look_back : origin, None])[0, :, 0]
        residuals.append(np.abs(forecast - values[origin : origin + 12]))
    expected = pooled_quantiles(np.array(residuals)[:, :, None], (0.8,))[0]
    found = Forecaster(12, model="seasonal-naive", levels=(0.8,)).fit(panel_of(values))
    half = found.panels[0].intervals.half_widths[0] * found.panels[0].scaler.scale
    np.testing.assert_allclose(half, expected, rtol=1e-9)


def test_warnings_of_the_model_reach_the_user(hourly):
    forecaster = Forecaster(4, model="nlinear-cf", look_back=60).fit(hourly.head(200))
    assert any("too few to choose a penalty" in warning for warning in forecaster.warnings)


def test_a_loaded_forecaster_gives_the_same_forecast_coverage_and_warnings(hourly, tmp_path):
    long = hourly.melt("ds", var_name="unique_id", value_name="y").drop(index=range(50))
    for model in ("closed-form-auto", "rlinear-cf"):
        forecaster = Forecaster(8, model=model).fit(long)
        forecaster.save(tmp_path / "f.safetensors")
        loaded = Forecaster.load(tmp_path / "f.safetensors")
        pd.testing.assert_frame_equal(loaded.predict(), forecaster.predict())
        pd.testing.assert_frame_equal(loaded.coverage(), forecaster.coverage())
        assert loaded.warnings == forecaster.warnings


def test_the_reading_options_are_saved(hourly, tmp_path):
    from manyheads.forecasting.series.frames import Columns, Reading

    renamed = hourly.rename(columns={"ds": "when"})
    reading = Reading(Columns(time="when"), season=12, missing=-1.0, fill="interpolate", drop=("b",))
    forecaster = Forecaster(4, reading=reading, seed=3).fit(renamed)
    forecaster.save(tmp_path / "f.safetensors")
    loaded = Forecaster.load(tmp_path / "f.safetensors")
    assert (loaded.reading, loaded.seed) == (reading, 3)
    pd.testing.assert_frame_equal(loaded.predict(data=renamed), forecaster.predict())


@pytest.mark.parametrize("content", [b"", b"no such thing", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_loading_any_other_file_raises(tmp_path, content):
    (tmp_path / "f.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged, or not a forecaster"):
        Forecaster.load(tmp_path / "f.safetensors")


def test_newer_rows_are_continued_without_another_fit(hourly):
    forecaster = Forecaster(6, model="nlinear-cf", look_back=24).fit(hourly.head(300))
    newer = forecaster.predict(data=hourly)
    assert newer["ds"].iloc[0] == pd.Timestamp("2024-01-17 16:00")
    shifted = forecaster.predict(data=hourly.head(300))
    pd.testing.assert_frame_equal(shifted, forecaster.predict())
    assert not np.allclose(newer["y_hat"], shifted["y_hat"])
    with pytest.raises(DataError, match="fitted on the series a, b; the new data hold a, c"):
        forecaster.predict(data=hourly.rename(columns={"b": "c"}))
    with pytest.raises(DataError, match="has 20 rows, the model reads 24"):
        forecaster.predict(data=hourly.head(20))


def test_a_shorter_horizon_is_the_beginning_of_the_longer_one(hourly):
    forecaster = Forecaster(6).fit(hourly)
    short, whole = forecaster.predict(2), forecaster.predict()
    pd.testing.assert_frame_equal(short[:2], whole[:2])
    pd.testing.assert_frame_equal(short[2:].reset_index(drop=True), whole[6:8].reset_index(drop=True))
    with pytest.raises(ArgumentError, match="found 7, expected 1 to the fitted 6"):
        forecaster.predict(7)


def test_future_rows_do_not_change_the_forecast_of_a_past_origin(hourly):
    forecaster = Forecaster(6, model="nlinear-cf", look_back=24)
    found = forecaster.cross_validation(hourly, windows=4, step=10)
    assert sorted(found["cutoff"].unique()) == list(pd.date_range("2024-01-16 03:00", periods=4, freq="10h"))
    assert (found["ds"] > found["cutoff"]).all()
    truth = hourly.melt("ds", var_name="unique_id", value_name="truth")
    merged = found.merge(truth, on=["unique_id", "ds"])
    np.testing.assert_array_equal(merged["y"], merged["truth"])
    changed = hourly.copy()
    changed.loc[394:, ["a", "b"]] += 100.0  # after the last cutoff
    again = forecaster.cross_validation(changed, windows=4, step=10)
    np.testing.assert_array_equal(again["y_hat"], found["y_hat"])
    expected = Forecaster(6, model="nlinear-cf", look_back=24).fit(hourly.head(364)).predict()
    first = found[found["cutoff"] == found["cutoff"].min()]
    np.testing.assert_array_equal(first["y_hat"], expected["y_hat"])


def test_bad_arguments_are_named(hourly):
    with pytest.raises(ArgumentError, match="horizon: found 0"):
        Forecaster(0)
    with pytest.raises(UnknownNameError, match="did you mean 'nlinear'"):
        Forecaster(1, model="nlinea")
    with pytest.raises(ArgumentError, match="call fit first"):
        Forecaster(1).predict()
    with pytest.raises(ArgumentError, match="windows and step: found 0 and 1"):
        Forecaster(1).cross_validation(hourly, windows=0)
    with pytest.raises(DataError, match="the longest series has 400 rows, too few for one window of 200 steps"):
        Forecaster(200).cross_validation(hourly)


def test_a_panel_and_a_table_give_the_same_forecast(hourly):
    panel = Panel(hourly[["a", "b"]].to_numpy(), ("a", "b"), pd.DatetimeIndex(hourly["ds"]), 24)
    pd.testing.assert_frame_equal(Forecaster(5).fit(panel).predict(), Forecaster(5).fit(hourly).predict())


def test_the_legend_shows_the_colours_of_the_intervals(hourly):
    forecast = Forecaster(12).fit(hourly).predict().head(12)
    bands = {level / 100: (forecast[f"lo-{level}"], forecast[f"hi-{level}"]) for level in (80, 95)}
    figure = forecast_fan(hourly["a"].to_numpy()[-30:], forecast["y_hat"].to_numpy(), intervals=bands)
    [axes], [legend] = figure.axes, figure.legends
    patches = [handle for handle in legend.legend_handles if isinstance(handle, Rectangle)]
    drawn = [tuple(band.get_facecolor()[0]) for band in axes.collections]
    assert [tuple(patch.get_facecolor()) for patch in patches] == drawn
    assert len(set(drawn)) == 2
    assert all(colour[3] == 1.0 for colour in drawn)  # opaque: no third colour in the overlap
