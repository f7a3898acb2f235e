"""The benchmark sets: shapes, splits and faults as published."""

from __future__ import annotations

import lzma

import numpy as np
import pytest

from manyheads.core.errors import DataError, UnknownNameError
from manyheads.forecasting.datasets import benchmark_sets as data
from manyheads.forecasting.datasets.benchmark_sets import SENTINEL, benchmark_split, history, load_set, standardise
from manyheads.forecasting.datasets.catalogue import datasets
from manyheads.forecasting.training.published import horizons_of, published_mse

SHAPES = {
    "ETTh1": (17420, 7),
    "ETTh2": (17420, 7),
    "ETTm1": (69680, 7),
    "ETTm2": (69680, 7),
    "weather": (52696, 21),
    "exchange_rate": (7588, 8),
    "national_illness": (966, 7),
}
TEST_WINDOWS = {
    "ETTh1": (2785, 2689, 2545, 2161),
    "ETTh2": (2785, 2689, 2545, 2161),
    "ETTm1": (11425, 11329, 11185, 10801),
    "ETTm2": (11425, 11329, 11185, 10801),
    "weather": (10444, 10348, 10204, 9820),
    "exchange_rate": (1422, 1326, 1182, 798),
    "national_illness": (170, 158, 146, 134),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_window_counts_are_the_published_ones(name, needs):
    needs(name)
    panel = load_set(name)
    assert panel.values.shape == SHAPES[name]
    assert len(panel.channels) == SHAPES[name][1]
    assert not np.isnan(panel.values).any()
    assert tuple(panel.split.test_windows(h) for h in horizons_of(name)) == TEST_WINDOWS[name]


def test_splits_are_those_of_the_paper():
    assert benchmark_split("ETTh1", 17420) == type(benchmark_split("x", 10))(8640, 11520, 14400)
    assert benchmark_split("ETTm2", 69680) == type(benchmark_split("x", 10))(34560, 46080, 57600)
    illness = benchmark_split("national_illness", 966)
    assert (illness.train_end, illness.validation_end, illness.test_end) == (676, 773, 966)


def test_channels_are_standardised_by_the_train_rows_only():
    panel = load_set("ETTh1")
    values, scaler = standardise(panel)
    np.testing.assert_allclose(values[:8640].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(values[:8640].std(0), 1, atol=1e-12)
    np.testing.assert_allclose(scaler.inverse(values), panel.values, atol=1e-9)


def test_a_history_does_not_contain_the_test_part():
    panel = load_set("national_illness")
    assert history(panel).rows == panel.split.validation_end


def test_faults_of_weather_are_reported_and_kept_unless_clean(needs):
    needs("weather")
    panel = load_set("weather")
    notes = " | ".join(panel.notes)
    for part in (
        "'OT' holds the sentinel -9999 in 50 rows",
        "in 30 rows",
        "'wv (m/s)'",
        "1 duplicate",
        "unknown encoding",
    ):
        assert part in notes
    assert (panel.values == SENTINEL).sum() == 81
    clean = load_set("weather", clean=True)
    assert not (clean.values == SENTINEL).any()
    assert len(clean.stamps) == len(clean.stamps.unique()) == 366 * 144
    assert "cleaned" in clean.notes[-1]


def test_unknown_and_missing_sets_raise_with_the_fix(monkeypatch, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'exchange_rate'"):
        load_set("exchnge")
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"electricity.csv \(26,304 rows.*\$MANYHEADS_DATA/ltsf/electricity.csv"):
        load_set("electricity")


@pytest.mark.parametrize("name", ["electricity", "traffic"])
@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_electricity_and_traffic_are_read_from_the_path_in_the_message(name, suffix, monkeypatch, tmp_path):
    rows = [f"2016-07-01 {hour:02}:00:00,{hour}.5,{-hour}" for hour in range(20)]
    content = "\n".join(["date,0,OT", *rows]).encode()
    (tmp_path / "ltsf").mkdir()
    (tmp_path / f"ltsf/{name}.csv{suffix}").write_bytes(lzma.compress(content) if suffix else content)
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    monkeypatch.setitem(data.SHAPES, name, (20, 2))
    panel = load_set(name)
    assert (panel.channels, panel.season) == (("0", "OT"), 24)
    assert panel.values[3].tolist() == [3.5, -3.0]
    assert (panel.split.train_end, panel.split.validation_end, panel.split.test_end) == (14, 16, 20)


def test_a_file_with_the_wrong_shape_is_not_accepted_as_electricity(monkeypatch, tmp_path):
    (tmp_path / "ltsf").mkdir()
    (tmp_path / "ltsf" / "electricity.csv").write_text("date,a\n2016-07-01 02:00:00,1.0\n2016-07-01 03:00:00,2.0\n")
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"shape \(2, 1\), expected \(26304, 321\)"):
        load_set("electricity")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lzma.compress(b"date,OT\n" * 5000)[:-40], "truncated or damaged"),
        (lzma.compress(b"date,OT\n2016-07-01 00:00:00,1\n"), "is not the published ETTh1"),
        (b"", "is empty"),
    ],
)
def test_damaged_files_are_named(monkeypatch, tmp_path, content, message):
    (tmp_path / "ltsf").mkdir()
    path = tmp_path / "ltsf" / "ETTh1.csv.xz"
    path.write_bytes(content)
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        load_set("ETTh1")
    assert str(path) in str(caught.value)


def test_every_set_names_its_licence_and_source():
    for dataset in datasets:
        assert dataset.licence
        assert dataset.citation
        assert dataset.origins
        assert dataset.sha256 or dataset.origins[0].kind == "manual"


def test_published_figures_are_matched_to_set_horizon_and_model():
    assert published_mse("ETTh1", 96, "nlinear-cf") == (0.374, "2205.13504, Table 2")
    assert published_mse("ETTh1", 96, "dlinear-i-cf") == (0.375, "2205.13504, Table 2")
    assert published_mse("exchange_rate", 720, "repeat") == (0.823, "2205.13504, Table 2")
    assert published_mse("ETTm2", 720, "closed-form-auto")[0] == 0.323
    assert published_mse("ETTh1", 97, "repeat") is None
    assert published_mse("ETTh1", 96, "drift") is None
