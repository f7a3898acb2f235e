"""Odd tables for forecasting, and what has to be read of each.

    table = odd_table(seed)    # OddTable(content, description, oracle, suffix, reading); the same for the same seed
    outcome = check(table)     # "read" or "refused: …"; AssertionError if a property does not hold

``content`` is a DataFrame, a Series, or the bytes of a file that ends in ``suffix`` (CSV, gzip, xz, bzip2 or parquet).
``oracle`` says what is right as far as the generator knows it: ``series``, by the text of each id a Series of values at
their stamps, and ``verdict``, whether the table has to be ``"read"``, has to be ``"refused"``, or may be ``"either"``;
what is read must equal ``series`` in every case. It is None for damage of which the generator knows no right answer.

The properties: whatever is refused is refused by one ManyheadsError of one line, whatever is read holds finite numbers
on a regular axis, and ids, stamps and values are those of the oracle.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from manyheads.core.errors import ManyheadsError
from manyheads.forecasting.series.frames import Reading, read_panels
from manyheads.forecasting.series.panels import collected_warnings

Rng = np.random.Generator
Verdict = Literal["read", "refused", "either"]
IDS = [
    "A",
    "B",
    "NA",
    "null",
    "None",
    "nan",
    "007",
    "7",
    "1",
    "1.0",
    "01",
    "9007199254740993",
    "9007199254740992",
    "a b",
]
IDS += [
    "Zürich",
    "日本",
    "x,y",
    "p;q",
    'say "hi"',
    "True",
    "2024-01-01",
    "1e5",
    "-",
    "inf",
    " lead",
    "trail ",
    "#1",
    "é",
]
FREQUENCIES = ["h", "15min", "D", "D", "B", "W-SUN", "W-WED", "MS", "ME", "QS", "QE", "YS", "2h", "6h", "YE", "min"]
ZONES = ["Europe/Berlin", "America/New_York", "UTC", "Asia/Kolkata", "America/Sao_Paulo", "Australia/Lord_Howe"]
GAPPY = ("h", "15min", "D", "B", "W-SUN", "W-WED", "MS", "ME", "QS", "YS", "2h")  # recognised with a row missing


@dataclass(frozen=True)
class Oracle:
    """What is right for a table."""

    series: dict[str, pd.Series]
    verdict: Verdict = "read"


class OddTable(NamedTuple):
    """A table, what is odd about it, and what is right."""

    content: Any
    description: str
    oracle: Oracle | None
    suffix: str = ""
    reading: Reading = Reading()


def odd_table(seed: int) -> OddTable:
    """One of DataFrames and files of every shape, plain or with one thing wrong. Raises nothing."""
    rng = np.random.default_rng(seed)
    truth, freq = series_of(rng)
    shape = str(rng.choice(["long", "long", "wide", "indexed", "several levels", "periods", "object", "file"]))
    table = SHAPES[shape](rng, truth, freq) if shape in SHAPES else None
    if table is None:
        table = file_of(rng, truth, freq)
    return table._replace(description=f"{freq}, {len(truth)} series, {table.description}")


def check(table: OddTable) -> str:
    """See the module."""
    said: list[str] = []
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, collected_warnings(said):
        warnings.simplefilter("error")
        source = table.content
        if isinstance(source, bytes):
            source = Path(folder) / f"table{table.suffix}"
            source.write_bytes(table.content)
        try:
            panels = read_panels(source, table.reading)
        except ManyheadsError as error:
            line = str(error)
            assert len(line.splitlines()) == 1, f"not one line: {line!r}"
            assert table.oracle is None or table.oracle.verdict != "read", f"{table.description}: refused: {line}"
            return f"refused: {line}"
    found = {name: pd.Series(p.values[:, c], p.stamps) for p in panels for c, name in enumerate(p.channels)}
    assert len(found) == sum(len(p.channels) for p in panels), f"{table.description}: a name is there twice"
    for name, series in found.items():
        assert np.isfinite(series.to_numpy()).all(), f"{table.description}: {name!r} holds no finite number"
        assert series.index.is_monotonic_increasing
        assert series.index.is_unique
    if table.oracle is None:
        return "read"
    assert table.oracle.verdict != "refused", f"{table.description}: read as {found}"
    expected = table.oracle.series
    assert set(found) == set(expected), f"{table.description}: ids {sorted(found)}, right {sorted(expected)}"
    for name, right in expected.items():
        stamps = pd.DatetimeIndex(right.index)
        assert found[name].index.equals(stamps), f"{table.description}: stamps of {name!r}: {found[name].index[:3]}"
        assert str(found[name].index.tz) == str(stamps.tz), f"{table.description}: zone {found[name].index.tz}"
        np.testing.assert_allclose(found[name].to_numpy(), right.to_numpy(), rtol=1e-12, err_msg=table.description)
    return "read"


def series_of(rng: Rng, zone: str | None = None) -> tuple[dict[str, pd.Series], str]:
    """One to four series of one frequency, that begin and end at stamps of their own."""
    freq = str(rng.choice(FREQUENCIES))
    names = [str(name) for name in rng.choice(IDS, rng.integers(1, 5), replace=False)]
    start = pd.Timestamp("2019-01-01") + pd.Timedelta(days=int(rng.integers(0, 700)))
    stamps = pd.date_range(start, periods=int(rng.integers(30, 90)), freq=freq, tz=zone)
    truth = {}
    for name in names:
        first, last = (0, len(stamps)) if rng.random() < 0.6 else (int(rng.integers(0, 9)), int(rng.integers(20, 30)))
        values = rng.normal(size=last - first) if rng.random() < 0.8 else rng.integers(0, 9, last - first).astype(float)
        truth[name] = pd.Series(values.round(int(rng.integers(1, 7))), stamps[first:last])
    return truth, freq


def as_long(truth: dict[str, pd.Series]) -> pd.DataFrame:
    parts = [pd.DataFrame({"unique_id": n, "ds": s.index, "y": s.to_numpy()}) for n, s in truth.items()]
    return pd.concat(parts, ignore_index=True).astype({"unique_id": object})


def equal_stamps(truth: dict[str, pd.Series]) -> dict[str, pd.Series]:
    """Every series with the stamps of the longest, as a wide table has."""
    longest = max(truth.values(), key=len)
    return {n: pd.Series(np.resize(s.to_numpy(), len(longest)), longest.index) for n, s in truth.items()}


def as_wide(truth: dict[str, pd.Series]) -> pd.DataFrame:
    return pd.DataFrame({"ds": next(iter(truth.values())).index} | {n: s.to_numpy() for n, s in truth.items()})


def long_frame(rng: Rng, truth: dict[str, pd.Series], freq: str) -> OddTable:
    """A long DataFrame, whole or with one fault."""
    table = as_long(truth)
    fault = str(rng.choice([*LONG_FAULTS, "none", "mixed rows", "gap"]))
    if fault == "none":
        return OddTable(table, "long", Oracle(truth))
    if fault == "mixed rows":  # the series are interleaved, each in its order
        table = table.sort_values("ds", kind="stable", ignore_index=True)
        return OddTable(table, "long, interleaved", Oracle(truth))
    row = int(rng.integers(0, len(table)))
    if fault == "gap":
        name = str(rng.choice(list(truth)))
        at = int(rng.integers(3, len(truth[name]) - 3))
        gone = truth[name].index[at]
        table = table[(table["unique_id"] != name) | (table["ds"] != gone)].reset_index(drop=True)
        if rng.random() < 0.5 or freq not in GAPPY:
            return OddTable(table, "long, a row missing", Oracle(truth, "refused" if freq in GAPPY else "either"))
        values = truth[name].to_numpy().copy()
        values[at] = (values[at - 1] + values[at + 1]) / 2
        right = truth | {name: pd.Series(values, truth[name].index)}
        return OddTable(table, "long, a row to fill", Oracle(right), reading=Reading(fill="interpolate"))
    return OddTable(LONG_FAULTS[fault](rng, table, row), f"long, {fault} at {row}", Oracle(truth, "refused"))


def with_cell(table: pd.DataFrame, row: int, column: str, cell: Any) -> pd.DataFrame:
    made = table.astype({column: object})
    made.loc[row, column] = cell
    return made


def off_grid(rng: Rng, table: pd.DataFrame, row: int) -> pd.DataFrame:
    """A stamp a third of the way to the next one, so that the order stays; not the first of a series."""
    own = table.index[table["unique_id"] == table["unique_id"].iloc[row]]
    row = int(rng.choice(own[4:-4]))
    made = table.copy()
    step = made["ds"].iloc[row + 1] - made["ds"].iloc[row]
    made.loc[row, "ds"] += (step / 3).floor("s")
    return made


def one_twice(rng: Rng, table: pd.DataFrame, row: int) -> pd.DataFrame:
    return pd.concat([table.iloc[: row + 1], table.iloc[row:]], ignore_index=True)


LONG_FAULTS: dict[str, Callable[[Rng, pd.DataFrame, int], pd.DataFrame]] = {
    "an id missing": lambda r, t, row: with_cell(t, row, "unique_id", [None, np.nan, "", pd.NA][r.integers(0, 4)]),
    "a value missing": lambda r, t, row: with_cell(t, row, "y", [None, np.nan, pd.NA][r.integers(0, 3)]),
    "a value of another kind": lambda r, t, row: with_cell(t, row, "y", ["x", np.inf, b"1", 1j, [1]][r.integers(0, 5)]),
    "a stamp missing": lambda r, t, row: with_cell(t, row, "ds", [None, pd.NaT, ""][r.integers(0, 3)]),
    "a stamp of another kind": lambda r, t, row: with_cell(t, row, "ds", ["soon", 3, "now", "10:30"][r.integers(0, 4)]),
    "a stamp off the grid": off_grid,
    "a row twice": one_twice,
    "two columns of one name": lambda r, t, row: pd.concat([t, t[["y"]]], axis=1),
}


def object_ids(rng: Rng, truth: dict[str, pd.Series], freq: str) -> OddTable:
    """Ids that are numbers, categories or several kinds."""
    table = as_long(equal_stamps(truth))
    count, size = len(truth), len(table) // len(truth)
    sets: list[tuple[str, list[Any], Verdict]] = [
        ("whole numbers", [7, 2**53 + 1, 2**53 + 2, -3], "read"),
        ("floats above 2**53", [2.0**53 + 2, 2.0**53 + 4, 1e300, 5.5], "refused"),
        ("a number and its text", [1, "1", 2, "2"], "refused" if count > 1 else "read"),
        ("whole and broken", [1, 1.0, 2, 2.0], "refused" if count > 1 else "read"),
        ("texts and numbers", ["a", 2, "b", 4], "read"),
        ("categories", ["NA", "007", "x", ""], "refused" if count > 3 else "read"),
    ]
    what, ids, verdict = sets[rng.integers(0, len(sets))]
    cells = np.empty(len(table), object)
    for number in range(count):
        for row in range(number * size, (number + 1) * size):
            cells[row] = ids[number]
    table["unique_id"] = pd.Series(cells).astype("category") if what == "categories" else pd.Series(cells)
    right = {str(i): s for i, s in zip(ids, equal_stamps(truth).values(), strict=False)}
    return OddTable(table, f"long, ids: {what}", Oracle(right, verdict))


def wide_frame(rng: Rng, truth: dict[str, pd.Series], freq: str) -> OddTable:
    truth = equal_stamps(truth)
    table, fault = (
        as_wide(truth),
        str(rng.choice(["none", "a text column", "a column twice", "a second time", "empty"])),
    )
    if fault == "a text column":
        table["city"] = "here"
    elif fault == "a column twice":
        table = pd.concat([table, table.iloc[:, [1]]], axis=1)
    elif fault == "a second time":
        table["updated"] = table["ds"] + pd.Timedelta("3min")
    elif fault == "empty":
        table["empty"] = np.nan
    verdict: Verdict = "read" if fault in ("none", "empty") else "refused"
    return OddTable(table, f"wide, {fault}", Oracle(truth, verdict))


def indexed_frame(rng: Rng, truth: dict[str, pd.Series], freq: str) -> OddTable:
    """Stamps in the index: of any name, as text, kept as a column too, in a time zone; or one Series."""
    truth = equal_stamps(truth)
    how = str(rng.choice(["index", "named", "text", "kept", "zone", "Series", "stamp names"]))
    wide = as_wide(truth)
    if how == "zone":
        zone = str(rng.choice(ZONES))
        fine = freq in ("h", "15min", "2h", "6h", "min")  # at midnight some zones have no stamp
        stamps = pd.DatetimeIndex(wide["ds"])
        stamps = stamps.tz_localize("UTC").tz_convert(zone) if fine else localised(stamps, zone)
        truth = {n: pd.Series(s.to_numpy(), stamps) for n, s in truth.items()}
        return OddTable(as_wide(truth).set_index("ds"), f"indexed in {zone}", Oracle(truth))
    if how == "Series":
        name, series = next(iter(truth.items()))
        return OddTable(series.rename(name), "a Series", Oracle({name: series}))
    table = wide.set_index("ds", drop=how != "kept")
    if how == "named":
        table.index.name = str(rng.choice(["month", "Datum", "when"]))
    elif how == "stamp names":
        table.index.name = None
    elif how == "text":
        table.index = table.index.strftime("%Y-%m-%d %H:%M:%S")
    return OddTable(table, f"indexed, {how}", Oracle(truth))


def localised(stamps: pd.DatetimeIndex, zone: str) -> pd.DatetimeIndex:
    made = stamps.tz_localize(zone, nonexistent="shift_forward", ambiguous=np.ones(len(stamps), bool))
    return pd.DatetimeIndex(made)


def level_frame(rng: Rng, truth: dict[str, pd.Series], freq: str) -> OddTable:
    return OddTable(as_long(truth).set_index(["unique_id", "ds"]), "several levels", Oracle(truth))


def period_frame(rng: Rng, truth: dict[str, pd.Series], freq: str) -> OddTable:
    kinds = {"MS": "M", "D": "D", "h": "h", "QS": "Q", "YS": "Y", "15min": "15min"}
    truth = equal_stamps(truth)
    if freq not in kinds:
        return OddTable(as_wide(truth), "wide", Oracle(truth))
    table = as_wide(truth).assign(ds=lambda t: t["ds"].dt.to_period(kinds[freq]))
    table = table.set_index("ds") if rng.random() < 0.5 else table
    return OddTable(table, "periods", Oracle(truth))


SHAPES: dict[str, Callable[[Rng, dict[str, pd.Series], str], OddTable]] = {
    "long": long_frame,
    "wide": wide_frame,
    "indexed": indexed_frame,
    "several levels": level_frame,
    "periods": period_frame,
    "object": object_ids,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".csv": lambda content: content,
    ".csv.gz": lambda content: gzip.compress(content, mtime=0),
    ".csv.xz": lzma.compress,
    ".csv.bz2": bz2.compress,
}
DIALECTS = [(",", "."), (",", "."), (";", ","), (";", "."), ("\t", "."), ("|", "."), ("\t", ",")]


def file_of(rng: Rng, truth: dict[str, pd.Series], freq: str) -> OddTable:
    """A file: CSV of any dialect, encoding and compression, or parquet; whole, cut off, or with a bit flipped."""
    long = bool(rng.random() < 0.7)
    truth = truth if long else {n.strip(): s for n, s in equal_stamps(truth).items()}
    table = as_long(truth) if long else as_wide(truth)
    if rng.random() < 0.15:
        stored = io.BytesIO()
        table.to_parquet(stored)
        return spoilt(rng, stored.getvalue(), "parquet", ".parquet", Oracle(truth))
    (separator, decimal), encoding = DIALECTS[rng.integers(0, len(DIALECTS))], str(rng.choice(ENCODINGS))
    form = str(rng.choice(["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%d.%m.%Y %H:%M", "%Y/%m/%d %H:%M", "offset"]))
    stamps = table["ds"].dt.tz_localize("Etc/GMT-2").astype(str) if form == "offset" else table["ds"].dt.strftime(form)
    if form == "offset":
        fixed = pd.Timestamp("2024-01-01 00:00+02:00").tz
        truth = {n: pd.Series(s.to_numpy(), pd.DatetimeIndex(s.index).tz_localize(fixed)) for n, s in truth.items()}
    numbered = bool(rng.random() < 0.15)
    text = table.assign(ds=stamps).to_csv(sep=separator, decimal=decimal, index=numbered)
    text = with_blank_lines(rng, text) if rng.random() < 0.2 else text
    told_apart = form != "%d.%m.%Y %H:%M" or (table["ds"].dt.day > 12).any()
    verdict: Verdict = "read" if told_apart else "either"
    try:
        content = text.encode(encoding)
    except UnicodeEncodeError:
        content, encoding = text.encode(), "utf-8"
    if encoding == "utf-8" and rng.random() < 0.1:
        content += b"\r\n\n"
    suffix = str(rng.choice(list(PACKERS)))
    what = f"{'long' if long else 'wide'} {suffix}, {separator!r}, decimal {decimal!r}, {encoding}, {form}"
    return spoilt(rng, PACKERS[suffix](content), what, suffix, Oracle(truth, verdict))


def with_blank_lines(rng: Rng, text: str) -> str:
    lines = text.splitlines(keepends=True)
    for _ in range(rng.integers(1, 4)):
        lines.insert(int(rng.integers(0, len(lines) + 1)), "\n")
    return "".join(lines)


ENCODINGS = ["utf-8", "utf-8", "utf-8-sig", "cp1252", "utf-16"]


def spoilt(rng: Rng, content: bytes, what: str, suffix: str, oracle: Oracle) -> OddTable:
    """As it is, or damaged: what a damaged checksummed file gives is the truth or a refusal; a plain one may lie."""
    how = rng.random()
    if how < 0.6:
        return OddTable(content, what, oracle, suffix)
    summed = suffix in (".csv.gz", ".csv.xz", ".csv.bz2")
    right = replace(oracle, verdict="either") if summed else None
    if how < 0.7:
        return OddTable(content[: rng.integers(0, len(content))], f"{what}, cut off", right, suffix)
    made = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        made[rng.integers(0, len(made))] ^= 1 << int(rng.integers(0, 8))
    return OddTable(bytes(made), f"{what}, bits flipped", right, suffix)
