"""Bad input: every fault of a table gives one line with its place and the fix, and no file is written."""

from __future__ import annotations

import lzma

import numpy as np
import pandas as pd
import pytest

from manyheads.core.errors import DataError
from manyheads.forecasting.series.frames import Columns, Reading, read_panels
from manyheads.lab.cli.main import main


def text(rows=200, **cells):
    """An hourly CSV with the columns date, a, b; ``cells`` replaces the cell ``<column>_<row>``."""
    stamps = [str(s) for s in pd.date_range("2024-01-01", periods=rows, freq="h")]
    t = np.arange(rows)
    columns = {"date": stamps, "a": np.sin(t / 4).round(4).astype(str), "b": np.cos(t / 3).round(4).astype(str)}
    columns = {name: list(column) for name, column in columns.items()}
    for place, value in cells.items():
        name, row = place.rsplit("_", 1)
        columns[name][int(row)] = value
    lines = [",".join(row) for row in zip(*columns.values(), strict=True)]
    return "\n".join(["date,a,b", *lines]) + "\n"


SWAPPED = {"date_7": "2024-01-01 08:00:00", "date_8": "2024-01-01 07:00:00"}

BAD = {
    "missing column": (text().replace("date,", "hour,"), [], r"no time column \(.*found hour, a, b: name it with"),
    "missing named column": (text(), ["--time", "when"], r"no time column 'when', found date, a, b"),
    "long without target": (text().replace("date,a", "date,unique_id"), [], "found 'unique_id' but no 'y'"),
    "column to drop": (text(), ["--drop", "z"], "no column 'z' to drop, found date, a, b"),
    "non-numeric cell": (text(a_4="n/a?"), [], r"line 6, column 'a': found 'n/a\?', expected a number: correct it"),
    "NaN": (text(a_9="NaN"), [], r"line 11, column 'a': found no value \(1 in all\).*--fill interpolate"),
    "empty cell": (text(b_0=""), [], "line 2, column 'b': found no value"),
    "infinite cell": (text(b_1="inf"), [], "line 3, column 'b': found an infinite value"),
    "unparsable stamp": (text(date_5="yesterday"), [], "line 7, column 'date': found 'yesterday', expected a time"),
    "empty stamp": (text(date_5=""), [], "line 7, column 'date': found an empty cell"),
    "unordered stamps": (text(**SWAPPED), [], r"line 10: found a stamp before the last one.*sort the table"),
    "duplicate stamps": (text(date_8="2024-01-01 07:00:00"), [], r"line 10: found the stamp of the row before again"),
    "gap": (
        text().replace("2024-01-02 00:00:00,", "2024-01-02 00:30:00,"),
        [],
        r"line 26: found 2024-01-02 00:30:00, ",
    ),
    "wrong frequency": (text(), ["--freq", "D"], r"line 3: found 2024-01-01 01:00:00, expected 2024-01-02 00:00:00 at"),
    "no frequency": (text(), ["--freq", "fortnight"], "freq: found 'fortnight', expected a pandas alias"),
    "too few rows": (
        text(20),
        ["--horizon", "6", "--model", "nlinear-cf", "--look-back", "18"],
        r"has 20 rows, fewer than look-back \+ horizon = 18 \+ 6",
    ),
    "two rows": (text(2), [], "has 2 rows: at least 3"),
    "season": (text(), ["--season", "0"], "season: found 0, expected 1 or more"),
    "empty file": ("", [], "is empty: give a CSV"),
    "header only": ("date,a\n", [], "has no rows below its header"),
    "time only": ("date\n2024-01-01\n2024-01-02\n2024-01-03\n", [], "only the time column"),
    "numbers for stamps": ("date,a\n1,2\n2,3\n3,4\n", [], "found the number 1, expected stamps"),
    "ragged": ("date,a\n2024-01-01,1\n2024-01-02,1,2,3\n", [], "is not a CSV file"),
    "unknown model": (text(), ["--model", "nliner-cf"], "unknown model 'nliner-cf': did you mean 'nlinear-cf'"),
    "horizon": (text(), ["--horizon", "0"], "horizon: found 0, expected 1 or more"),
    "level": (text(), ["--levels", "95"], "levels: found 95, expected coverages between 0 and 1"),
    "look-back": (text(), ["--look-back", "-3"], "look_back: found -3, expected 1 or more"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_tables_print_one_line_and_exit_with_2(fault, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, options, message = BAD[fault]
    (tmp_path / "my.csv").write_text(content)
    horizon = [] if "--horizon" in options else ["--horizon", "4"]
    assert main(["forecasting", "fit", "my.csv", *horizon, *options]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.out == ""
    with pytest.raises(DataError, match=message):
        raise DataError(said.err)
    assert [path.name for path in tmp_path.iterdir()] == ["my.csv"]


def test_truncated_binary_and_missing_files_are_named_in_the_error(tmp_path, capsys):
    (tmp_path / "cut.csv.xz").write_bytes(lzma.compress(text().encode())[:-20])
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    for name, message in (
        ("cut.csv.xz", "truncated or damaged"),
        ("binary.csv", "binary data"),
        ("none.csv", "is not there"),
    ):
        assert main(["forecasting", "fit", str(tmp_path / name), "--horizon", "4"]) == 2
        said = capsys.readouterr().err
        assert name in said
        assert message in said


def test_an_error_in_a_long_table_names_the_row_and_the_series(tmp_path):
    frame = pd.DataFrame(
        {
            "unique_id": ["x"] * 50 + ["y"] * 50,
            "ds": [*pd.date_range("2024-01-01", periods=50)] * 2,
            "y": np.arange(100.0),
        }
    )
    frame.loc[60, "y"] = np.nan
    frame.to_csv(tmp_path / "long.csv", index=False)
    with pytest.raises(DataError, match=r"long.csv, line 62, series 'y', column 'y': found no value"):
        read_panels(tmp_path / "long.csv")
    with pytest.raises(DataError, match=r"the table, row 60, series 'y', column 'y'"):
        read_panels(frame)
    frame.loc[60, "y"] = 60.0
    frame.loc[70, "ds"] = frame.loc[69, "ds"]
    with pytest.raises(DataError, match=r"row 70, series 'y': found the stamp of the row before again"):
        read_panels(frame)


def test_gaps_and_sentinels_are_interpolated_with_fill(tmp_path):
    lines = text(b_3="-9999", a_10="").splitlines(keepends=True)
    del lines[21]  # remove a stamp
    (tmp_path / "my.csv").write_text("".join(lines))
    [panel] = read_panels(tmp_path / "my.csv", Reading(missing=-9999.0, fill="interpolate"))
    assert panel.rows == 200
    assert not np.isnan(panel.values).any()
    np.testing.assert_allclose(panel.values[3, 1], (np.cos(2 / 3) + np.cos(4 / 3)) / 2, atol=1e-4)
    np.testing.assert_allclose(panel.values[20, 0], (np.sin(19 / 4) + np.sin(21 / 4)) / 2, atol=1e-4)


def test_an_undeclared_sentinel_is_reported_and_kept(tmp_path):
    (tmp_path / "my.csv").write_text(text(b_3="-9999"))
    [panel] = read_panels(tmp_path / "my.csv")
    assert "column 'b' holds -9999 in 1 rows" in panel.notes[0]
    assert panel.values[3, 1] == -9999


def test_long_wide_indexed_and_parquet_tables_give_the_same_panel(tmp_path, hourly):
    [wide] = read_panels(hourly)
    [indexed] = read_panels(hourly.set_index("ds"))
    [long] = read_panels(hourly.melt("ds", var_name="unique_id", value_name="y"))
    [named] = read_panels(
        hourly.melt("ds", var_name="who", value_name="v").rename(columns={"ds": "at"}),
        Reading(Columns("who", "at", "v")),
    )
    hourly.to_parquet(tmp_path / "t.parquet")
    [stored] = read_panels(tmp_path / "t.parquet")
    for panel in (indexed, long, named, stored):
        np.testing.assert_array_equal(panel.values, wide.values)
        assert panel.channels == wide.channels == ("a", "b")
        assert panel.stamps.equals(wide.stamps)
        assert panel.season == 24


def test_series_of_different_length_get_separate_panels(hourly):
    long = hourly.melt("ds", var_name="unique_id", value_name="y")
    panels = read_panels(long.drop(index=range(100)))
    assert sorted((p.channels, p.rows) for p in panels) == [(("a",), 300), (("b",), 400)]


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        ("h", 24),
        ("15min", 96),
        ("30min", 48),
        ("D", 7),
        ("B", 5),
        ("W", 52),
        ("MS", 12),
        ("ME", 12),
        ("QS", 4),
        ("YS", 1),
    ],
)
def test_the_season_follows_the_frequency(freq, season):
    frame = pd.DataFrame({"ds": pd.date_range("2020-01-01", periods=40, freq=freq), "y": np.arange(40.0) ** 2})
    assert read_panels(frame)[0].season == season


@pytest.mark.parametrize("form", ["%d.%m.%Y", "%m/%d/%Y", "%d-%m-%Y %H:%M"])
def test_the_order_of_day_and_month_is_decided_by_all_rows(form):
    stamps = pd.date_range("2024-01-01", periods=60)
    [panel] = read_panels(pd.DataFrame({"ds": stamps.strftime(form), "y": np.arange(60.0) ** 2}))
    assert panel.stamps.equals(stamps)


def test_dates_with_an_ambiguous_order_of_day_and_month_raise():
    stamps = pd.date_range("2024-01-01", periods=12, freq="MS").strftime("%d.%m.%Y")
    with pytest.raises(DataError, match=r"column 'ds': 01.01.2024 … 01.12.2024 are dates with .*as 2024-01-31"):
        read_panels(pd.DataFrame({"ds": stamps, "y": np.arange(12.0) ** 2}))
