"""Tables of every form: ids, time stamps and calendars, separators, encodings, in-memory objects."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import random
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from manyheads.core.errors import DataError
from manyheads.forecasting import Forecaster
from manyheads.forecasting.series.frames import Columns, Reading, read_panels
from manyheads.forecasting.series.frequencies import axis, recognise, same_frequency, season_of
from manyheads.forecasting.series.panels import FitWarning

HOURS = pd.date_range("2024-01-01", periods=60, freq="h")
VALUES = np.arange(60.0) ** 2 % 17


def long(ids, stamps=HOURS, values=VALUES):
    parts = [pd.DataFrame({"unique_id": name, "ds": stamps, "y": values + n}) for n, name in enumerate(ids)]
    return pd.concat(parts, ignore_index=True)


def names(panels):
    return sorted(name for panel in panels for name in panel.channels)


# ids


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, bz2.compress])
def test_ids_of_a_file_are_kept_as_written(tmp_path, compress):
    ids = ["NA", "007", "7", "1.0", "1", "9007199254740993", "null", "nan", "Zürich", "a,b", " x "]
    (tmp_path / "t.csv").write_bytes(compress(long(ids).to_csv(index=False).encode()))
    panels = read_panels(tmp_path / "t.csv")
    assert names(panels) == sorted(ids)
    for n, name in enumerate(ids):
        np.testing.assert_array_equal(panels[0].values[:, panels[0].channels.index(name)], VALUES + n)


@pytest.mark.parametrize("empty", ["", " ", None, np.nan, pd.NA, pd.NaT])
def test_a_missing_id_raises_with_its_row(empty, tmp_path):
    frame = long(["a", "b"]).astype({"unique_id": object})
    frame.loc[70, "unique_id"] = empty
    with pytest.raises(DataError, match="the table, row 70, column 'unique_id': found no id, expected the name"):
        read_panels(frame)
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"t\.csv, line 72, column 'unique_id': found no id"):
        read_panels(tmp_path / "t.csv")


@pytest.mark.parametrize(("one", "other"), [(1, "1"), (True, "True"), (2.5, "2.5")])
def test_ids_of_two_types_with_the_same_text_raise(one, other):
    frame = pd.concat([long([one]).astype({"unique_id": object}), long([other])], ignore_index=True)
    with pytest.raises(DataError, match=f"row 60, column 'unique_id': found {other} as str and as"):
        read_panels(frame)


def test_float_ids_that_are_not_exact_raise():
    with pytest.raises(DataError, match=r"above 2\*\*53, expected text"):
        read_panels(long([9007199254740992.0, 9007199254740994.0]))
    assert names(read_panels(long([9007199254740992, 9007199254740993]))) == ["9007199254740992", "9007199254740993"]
    assert names(read_panels(long([1.0, 2.0]))) == ["1.0", "2.0"]


# every series keeps its own stamps


def test_every_value_keeps_its_own_stamp():
    """Series with equal ends and lengths but different gaps; the oracle is a dictionary."""
    rng = np.random.default_rng(0)
    parts = []
    for name, gap in (("A", 20), ("B", 40), ("C", 20)):
        stamps = pd.date_range("2024-01-01", periods=100, freq="h").delete(gap)
        parts.append(pd.DataFrame({"unique_id": name, "ds": stamps, "y": rng.normal(size=99)}))
    frame = pd.concat(parts).sample(frac=1.0, random_state=0).sort_values("ds", kind="stable")
    truth = {(row.unique_id, row.ds): row.y for row in frame.itertuples()}
    seen = 0
    for panel in read_panels(frame, Reading(fill="interpolate")):
        for column, name in enumerate(panel.channels):
            for stamp, value in zip(panel.stamps, panel.values[:, column], strict=True):
                if (name, stamp) in truth:
                    seen += 1
                    assert truth[name, stamp] == value
    assert seen == len(truth)


def test_a_stamp_off_the_grid_raises_alone_and_among_other_series():
    frame = long(["A", "B"])
    frame.loc[80, "ds"] += pd.Timedelta("30min")
    for table in (frame, frame[frame["unique_id"] == "B"]):
        for fill in (None, "interpolate"):
            with pytest.raises(DataError, match="series 'B': found 2024-01-01 20:30:00, expected 2024-01-01 20:00:00"):
                read_panels(table, Reading(fill=fill))


def test_series_with_different_ends_get_separate_panels():
    frame = pd.concat([long(["a", "b"]), long(["short"], HOURS[:2], VALUES[:2])])
    shapes = sorted((panel.channels, panel.rows, panel.stamps.freqstr) for panel in read_panels(frame))
    assert shapes == [(("a", "b"), 60, "h"), (("short",), 2, "h")]


def test_constant_and_short_series_are_named_and_get_the_naive_forecast():
    frame = pd.concat([long(["a"]), long(["still"], values=np.full(60, 5.0)), long(["new"], HOURS[:2], VALUES[:2])])
    with pytest.warns(FitWarning) as said:
        forecast = Forecaster(3, levels=()).fit(frame).predict().set_index("unique_id")["y_hat"]
    assert list(forecast["still"]) == [5.0] * 3
    assert list(forecast["new"]) == [VALUES[1]] * 3
    assert np.isfinite(forecast["a"]).all()
    assert all(any(name in str(one.message) for one in said) for name in ("still", "new"))


# calendars


@pytest.mark.parametrize(
    ("freq", "season"),
    [
        ("min", 1440), ("15min", 96), ("h", 24), ("6h", 4), ("D", 7), ("B", 5), ("W-SUN", 52), ("W-WED", 52),
        ("2W-MON", 26),
        ("MS", 12), ("ME", 12), ("2MS", 6), ("BMS", 12), ("BME", 12), ("QS-JAN", 4), ("QS-FEB", 4), ("QE-DEC", 4),
        ("QE-NOV", 4), ("YS-JAN", 1), ("YE-DEC", 1), ("YS-JUL", 1), ("3D", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("gaps", [(), (30,), (5, 6, 40), (1, 58)])
def test_a_frequency_is_recognised_in_stamps_with_gaps(freq, season, gaps):
    stamps = pd.date_range("2001-02-03", periods=60, freq=freq)
    kept = stamps.delete(list(gaps))
    freq_found = recognise(kept)
    assert axis(freq_found, kept[0], kept[-1]).union(stamps).equals(stamps)
    assert season_of(freq_found) == season
    if gaps:
        frame = pd.DataFrame({"ds": kept, "y": np.arange(len(kept)) ** 2.0})
        [panel] = read_panels(frame, Reading(fill="interpolate"))
        assert panel.rows == 60
        first = stamps[gaps[0]]
        assert f"{len(gaps)} of 60 rows at frequency {freq_found} were missing" in panel.notes[0]
        assert str(first) in panel.notes[0]
        with pytest.raises(DataError, match=f"expected {first} at frequency {freq_found}: add the missing rows"):
            read_panels(frame)


def test_filled_holidays_of_business_days_add_no_weekend():
    days = pd.bdate_range("2022-01-03", periods=400).drop(["2022-04-15", "2022-12-26", "2023-01-02"])
    stock = pd.DataFrame({"Date": days, "Close": np.arange(len(days)) ** 1.5})
    [panel] = read_panels(stock, Reading(fill="interpolate"))
    assert (panel.rows, panel.season, panel.stamps.freqstr) == (400, 5, "B")
    assert panel.stamps.day_of_week.max() == 4
    friday = panel.stamps.get_loc("2022-04-15")
    assert panel.values[friday, 0] == (panel.values[friday - 1, 0] + panel.values[friday + 1, 0]) / 2


def test_frequencies_are_compared_by_their_duration():
    assert same_frequency("24h", "D")
    assert same_frequency("60min", "h")
    assert not same_frequency("h", "15min")
    assert not same_frequency("MS", "ME")


# time zones


def test_the_forecast_stays_in_the_zone_of_the_table_across_daylight_saving(tmp_path):
    zone = "Europe/Berlin"
    daily = pd.date_range("2024-03-01", periods=60, freq="D", tz=zone)  # one of these days has 23 hours
    forecaster = Forecaster(3, levels=()).fit(pd.DataFrame({"ds": daily, "y": VALUES}))
    expected = pd.date_range("2024-04-30", periods=3, freq="D", tz=zone)
    assert list(forecaster.predict()["ds"]) == list(expected)
    forecaster.save(tmp_path / "f.safetensors")
    pd.testing.assert_frame_equal(Forecaster.load(tmp_path / "f.safetensors").predict(), forecaster.predict())
    hourly = pd.date_range("2024-10-26", periods=60, freq="h", tz=zone)  # one hour occurs twice
    frame = pd.DataFrame({"ds": hourly, "y": VALUES})
    [panel] = read_panels(frame)
    assert panel.stamps.equals(hourly)
    [filled] = read_panels(frame.drop(index=[26, 27]), Reading(fill="interpolate"))
    assert filled.stamps.equals(hourly)
    assert Forecaster(2, levels=()).fit(frame).predict()["ds"].iloc[0] == hourly[-1] + pd.Timedelta("1h")


def test_one_utc_offset_is_kept_and_several_become_utc():
    fixed = pd.date_range("2024-01-01", periods=60, freq="h", tz="+02:00")
    [panel] = read_panels(pd.DataFrame({"ds": fixed.astype(str), "y": VALUES}))
    assert panel.stamps.equals(fixed)
    assert panel.stamps[0].utcoffset() == pd.Timedelta("2h")
    changing = pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin")
    [panel] = read_panels(pd.DataFrame({"ds": changing.astype(str), "y": VALUES}))
    assert panel.stamps.equals(changing.tz_convert("UTC"))
    assert "several offsets from UTC" in panel.notes[0]


# forms of tables


def forms():
    frame = pd.DataFrame({"ds": HOURS, "y": VALUES})
    yield "frame", frame
    yield "index", frame.set_index("ds")
    yield "index and column", frame.set_index("ds", drop=False)
    yield "index of any name", frame.set_index("ds").rename_axis("month")
    yield "index without a name", frame.set_index("ds").rename_axis(None)
    yield "index of text", frame.assign(ds=HOURS.astype(str)).set_index("ds").rename_axis(None)
    yield "series", pd.Series(VALUES, index=HOURS)
    yield "period index", pd.DataFrame({"y": VALUES}, index=HOURS.to_period("h"))
    yield "periods", frame.assign(ds=HOURS.to_period("h"))
    yield "decimals", frame.assign(y=[Decimal(v) for v in VALUES])
    yield "text", frame.assign(ds=HOURS.astype(str), y=[str(v) for v in VALUES])
    yield "nullable", frame.convert_dtypes()
    yield "arrow", frame.convert_dtypes(dtype_backend="pyarrow")
    yield "categories", frame.assign(y=pd.Categorical(VALUES))
    yield "two levels", frame.assign(unique_id="y").set_index(["unique_id", "ds"])
    yield "two levels, other names", frame.assign(symbol="y").rename(columns={"y": "v"}).set_index(["symbol", "ds"])
    try:
        import polars
    except ImportError:
        return
    yield "polars", polars.DataFrame({"ds": HOURS.to_list(), "y": VALUES})


@pytest.mark.parametrize(("form", "table"), [pytest.param(*pair, id=pair[0]) for pair in forms()])
def test_the_same_table_in_any_form_gives_the_same_panel(form, table):
    before = table.copy() if isinstance(table, pd.DataFrame) else None
    [panel] = read_panels(table)
    np.testing.assert_array_equal(panel.values[:, 0], VALUES)
    assert list(panel.stamps) == list(HOURS)
    assert panel.channels == ("y",)
    assert Forecaster(2, levels=()).fit(table).predict()["ds"].iloc[0] == pd.Timestamp("2024-01-03 12:00")
    if before is not None:
        pd.testing.assert_frame_equal(table, before)  # the input is not changed


@pytest.mark.parametrize(
    ("stamps", "first", "freq"),
    [
        (range(1950, 2010), "1950-01-01", "YS-JAN"),
        ([f"{y}Q{q}" for y in range(2001, 2016) for q in (1, 2, 3, 4)], "2001-01-01", "QS-JAN"),
        ([int(s.strftime("%Y%m%d")) for s in pd.date_range("2020-01-01", periods=60)], "2020-01-01", "D"),
        ([s.strftime("%Y%m") for s in pd.date_range("2020-01-01", periods=60, freq="MS")], "2020-01-01", "MS"),
        ([str(s.date()) if s.hour == 0 else str(s) for s in HOURS], "2024-01-01", "h"),
    ],
)
def test_years_quarters_and_days_as_whole_numbers_are_read_as_stamps(stamps, first, freq, tmp_path):
    frame = pd.DataFrame({"date": stamps, "y": VALUES})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source in (frame, tmp_path / "t.csv"):
        [panel] = read_panels(source)
        assert str(panel.stamps[0].date()) == first
        assert panel.stamps.freqstr == freq


REFUSED = {
    "numbers as time": (lambda f: f.assign(ds=range(60)), r"column 'ds': found the number 0, .*unit='s'"),
    "seconds": (lambda f: f.assign(ds=HOURS.astype("int64") // 10**9), "found the number 17"),
    "two columns of one name": (lambda f: pd.concat([f, f[["y"]]], axis=1), "column 'y' is there twice"),
    "1 and '1'": (lambda f: f.assign(**{"1": 1.0}).assign(z=2.0).rename(columns={"z": 1}), "column '1' is there twice"),
    "levels of columns": (lambda f: pd.concat({"a": f}, axis=1), "found column names of 2 levels"),
    "stamps among values": (lambda f: f.assign(updated=HOURS), "column 'updated': found 2024.*--drop updated"),
    "spans": (lambda f: f.assign(took=pd.Timedelta("1s")), "column 'took': found 0 days 00:00:01"),
    "complex": (lambda f: f.assign(z=1j), r"column 'z': found 1j \(complex128\), expected numbers"),
    "huge whole number": (lambda f: f.assign(y=[10**400] + [1] * 59), "column 'y'"),
    "an array": (lambda f: f["y"].to_numpy(), "found ndarray, expected a table"),
    "a list": (lambda f: [1.0, 2.0], "found list, expected a table"),
    "nothing": (lambda f: None, "found NoneType, expected a table"),
    "a series without stamps": (lambda f: f["y"], "found a Series without time stamps"),
    "two levels without time": (lambda f: f.assign(a="x", b="y").set_index(["a", "b"]), "2 levels, 0 of time"),
    "index and column differ": (
        lambda f: f.assign(ds=HOURS + pd.Timedelta("1h")).set_index(HOURS.rename("ds")),
        "the index and a column are both named 'ds' and differ",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_anything_but_a_table_of_series_raises_one_line(fault):
    change, message = REFUSED[fault]
    table = change(pd.DataFrame({"ds": HOURS, "y": VALUES}))
    with pytest.raises(DataError, match=message) as said:
        Forecaster(2).fit(table)
    assert "\n" not in str(said.value)


def test_an_empty_list_of_panels_raises():
    with pytest.raises(DataError, match="found no panels"):
        Forecaster(2).fit([])


# text files


def written(separator=",", decimal=".", encoding="utf-8", header="date{s}Größe"):
    lines = [header.format(s=separator)]
    lines += [f"{s}{separator}{v:.3f}".replace(".", decimal) for s, v in zip(HOURS, VALUES + 0.25, strict=True)]
    return "\n".join(lines).encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize(
    ("separator", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ","), ("|", ".")]
)
def test_separators_decimal_commas_and_encodings_are_recognised(tmp_path, separator, decimal, encoding):
    (tmp_path / "t.csv").write_bytes(written(separator, decimal, encoding))
    [panel] = read_panels(tmp_path / "t.csv")
    assert panel.channels == ("Größe",)
    np.testing.assert_array_equal(panel.values[:, 0], VALUES + 0.25)
    assert any("Latin-1" in note for note in panel.notes) == (encoding == "latin-1")


def test_points_group_thousands_beside_decimal_commas(tmp_path):
    rows = [f"{s};1.234,5;{n},25" for n, s in enumerate(HOURS)]
    (tmp_path / "t.csv").write_text("\n".join(["date;a;b", *rows[:-1], f"{HOURS[-1]};2.000;7,5"]))
    [panel] = read_panels(tmp_path / "t.csv")
    assert (panel.values[0, 0], panel.values[-1, 0], panel.values[3, 1]) == (1234.5, 2000.0, 3.25)


def test_an_ambiguous_decimal_comma_raises(tmp_path):
    (tmp_path / "t.csv").write_text("\n".join(["date;a", *[f"{s};1,234" for s in HOURS]]))
    with pytest.raises(DataError, match=r"column 'a': 1,234 may be a decimal comma or group the thousands"):
        read_panels(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("date,a,a\n2024-01-01,1,2\n", "column 'a' is there twice"),
        ("date,a\n2024-01-01,1,2\n2024-01-02,1,2\n", "found 3 cells in the second line and 2 names in the header"),
        (
            "date;a\n2024-01-01;1.5\n2024-01-02;1,5\n2024-01-03;2\n",
            "line 3, column 'a': found '1,5', expected a number",
        ),
    ],
)
def test_ambiguous_csv_text_raises(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_panels(tmp_path / "t.csv")


def test_damaged_compressed_files_raise_or_give_the_same_values(tmp_path):
    rng, whole = random.Random(0), pd.DataFrame({"date": HOURS, "y": VALUES}).to_csv(index=False).encode()
    for suffix, pack in ((".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)):
        path = tmp_path / f"t.csv{suffix}"
        packed = pack(whole)
        for _ in range(40):
            damaged = bytearray(packed)
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(damaged))
            with contextlib.suppress(DataError):
                [panel] = read_panels(path)
                np.testing.assert_array_equal(panel.values[:, 0], VALUES)


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    (tmp_path / "t.csv.xz").write_bytes(lzma.compress(b"date,a\n" + b"2024-01-01,1\n" * 8_000_000))
    with pytest.raises(DataError, match="holds more than 64 MB when it is unpacked"):
        read_panels(tmp_path / "t.csv.xz")


def test_a_damaged_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "t.parquet"
    pd.DataFrame({"ds": HOURS, "y": VALUES}).to_parquet(path)
    whole, rng = path.read_bytes(), random.Random(1)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"t\.parquet is no parquet file that can be read"):
        read_panels(path)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(DataError):
            read_panels(path)


# unused and additional columns


def test_unused_and_additionally_forecast_columns_are_named():
    frame = long(["a"]).assign(price=1.0, promo=0.0)
    [panel] = read_panels(frame)
    assert panel.notes == ("the table: further columns are not used: price, promo",)
    [panel] = read_panels(frame.drop(columns="unique_id"))
    assert panel.channels == ("y", "price", "promo")
    assert "price, promo are forecast as series of their own, beside 'y'" in panel.notes[0]
    assert read_panels(long(["a"]))[0].notes == ()


def test_a_negative_forecast_of_a_non_negative_series_warns():
    falling = pd.DataFrame({"ds": HOURS, "y": np.arange(60.0)[::-1]})
    forecaster = Forecaster(4, model="nlinear-cf", look_back=4, levels=()).fit(falling)
    with pytest.warns(FitWarning, match="y was never negative, and its forecast goes down to -"):
        assert forecaster.predict()["y_hat"].min() < 0


def test_a_series_is_dropped_by_name_and_a_missing_one_raises():
    assert names(read_panels(long(["a", "b"]), Reading(drop=("b",)))) == ["a"]
    with pytest.raises(DataError, match="no column or series 'c' to drop, found a, b"):
        read_panels(long(["a", "b"]), Reading(drop=("c",)))


def test_named_columns_are_used_whatever_the_other_columns():
    frame = long(["a", "b"]).rename(columns={"unique_id": "shop", "ds": "when", "y": "sold"}).assign(date="never")
    assert names(read_panels(frame, Reading(Columns("shop", "when", "sold")))) == ["a", "b"]
