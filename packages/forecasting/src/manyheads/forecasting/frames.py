"""Any user's table as panels: long (``unique_id, ds, y``) or wide (a time column and one column a channel).

Bad input never yields a number: each fault raises :class:`DataError` with the file, the line (as an editor counts it,
the header being line 1) or the column, what was found, and how to mend it.
"""

from __future__ import annotations

import io
import lzma
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from manyheads.core.errors import DataError
from manyheads.forecasting.series import SENTINEL, Panel

_IN_MEMORY = "the table"
_NO_YEAR_FIRST = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}")
TIME_NAMES = ("ds", "date", "time", "timestamp", "datetime")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a long table; ``time`` also names the time column of a wide one."""

    id: str = "unique_id"
    """Name of the series column of a long table."""
    time: str | None = None
    """Name of the time column; by default the first of ds, date, time, timestamp, datetime that is there."""
    target: str = "y"
    """Name of the value column of a long table."""


@dataclass(frozen=True)
class Reading:
    """How a table is read."""

    columns: Columns = Columns()
    freq: str | None = None
    """pandas' alias of the frequency; inferred by default."""
    season: int | None = None
    """Rows in a season; from the frequency by default."""
    missing: float | None = None
    """A number that stands for a missing value, such as -9999."""
    fill: Literal["interpolate"] | None = None
    """What to do with missing values and missing stamps; they are refused by default."""
    drop: tuple[str, ...] = ()
    """Columns to leave out."""

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Reading:
        """What :func:`dataclasses.asdict` made, by way of JSON."""
        fields = dict(stored)
        fields["columns"], fields["drop"] = Columns(**stored["columns"]), tuple(stored["drop"])
        return cls(**fields)


def read_panels(source: str | Path | pd.DataFrame, reading: Reading | None = None) -> list[Panel]:
    """The table as panels: series with the same time stamps share one, others get their own.

    Raises :class:`DataError`.
    """
    reading = reading or Reading()
    table, place, first_line = _table(source)
    for name in reading.drop:
        if name not in table.columns:
            raise DataError(f"{place}: no column {name!r} to drop, found {_listed(table.columns)}")
    table = table.drop(columns=list(reading.drop))
    if len(table.columns) < 1 or table.empty:
        raise DataError(f"{place} has no rows below its header: give at least two seasons of data")
    time = _time_column(table, place, reading.columns.time)
    lines = np.arange(len(table)) + first_line
    long = reading.columns.id in table.columns and reading.columns.target in table.columns
    if not long and reading.columns.id in table.columns:
        raise DataError(
            f"{place}: found {reading.columns.id!r} but no {reading.columns.target!r}: a long table needs the columns "
            f"{reading.columns.id}, {time}, {reading.columns.target}"
        )
    stamps = _stamps(table[time], time, place, lines)
    if not long:
        values = table.drop(columns=time)
        if values.columns.empty:
            raise DataError(f"{place}: only the time column {time!r} was found: add at least one column of values")
        return [_panel(values, stamps, place, lines, reading)]
    groups: dict[tuple[pd.Timestamp, pd.Timestamp, int], list[tuple[str, np.ndarray]]] = {}
    for name, rows in table.groupby(reading.columns.id, sort=True, observed=True).indices.items():
        key = (stamps[rows[0]], stamps[rows[-1]], len(rows))
        groups.setdefault(key, []).append((str(name), rows))
    panels = []
    for members in groups.values():
        target = table[reading.columns.target]
        wide = pd.DataFrame({name: target.to_numpy()[rows] for name, rows in members})
        for name, rows in members[1:]:
            if not stamps[rows].equals(stamps[members[0][1]]):
                _ordered(stamps[rows], f"{place}, series {name!r}", lines[rows])
        rows = members[0][1]
        series_lines = {name: lines[rows] for name, rows in members}
        panels.append(_panel(wide, stamps[rows], place, lines[rows], reading, series_lines, reading.columns.target))
    return panels


def _table(source: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, str, int]:
    if isinstance(source, pd.DataFrame):
        frame = source
        if isinstance(frame.index, pd.DatetimeIndex):
            frame = frame.reset_index(names=frame.index.name or "ds")
        return frame.reset_index(drop=True), _IN_MEMORY, 0
    path = Path(source)
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the path of a CSV file")
    if not path.is_file():
        raise DataError(f"{path} is not there: give the path of a CSV file")
    raw = path.read_bytes()
    if path.suffix == ".parquet":
        try:
            return pd.read_parquet(path).reset_index(drop=True), str(path), 0
        except ImportError as error:
            raise DataError(f"{path}: pip install 'manyheads-forecasting[parquet]' reads parquet") from error
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is no parquet file: {error}") from error
    try:
        if raw[:6] == b"\xfd7zXZ\x00":
            raw = lzma.decompress(raw)
        elif raw[:2] == b"\x1f\x8b":
            import gzip

            raw = gzip.decompress(raw)
    except (lzma.LZMAError, EOFError, OSError) as error:
        raise DataError(f"{path} is truncated or damaged: put a good copy there") from error
    if not raw.strip():
        raise DataError(f"{path} is empty: give a CSV file with a header and rows")
    if b"\x00" in raw[:4096]:
        raise DataError(f"{path} is not a CSV file (it holds binary data): give a text table with commas")
    try:
        return pd.read_csv(io.StringIO(raw.decode("utf-8", errors="replace")), low_memory=False), str(path), 2
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(
            f"{path} is not a CSV file: {' '.join(str(error).split())}: give a table with commas"
        ) from error


def _time_column(table: pd.DataFrame, place: str, asked: str | None) -> str:
    if asked is not None:
        if asked not in table.columns:
            raise DataError(f"{place}: no time column {asked!r}, found {_listed(table.columns)}: name it with --time")
        return asked
    for name in table.columns:
        if str(name).lower() in TIME_NAMES:
            return name
    raise DataError(
        f"{place}: no time column ({', '.join(TIME_NAMES)}), found {_listed(table.columns)}: name it with --time"
    )


def _stamps(column: pd.Series, name: str, place: str, lines: np.ndarray) -> pd.DatetimeIndex:
    if pd.api.types.is_numeric_dtype(column):
        raise DataError(
            f"{place}, column {name!r}: found the number {column.iloc[0]}, expected stamps such as 2024-01-31 13:00"
        )
    try:
        parsed = pd.to_datetime(column, errors="coerce")
    except ValueError:  # several offsets from UTC
        parsed = pd.to_datetime(column, errors="coerce", utc=True)
    if _NO_YEAR_FIRST.match(str(column.iloc[0])):
        parsed = _day_or_month_first(column, parsed, name, place)
    if getattr(parsed.dtype, "tz", None) is not None:
        parsed = parsed.dt.tz_convert("UTC").dt.tz_localize(None)
    bad = np.flatnonzero(parsed.isna().to_numpy())
    if len(bad):
        found = column.iloc[bad[0]]
        what = "an empty cell" if pd.isna(found) else repr(found)
        raise DataError(
            f"{_at(place, lines[bad[0]])}, column {name!r}: found {what}, expected a time stamp like the first one "
            f"({column.iloc[0]}): correct it"
        )
    return pd.DatetimeIndex(parsed)


def _day_or_month_first(column: pd.Series, month_first: pd.Series, name: str, place: str) -> pd.Series:
    """Stamps such as 13.01.2024 or 01/13/2024: whichever order gives a date to every row; both must not."""
    day_first = pd.to_datetime(column, errors="coerce", dayfirst=True)
    if day_first.isna().any():
        return month_first
    if month_first.notna().all() and not day_first.equals(month_first):
        raise DataError(
            f"{place}, column {name!r}: {column.iloc[0]} … {column.iloc[-1]} are dates with the day first and with the "
            "month first: write them as 2024-01-31"
        )
    return day_first


def _panel(
    values: pd.DataFrame,
    stamps: pd.DatetimeIndex,
    place: str,
    lines: np.ndarray,
    reading: Reading,
    series_lines: dict[str, np.ndarray] | None = None,
    target: str | None = None,
) -> Panel:
    _ordered(stamps, place, lines)
    columns = {}
    for name in values.columns:
        own = lines if series_lines is None else series_lines[name]
        where = f"column {name!r}" if target is None else f"series {name!r}, column {target!r}"
        columns[str(name)] = _numbers(values[name], where, place, own, reading)
    frame = pd.DataFrame(columns, index=stamps)
    freq, frame = _regular(frame, place, lines, reading)
    frame = frame.interpolate(limit_direction="both") if reading.fill else frame
    for name in frame.columns:
        if frame[name].nunique() == 1:
            raise DataError(
                f"{place}, column {name!r} is constant ({frame[name].iloc[0]:g} in all {len(frame)} rows): there is "
                f"nothing to forecast, drop it (--drop {name})"
            )
    season = reading.season if reading.season is not None else season_of(freq)
    if season < 1:
        raise DataError(f"season: found {season}, expected 1 or more rows")
    name = Path(place).name.split(".")[0] if place != _IN_MEMORY else "series"
    index = pd.DatetimeIndex(frame.index, freq=freq)
    hits = (frame == SENTINEL).sum()
    notes = tuple(
        f"{place}, column {column!r} holds {SENTINEL:g} in {count} rows, often a sign for 'missing': if it is one, "
        f"--missing {SENTINEL:g} --fill interpolate"
        for column, count in hits[hits > 0].items()
    )
    return Panel(frame.to_numpy(np.float64), tuple(map(str, frame.columns)), index, season, name=name, notes=notes)


def _numbers(column: pd.Series, where: str, place: str, lines: np.ndarray, reading: Reading) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    text = np.flatnonzero(np.isnan(numbers) & column.notna().to_numpy())
    if len(text):
        found = column.iloc[text[0]]
        raise DataError(
            f"{_at(place, lines[text[0]])}, {where}: found {found!r}, expected a number: correct it or drop it"
        )
    if reading.missing is not None:
        numbers = np.where(numbers == reading.missing, np.nan, numbers)
    wrong = np.flatnonzero(np.isinf(numbers) | (np.isnan(numbers) & (reading.fill is None)))
    if len(wrong):
        what = "no value" if np.isnan(numbers[wrong[0]]) else "an infinite value"
        raise DataError(
            f"{_at(place, lines[wrong[0]])}, {where}: found {what} ({len(wrong)} in all), expected a number: fill "
            "it in, or interpolate (--fill interpolate)"
        )
    if np.isnan(numbers).all():
        raise DataError(f"{place}, {where} has no values at all: drop it")
    return numbers


def _ordered(stamps: pd.DatetimeIndex, place: str, lines: np.ndarray) -> None:
    step = np.diff(stamps.to_numpy())
    late = np.flatnonzero(step <= np.timedelta64(0))
    if len(late):
        at = late[0] + 1
        found = "the stamp of the row before again" if stamps[at] == stamps[at - 1] else "a stamp before the last one"
        mend = "keep one of the two rows" if stamps[at] == stamps[at - 1] else "sort the table by time"
        raise DataError(f"{_at(place, lines[at])}: found {found} ({stamps[at]}), expected rising stamps: {mend}")


def _regular(frame: pd.DataFrame, place: str, lines: np.ndarray, reading: Reading) -> tuple[str, pd.DataFrame]:
    stamps = cast(pd.DatetimeIndex, frame.index)
    if len(stamps) < 3:
        raise DataError(f"{place} has {len(stamps)} rows: at least 3 are needed to know the frequency")
    freq = reading.freq or (frequency(stamps) or _usual_step(stamps))
    try:
        expected = pd.date_range(stamps[0], periods=len(stamps), freq=freq)
        grid = pd.date_range(stamps[0], stamps[-1], freq=freq)
    except ValueError as error:
        raise DataError(f"freq: found {freq!r}, expected a pandas alias such as h, 15min, D, W, MS") from error
    wrong = np.flatnonzero(stamps != expected)
    if not len(wrong):
        return freq, frame
    at = wrong[0]
    if reading.fill and stamps.isin(grid).all():
        return freq, frame.reindex(grid)
    raise DataError(
        f"{_at(place, lines[at])}: found {stamps[at]}, expected {expected[at]} at frequency {freq}: add the "
        "missing rows (--fill interpolate), correct the stamp, or name the frequency (--freq)"
    )


def _usual_step(stamps: pd.DatetimeIndex) -> str:
    return to_offset(pd.Series(stamps).diff().mode().iloc[0]).freqstr


def season_of(freq: str) -> int:
    """Rows in a season: a day for less than a day, a week for days (5 for business days), a year for the rest.

    Raises nothing: 1, no season, where the frequency is unknown.
    """
    offset = to_offset(freq)
    base = offset.rule_code.split("-")[0]
    calendar = {"B": 5, "W": 52, "ME": 12, "MS": 12, "BME": 12, "BMS": 12, "QE": 4, "QS": 4, "BQE": 4, "BQS": 4, "D": 7}
    if base in calendar and base != "D":
        return max(1, round(calendar[base] / offset.n))
    try:
        seconds = pd.Timedelta(offset).total_seconds()
    except ValueError:
        return 1
    day = 86_400.0
    if seconds < day:
        return max(1, round(day / seconds))
    return {day: 7, 7 * day: 52}.get(seconds, 1)


def future_stamps(stamps: pd.DatetimeIndex, horizon: int) -> pd.DatetimeIndex:
    """The next ``horizon`` stamps."""
    return pd.date_range(stamps[-1], periods=horizon + 1, freq=frequency(stamps))[1:]


def frequency(stamps: pd.DatetimeIndex) -> str | None:
    """pandas' alias; None where the stamps have no regular one."""
    return stamps.freqstr or pd.DatetimeIndex(stamps, freq="infer").freqstr


def _at(place: str, number: int) -> str:
    """Rows of a table in memory count from 0 as its index does, lines of a file as an editor counts them."""
    return f"{place}, {'row' if place.startswith(_IN_MEMORY) else 'line'} {number}"


def _listed(columns: Sequence[object] | pd.Index) -> str:
    names = [str(c) for c in columns]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
