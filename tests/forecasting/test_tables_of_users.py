"""Tables as spreadsheets, sensors and exports write them: read as intended, or rejected."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest

from manyheads.core.errors import DataError
from manyheads.forecasting import Forecaster, Panel
from manyheads.forecasting.series.frames import Columns, Reading, read_panels
from manyheads.forecasting.series.panels import FitWarning
from manyheads.lab.cli.main import main

DAYS = pd.date_range("2024-01-01", periods=60)
VALUES = np.arange(60.0) ** 2 % 17
DATES = [str(day.date()) for day in DAYS]


def frame(stamps=DAYS, values=None, **more):
    return pd.DataFrame({"ds": stamps, "y": VALUES[: len(stamps)] if values is None else values, **more})


def written(tmp_path, lines, name="t.csv"):
    (tmp_path / name).write_text("\n".join(lines))
    return tmp_path / name


def only(source, **reading):
    [panel] = read_panels(source, Reading(**reading))
    return panel


# ambiguous numbers


def test_an_unused_column_does_not_change_the_decimal_mark(tmp_path):
    rows = [f"a;{day};0.{100 + n};3,4" for n, day in enumerate(DATES)]
    panel = only(written(tmp_path, ["unique_id;ds;y;position", *rows]))
    np.testing.assert_allclose(panel.values[:, 0], 0.1 + np.arange(60) / 1000, rtol=1e-15)


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("a;b", lambda n: f"{n},5;0.{100 + n}", lambda n: (n + 0.5, 0.1 + n / 1000)),
        ("a;b", lambda n: f"{n},5;1.{100 + n},25", lambda n: (n + 0.5, 1100.25 + n)),
        ("a;b", lambda n: f"{n},5;1.{100 + n}.000", lambda n: (n + 0.5, 1_100_000.0 + 1000 * n)),
        ("Temp, C;Load, MW", lambda n: f"{n},5;{n},25", lambda n: (n + 0.5, n + 0.25)),
        ("a;b", lambda n: f"{n};{'3,25' if n == 5 else n}", lambda n: (n, 3.25 if n == 5 else n)),
    ],
)
def test_the_value_columns_decide_the_decimal_mark(tmp_path, header, cells, expected):
    rows = [f"{day};{cells(n)}" for n, day in enumerate(DATES)]
    panel = only(written(tmp_path, [f"ds;{header}", *rows]))
    np.testing.assert_allclose(panel.values, [expected(n) for n in range(60)], rtol=1e-14)


@pytest.mark.parametrize(
    ("separator", "cells"),
    [
        (";", lambda n: f"{n},5;1.{100 + n}"),
        ("\t", lambda n: f"{n}\t1,{100 + n}"),
        ("\t", lambda n: f"{n}\t{f'1,{100 + n}' if n % 2 else n}"),
    ],
)
def test_three_digits_that_may_be_thousands_raise(tmp_path, separator, cells):
    rows = [f"{day}{separator}{cells(n)}" for n, day in enumerate(DATES)]
    with pytest.raises(DataError, match=r"column 'b': 1.10\d may be a decimal (comma|point) or group the thousands"):
        read_panels(written(tmp_path, [f"ds{separator}a{separator}b", *rows]))


def test_na_beside_decimal_commas_is_a_missing_value(tmp_path):
    rows = [f"{day};{'NA' if n == 5 else f'{n},5'}" for n, day in enumerate(DATES)]
    path = written(tmp_path, ["ds;a", *rows])
    with pytest.raises(DataError, match=r"line 7, column 'a': found no value \(1 in all\)"):
        read_panels(path)
    assert only(path, fill="interpolate").values[5, 0] == 5.5


# rows and columns of files


@pytest.mark.parametrize("exported", [frame(), frame(unique_id="y"), frame().set_index("ds").rename_axis(None)])
def test_the_index_column_written_by_pandas_is_not_a_series(tmp_path, exported):
    exported.to_csv(tmp_path / "t.csv")
    panel = only(tmp_path / "t.csv")
    assert panel.channels == ("y",)
    np.testing.assert_array_equal(panel.values[:, 0], VALUES)
    assert list(panel.stamps) == list(DAYS)


def test_a_column_without_a_name_raises_unless_it_is_empty(tmp_path):
    rows = [f"{day},{n}," for n, day in enumerate(DATES)]
    assert only(written(tmp_path, ["ds,a,", *rows, ",,", ",,"])).channels == ("a",)
    with pytest.raises(DataError, match="column 3 has no name in the header"):
        read_panels(written(tmp_path, ["ds,a,", *[f"{row}{n * n}" for n, row in enumerate(rows)]]))


@pytest.mark.parametrize("blank", ["", ","])
@pytest.mark.parametrize("before", [0, 2])
def test_line_numbers_in_errors_are_those_of_an_editor(tmp_path, blank, before):
    rows = [f"{day},{'x' if n == 9 else n}" for n, day in enumerate(DATES)]
    path = written(tmp_path, [*[""] * before, "ds,a", *rows[:5], blank, blank, *rows[5:]])
    with pytest.raises(DataError, match=f"line {before + 1 + 10 + 2}, column 'a': found 'x'"):
        read_panels(path)


def test_the_sep_line_of_excel_sets_the_separator(tmp_path):
    panel = only(written(tmp_path, ["sep=;", "ds;a", *[f"{day};{n},5" for n, day in enumerate(DATES)]]))
    np.testing.assert_array_equal(panel.values[:, 0], np.arange(60) + 0.5)


def test_a_path_that_cannot_be_opened_is_named():
    with pytest.raises(DataError, match=r"cannot be opened \(File name too long\)"):
        read_panels("a" * 5000)


# stamps


@pytest.mark.parametrize("word", ["today", "now", "10:30", "Jan-24", "1", "2024-01-06 00:00:00 CET", "2024-02-30"])
@pytest.mark.parametrize("row", [0, 5])
def test_words_and_times_without_a_date_are_not_stamps(word, row):
    dates = [*DATES[:row], word, *DATES[row + 1 :]]
    with pytest.raises(DataError, match=rf"row {row}, column 'ds': found '{word}', expected a time stamp"):
        read_panels(frame(dates))


def test_hours_without_a_date_are_not_stamps():
    with pytest.raises(DataError, match="row 0, column 'ds': found '00:00', expected a time stamp"):
        read_panels(frame([f"{hour:02}:00" for hour in range(24)]))


def test_two_digit_years_are_read_in_the_order_that_is_regular():
    for form in ("%y-%m-%d", "%d.%m.%y", "%m/%d/%y"):
        assert only(frame(DAYS.strftime(form))).stamps.equals(DAYS)


@pytest.mark.parametrize("form", ["{y}Q{q}", "{y}-Q{q}", "{y} Q{q}", "Q{q} {y}", "Q{q}/{y}"])
def test_all_notations_of_a_quarter_are_read(form):
    quarters = [form.format(y=y, q=q) for y in range(2000, 2015) for q in (1, 2, 3, 4)]
    assert only(frame(quarters)).stamps.equals(pd.date_range("2000-01-01", periods=60, freq="QS"))


@pytest.mark.parametrize("form", ["%m/%Y", "%m.%Y", "%Y-%m", "%Y%m", "%b %Y", "%B %Y"])
def test_all_notations_of_a_month_are_read(form):
    months = pd.date_range("2020-01-01", periods=60, freq="MS")
    assert only(frame(months.strftime(form))).stamps.equals(months)


def test_python_datetimes_keep_their_zone():
    hours = pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin")
    panel = only(frame(pd.Series(list(hours), dtype=object)))
    assert panel.stamps.equals(hours)
    assert panel.notes == ()


def test_utc_offsets_in_only_some_rows_raise():
    hours = [str(hour) for hour in pd.date_range("2024-01-01", periods=60, freq="h", tz="+01:00")]
    for row in (0, 7):
        mixed = [*hours[:row], hours[row][:-6], *hours[row + 1 :]]
        with pytest.raises(
            DataError, match=f"row {max(row, 1)}, column 'ds': found .*expected a time stamp like the first"
        ):
            read_panels(frame(mixed))


@pytest.mark.parametrize("offset", ["Z", " UTC", "+0000", "+00", "+00:00"])
def test_all_notations_of_a_utc_offset_are_read(offset):
    hours = pd.date_range("2024-01-01", periods=60, freq="h")
    panel = only(frame([f"{hour}{offset}" for hour in hours]))
    assert panel.stamps.equals(hours.tz_localize("UTC"))


def test_daily_stamps_with_changing_offset_follow_the_local_clock_or_the_named_zone():
    berlin = pd.date_range("2024-03-01", periods=60, tz="Europe/Berlin")
    panel = only(frame(berlin.astype(str)))
    assert panel.stamps.equals(berlin.tz_localize(None))
    assert "several offsets from UTC" in panel.notes[0]
    named = only(frame(berlin.astype(str)), zone="Europe/Berlin")
    assert named.stamps.equals(berlin)
    assert named.notes == ()
    with pytest.raises(DataError, match="zone: found 'Berlin', expected a name such as Europe/Berlin"):
        read_panels(frame(berlin.astype(str)), Reading(zone="Berlin"))
    with pytest.raises(DataError, match="zone: found 'UTC', but the stamps of column 'ds' have no offset"):
        read_panels(frame(), Reading(zone="UTC"))


@pytest.mark.parametrize(
    ("zone", "start", "without"),
    [("America/Sao_Paulo", "2018-09-01", "2018-11-04"), ("Africa/Cairo", "2023-04-01", "2023-04-28")],
)
def test_daily_stamps_cross_a_day_without_a_midnight(tmp_path, zone, start, without):
    """The day without a midnight begins at 01:00; one forecast crosses it, one forecaster fitted after it is saved."""
    days = pd.date_range(start, periods=120)
    local = pd.DatetimeIndex(
        [pd.Timestamp(f"{day.date()} {'01' if str(day.date()) == without else '00'}:00") for day in days]
    )
    stamps = local.tz_localize(zone)
    values = np.arange(120.0) % 7
    assert only(frame(stamps, values)).stamps.equals(stamps)
    filled = only(frame(stamps, values).drop(index=[70]), fill="interpolate")
    assert filled.stamps.equals(stamps)
    before = Forecaster(100, model="repeat", levels=()).fit(frame(stamps[:20], values[:20]))
    assert list(before.predict()["ds"]) == list(stamps[20:])
    after = Forecaster(3, model="seasonal-naive", levels=()).fit(frame(stamps, values))
    after.save(tmp_path / "f.safetensors")
    pd.testing.assert_frame_equal(Forecaster.load(tmp_path / "f.safetensors").predict(), after.predict())


@pytest.mark.parametrize("zone", [datetime.timezone(datetime.timedelta(hours=1), "CET"), datetime.UTC])
def test_a_saved_forecaster_keeps_a_fixed_utc_offset(tmp_path, zone):
    forecaster = Forecaster(3, model="repeat", levels=()).fit(frame(DAYS.tz_localize(zone)))
    forecaster.save(tmp_path / "f.safetensors")
    loaded = Forecaster.load(tmp_path / "f.safetensors").predict()
    assert list(loaded["ds"]) == list(pd.date_range("2024-03-01", periods=3, tz=zone))


# calendars


def test_a_short_series_takes_the_frequency_of_the_others():
    week = pd.bdate_range("2024-05-13", periods=5)  # Monday to Friday: alone it would be daily
    table = pd.concat(
        [frame(pd.bdate_range("2024-01-01", periods=60)).assign(unique_id="a"), frame(week).assign(unique_id="b")]
    )
    forecast = Forecaster(3, model="repeat", levels=()).fit(table).predict().set_index("unique_id")
    assert list(forecast.loc["b", "ds"]) == list(pd.to_datetime(["2024-05-20", "2024-05-21", "2024-05-22"]))
    months = frame(pd.to_datetime(["2024-01-01", "2024-03-01", "2024-04-01", "2024-06-01"])).assign(unique_id="b")
    table = pd.concat([frame(pd.date_range("2020-01-01", periods=50, freq="MS")).assign(unique_id="a"), months])
    sizes = {panel.channels: panel.rows for panel in read_panels(table, Reading(fill="interpolate"))}
    assert sizes == {("a",): 50, ("b",): 6}


@pytest.mark.parametrize("rows", [5, 4, 3, 2, 1])
def test_a_few_newer_rows_of_business_days_stay_business_days(rows):
    forecaster = Forecaster(1, model="repeat", levels=()).fit(frame(pd.bdate_range("2024-01-01", periods=60)))
    newer = pd.bdate_range(end="2024-06-07", periods=rows)
    assert forecaster.predict(data=frame(newer))["ds"].iloc[0] == pd.Timestamp("2024-06-10")


def test_filled_newer_rows_warn():
    forecaster = Forecaster(2, model="repeat", levels=(), reading=Reading(fill="interpolate")).fit(frame())
    with pytest.warns(
        FitWarning, match="2 of 60 rows at frequency D were missing and are interpolated, the first 2024-01-31"
    ):
        forecaster.predict(data=frame().drop(index=[30, 31]))


@pytest.mark.parametrize("last", ["2099-01-01", "2262-01-01", "9999-01-01"])
@pytest.mark.parametrize("fill", [None, "interpolate"])
def test_a_stamp_in_the_far_future_raises_without_building_the_axis(last, fill):
    minutes = pd.date_range("2024-01-01", periods=60, freq="min").append(pd.DatetimeIndex([pd.Timestamp(last)]))
    with pytest.raises(DataError, match="more than 10000000 rows at frequency min: correct the stamps"):
        read_panels(frame(minutes, np.arange(61.0)), Reading(fill=fill))


def test_more_missing_than_given_rows_need_a_named_frequency():
    night_off = pd.DatetimeIndex([day + pd.Timedelta(hours=hour) for day in DAYS[:20] for hour in range(7, 16)])
    table = frame(night_off, np.arange(180.0))
    with pytest.raises(DataError, match="285 of 465 rows at frequency h are missing: name the frequency"):
        read_panels(table, Reading(fill="interpolate"))
    assert only(table, fill="interpolate", freq="h").rows == 465


def test_a_forecast_beyond_the_calendar_of_pandas_raises():
    last = pd.date_range("2262-03-01", periods=30, unit="ns")
    with pytest.raises(DataError, match="leave the calendar"):
        Forecaster(30, model="repeat", levels=()).fit(frame(last)).predict()


def test_irregular_rows_raise_with_a_fix_that_works():
    middle = pd.date_range("2020-01-01", periods=60, freq="MS") + pd.Timedelta("14D")
    with pytest.raises(DataError, match="expected rows at one frequency: date each row by the first day of its month"):
        read_panels(frame(middle))
    assert only(frame(middle.to_period("M"))).stamps.freqstr == "MS"
    uneven = pd.DatetimeIndex(DAYS + pd.to_timedelta(VALUES.cumsum(), unit="h"))
    with pytest.raises(DataError, match=r"expected rows at one frequency: resample them, or name the frequency"):
        read_panels(frame(uneven))


# ids, values and objects


@pytest.mark.parametrize("odd", [b"a", (1, 2), ["x"], {"a": 1}, 3j])
def test_ids_that_are_neither_text_nor_number_raise(odd):
    ids = np.empty(60, dtype=object)
    for row in range(60):
        ids[row] = odd
    with pytest.raises(DataError, match=r"row 0, column 'unique_id': found .* expected an id as text or a number"):
        read_panels(frame(unique_id=ids))


def test_equal_python_and_numpy_numbers_are_one_id():
    ids = np.empty(60, dtype=object)
    for row in range(60):
        ids[row] = 1 if row % 2 else np.int64(1)
    assert only(frame(unique_id=ids)).channels == ("1",)


@pytest.mark.parametrize("name", [None, np.nan, pd.NaT])
def test_a_frame_column_without_a_name_raises(name):
    with pytest.raises(DataError, match="the table: column 1 has no name"):
        read_panels(frame().rename(columns={"y": name}))


def test_an_empty_series_of_a_long_table_is_left_out_and_named():
    table = pd.concat([frame(unique_id="a"), frame(unique_id="b", values=np.nan)])
    for fill in (None, "interpolate"):
        panel = only(table, fill=fill)
        assert panel.channels == ("a",)
        assert panel.notes == ("the table: series and columns without any value are left out: b",)
    with pytest.raises(DataError, match="has no values at all"):
        read_panels(frame(values=np.nan))


def test_ids_and_years_in_an_index_are_read():
    assert only(frame().assign(unique_id="NA").set_index("unique_id")).channels == ("NA",)
    years = pd.DataFrame({"y": VALUES}, index=pd.Index(range(1950, 2010), name="year"))
    assert only(years).stamps.equals(pd.date_range("1950", periods=60, freq="YS"))
    with pytest.raises(DataError, match="no time column"):
        read_panels(years.rename_axis(None))  # could be row numbers
    assert only(pd.Series(VALUES, index=DATES)).stamps.equals(DAYS)
    table = frame().assign(when=DAYS + pd.Timedelta("7D")).set_index("ds")
    assert only(table, columns=Columns(time="when")).stamps[0] == pd.Timestamp("2024-01-08")


def test_arrow_durations_are_not_numbers():
    pyarrow = pytest.importorskip("pyarrow")
    spans = pd.array([pd.Timedelta(1)] * 60, dtype=pd.ArrowDtype(pyarrow.duration("ns")))
    with pytest.raises(DataError, match="column 'y': found 0 days"):
        read_panels(frame(values=spans))


# options


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (("y",), "drop: found 'y', the column of the values"),
        (("a",), "every series is dropped"),
        (("z",), "no column or series 'z' to drop, found a"),
    ],
)
def test_dropping_every_or_a_missing_series_raises(drop, message):
    with pytest.raises(DataError, match=message):
        read_panels(frame(unique_id="a"), Reading(drop=drop))


@pytest.mark.parametrize("season", [0, -1, 1.5])
def test_a_season_below_1_or_not_whole_raises(season):
    with pytest.raises(DataError, match=f"season: found {season}, expected 1 or more rows"):
        read_panels(frame(), Reading(season=season))


@pytest.mark.parametrize("freq", ["-1D", "0D", "fortnight", "99999999999h", "nan"])
def test_a_frequency_that_does_not_go_forward_raises(freq):
    with pytest.raises(DataError, match=f"freq: found '{freq}', expected a pandas alias"):
        read_panels(frame(), Reading(freq=freq))


def test_panels_without_a_frequency_or_with_duplicate_names_raise():
    gaps = Panel(VALUES[:6, None], ("a",), DAYS[[0, 1, 4, 8, 31, 40]], 1)
    with pytest.raises(DataError, match="found stamps without a frequency"):
        Forecaster(2, model="repeat", levels=()).fit(gaps).predict()
    with pytest.raises(DataError, match="found the series 'y' twice"):
        Forecaster(2, model="repeat").fit([*read_panels(frame()), *read_panels(frame())])


def test_plotting_a_channel_missing_from_the_newer_table_raises(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame(z=VALUES[::-1]).to_csv("both.csv", index=False)
    frame().to_csv("one.csv", index=False)
    assert main(["forecasting", "fit", "both.csv", "--horizon", "3", "--model", "repeat"]) == 0
    command = ["forecasting", "predict", "forecaster.safetensors", "--data", "one.csv", "--plot", "f.png"]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--channel", "z"]) == 2
    assert "channel: found 'z', expected one of y" in capsys.readouterr().err
