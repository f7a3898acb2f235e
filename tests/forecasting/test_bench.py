"""The benchmark and the commands, run as a user runs them."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.forecasting.evaluation import plots
from manyheads.forecasting.evaluation.bench import Row, as_table, choose_sets, run_bench
from manyheads.forecasting.evaluation.bench_page import best_cells, summary_rows, table_rows
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.lab.cli.main import main


def run(capsys, *words):
    code = main(["forecasting", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_error_from_moments_equals_the_error_of_the_forecasts():
    result = run_bench(["national_illness"], [24], ["nlinear-cf", "rlinear-cf"])
    for row in result.rows:
        by_step = result.mse_by_step[row.set, row.horizon, row.model, row.protocol]
        assert row.mse == pytest.approx(by_step.mean(), rel=1e-5)  # single precision against double


def test_two_protocols_are_shown_side_by_side():
    result = run_bench(["national_illness"], [24], ["repeat"], protocols=("honest", "paper"))
    header, [row] = table_rows(result.rows)
    found = dict(zip(header, row, strict=True))
    assert found["MSE honest"] == "6.2133"
    assert found["MSE paper"] == "6.5871"
    assert (found["windows"], found["dropped"], found["published"]) == (170, 10, "6.587")
    _, [other] = table_rows(
        run_bench(["national_illness"], [24], ["repeat"], protocols=("honest", "paper"), batch=64).rows
    )
    assert dict(zip(header, other, strict=True))["dropped"] == 170 - 128


def test_a_too_small_validation_part_is_reported_in_the_notes():
    result = run_bench(["national_illness"], [24], ["nlinear-cf", "repeat"])
    assert result.notes == {
        "national_illness": [
            "nlinear-cf: 74 validation windows are too few to choose a penalty for 104 coefficients a step: plain "
            "least squares is fitted"
        ]
    }


def test_models_of_one_family_share_one_warning_and_rows_keep_the_order_of_the_models():
    models = ["nlinear-cf", "repeat", "linear-i-cf"]
    result = run_bench(["national_illness"], [24, 36], models)
    assert [(row.model, row.horizon) for row in result.rows] == [(m, h) for m in models for h in (24, 36)]
    told = result.notes["national_illness"]
    assert [note.split(" validation")[0] for note in told] == [f"nlinear-cf, linear-i-cf: {n}" for n in (74, 62)]


def test_json_prints_the_rows_and_nothing_else(capsys):
    code, out, _ = run(capsys, "bench", "--sets", "national_illness", "--models", "repeat", "drift", "--json")
    document = json.loads(out)
    assert code == 0
    assert [(row["horizon"], row["model"]) for row in document["rows"]] == [
        (h, m) for m in ("repeat", "drift") for h in (24, 36, 48, 60)
    ]
    assert document["command"].startswith("manyheads forecasting bench --sets national_illness --models repeat drift")


def test_csv_and_page_are_written(capsys, tmp_path):
    options = ["--sets", "national_illness", "--horizons", 24, "--models", "repeat", "nlinear-cf", "--clean"]
    files = ["--csv", tmp_path / "r.csv", "--report", tmp_path / "r.html"]
    code, out, _ = run(capsys, "bench", *options, *files)
    assert code == 0
    assert f"report: {tmp_path / 'r.html'}" in out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.csv").read_text())))
    assert [(row["model"], row["windows"]) for row in rows] == [("repeat", "170"), ("nlinear-cf", "170")]
    assert rows[0]["command"].endswith("--protocol honest --clean")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<img ") == 3  # error by step, fan, weights
    assert "too few to choose" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_bad_request_writes_no_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["--sets", "ETTh9x"], "unknown data set"),
        (["--models", "nlinear_cf"], "did you mean 'nlinear-cf'"),
        (["--horizons", "0"], "horizon: found 0, expected 1 or more"),
        (["--batch", "0"], "batch: found 0"),
        (["--look-back", "0"], "look-back: found 0"),
        (["--sets", "electricity"], "put electricity.csv"),
        (["--sets", "national_illness", "--horizons", "700"], "hold no window of look-back 1 and horizon 700"),
        (["--protocol", "fair"], "protocol"),
    ):
        code, out, err = run(capsys, "bench", *words, "--report", "r.html", "--csv", "r.csv")
        assert (code, out) == (2, ""), words
        assert message in err
    assert list(tmp_path.iterdir()) == []


def test_missing_sets_are_left_out_with_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("MANYHEADS_DATA", str(tmp_path))
    found, left_out = choose_sets(())
    assert {"ETTh1", "national_illness"} <= set(found)
    assert "electricity" in left_out
    with pytest.raises(UnknownNameError):
        choose_sets(("nothing",))


def test_figures_in_the_csv_have_six_decimals():
    rows = run_bench(["national_illness"], [24], ["repeat"]).rows
    [line] = as_table(rows, "command")
    assert line["mse"] == f"{rows[0].mse:.6f}"


def test_the_lowest_error_of_each_set_and_horizon_is_marked():
    rows = [("a", 1, "x", "2.0"), ("a", 1, "y", "1.0"), ("a", 2, "x", "0.5"), ("b", 1, "x", "9.0")]
    assert best_cells(rows) == {(1, 3), (2, 3), (3, 3)}


def test_fit_predict_and_backtest_from_a_file(capsys, tmp_path, hourly, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hourly.to_csv("my.csv", index=False)
    code, out, _ = run(capsys, "fit", "my.csv", "--horizon", 24, "--out", "f.safetensors", "--report", "fit.html")
    assert code == 0
    assert "my: 400 rows, 2 series (a, b), season 24" in out
    assert "next: manyheads forecasting predict f.safetensors" in out
    assert (tmp_path / "fit.html").read_text().count("<img ") == 3
    code, out, _ = run(capsys, "predict", "f.safetensors", "--out", "f.csv", "--plot", "f.png", "--channel", "a")
    assert code == 0
    assert "2024-01-17 16:00:00" in out
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 49
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(capsys, "predict", "f.safetensors", "--horizon", 3, "--json")
    assert len(json.loads(out)["forecast"]) == 6
    code, out, _ = run(capsys, "backtest", "my.csv", "--horizon", 12, "--windows", 5, "--out", "b.csv", "--json")
    rows = {row["model"]: row for row in json.loads(out)["rows"]}
    assert rows["closed-form-auto"]["mse"] < rows["repeat"]["mse"]
    found = pd.read_csv("b.csv")
    past = hourly[hourly["ds"] <= found["cutoff"].min()]
    mase = []
    for name, part in found[found["model"] == "repeat"].groupby("unique_id"):
        seasonal = past[name].to_numpy()
        mase.append((part["y"] - part["y_hat"]).abs().mean() / np.abs(seasonal[24:] - seasonal[:-24]).mean())
    assert rows["repeat"]["mase"] == pytest.approx(np.mean(mase))
    assert 0.5 < rows["seasonal-naive"]["covered 80%"] <= 1
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 1 + 3 * 5 * 12 * 2


def test_output_names_are_checked_and_a_bad_one_writes_no_file(capsys, tmp_path, hourly, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hourly.to_csv("my.csv", index=False)
    assert run(capsys, "fit", "my.csv", "--horizon", 4)[0] == 0
    for words, message in (
        (["predict", "forecaster.safetensors", "--plot", "f.docx"], "ends in .png or .svg or .pdf"),
        (["predict", "forecaster.safetensors", "--out", "f.xls"], "ends in .csv or .parquet"),
        (["predict", "forecaster.safetensors", "--plot", "f.png", "--channel", "z"], "expected one of a, b"),
        (["predict", "my.csv"], "not a forecaster (it cannot be read)"),
        (["backtest", "my.csv", "--horizon", "4", "--out", "b.txt"], "ends in .csv or .parquet"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forecaster.safetensors", "my.csv"]


def test_the_look_back_command_returns_one_error_per_length_and_draws_them(capsys, tmp_path):
    options = ["--set", "national_illness", "--horizon", 24, "--models", "nlinear-cf", "--look-backs", 26, 52, 104]
    code, out, _ = run(capsys, "look-back", *options, "--plot", tmp_path / "c.svg", "--json")
    assert code == 0
    assert [row["look_back"] for row in json.loads(out)["rows"]] == [26, 52, 104]
    assert "<svg" in (tmp_path / "c.svg").read_text()


def test_models_are_listed_by_name_and_kind(capsys):
    code, out, _ = run(capsys, "models", "--json")
    kinds = {row["name"]: row["kind"] for row in json.loads(out)}
    assert code == 0
    assert (kinds["repeat"], kinds["dlinear-i-cf"], kinds["rlinear"]) == ("naive", "closed-form", "gradient")


def test_a_weight_map_shows_the_weights_of_the_channel():
    weight = np.zeros((2, 10, 4))
    weight[1, 9, :] = 1.0
    figure = plots.weight_map(LinearMap(weight, np.zeros((2, 4))), channel=1)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), weight[1].T)


def test_a_fan_chart_draws_the_wider_interval_first():
    forecast = np.arange(4.0)
    bands = {0.8: (forecast - 1, forecast + 1), 0.95: (forecast - 2, forecast + 2)}
    figure = plots.forecast_fan(np.zeros(5), forecast, intervals=bands, actual=forecast)
    heights = [np.ptp(band.get_paths()[0].vertices[:, 1]) for band in figure.axes[0].collections]
    assert heights == sorted(heights, reverse=True)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "past",
        "what happened",
        "forecast",
        "95% interval",
        "80% interval",
    }


def test_bad_arguments_of_run_bench_are_named():
    with pytest.raises(ArgumentError, match="look-back: found -1"):
        run_bench(["national_illness"], look_back=-1)
    with pytest.raises(DataError, match="fewer than look-back"):
        run_bench(["national_illness"], [24], ["nlinear-cf"], look_back=5000)


def test_the_summary_is_the_mean_over_horizons_and_the_change_against_the_best_naive_forecast():
    def row(name, horizon, model, mse):
        return Row(name, horizon, model, "honest", mse, 0.0, 1, 1, 0.0, 0.0, None, None)

    errors = {"repeat": (4.0, 8.0), "seasonal-naive": (3.0, 5.0), "nlinear-cf": (1.0, 4.0), "closed-form-auto": (1, 2)}
    rows = [row("a", h, m, e[i]) for m, e in errors.items() for i, h in enumerate((24, 48))]
    header, cells = summary_rows(rows)
    assert header == ("set", "protocol", "horizons", *errors, "against naive")
    assert cells == [("a", "honest", "24-48", "6.000", "4.000", "2.500", "1.500", "-62%")]  # 100 (1.5 / 4 - 1)
    _, [alone] = summary_rows([row("a", 24, "repeat", 1.0)])
    assert alone[-1] == ""


def test_summary_prints_one_line_for_each_set(capsys):
    words = ("--sets", "national_illness", "--horizons", "24", "36", "--models", "repeat", "nlinear-cf")
    code, out, _ = run(capsys, "bench", *words, "--summary")
    assert code == 0
    assert len([line for line in out.splitlines() if "national_illness " in line]) == 1
    assert "24-36" in out
