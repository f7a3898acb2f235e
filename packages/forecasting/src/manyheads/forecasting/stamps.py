"""Time stamps of a table: text, dates, periods, years, with or without a time zone."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from pandas.tseries.api import guess_datetime_format

from manyheads.core.errors import DataError
from manyheads.forecasting.frequencies import frequency
from manyheads.forecasting.tables import at

_NO_YEAR_FIRST = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}")
_YEAR_FIRST = re.compile(r"\d{4}-\d{2}")
_QUARTER = re.compile(r"\d{4}-?Q[1-4]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
# Whole numbers that are dates, by their length.
_WRITTEN = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d"}


def read_stamps(column: pd.Series, name: str, place: str, rows: np.ndarray) -> tuple[pd.DatetimeIndex, tuple[str, ...]]:
    """Read a column as stamps, in the time zone that it is written in, with notes for the user.

    Periods are named by their start. Whole numbers are years (2024), months (202401) or days (20240131). Stamps of
    several offsets from UTC, which name no zone, become UTC.

    Raises:
        DataError: a cell that is no time stamp, dates of which day and month cannot be told apart, other numbers.
    """
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    text = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    if _are_numbers(column, text):
        return _from_numbers(text, name, place, rows), ()
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        raise DataError(f"{place}, column {name!r}: found {column.iloc[0]}, expected stamps such as 2024-01-31 13:00")
    no_year_first = _NO_YEAR_FIRST.match(text.iloc[0]) and not pd.api.types.is_datetime64_any_dtype(column)
    parsed, notes = (_day_or_month_first(text, name, place), ()) if no_year_first else _parsed(column, text)
    bad = np.flatnonzero(parsed.isna().to_numpy())
    if len(bad):
        found = column.iloc[bad[0]]
        what = "an empty cell" if pd.isna(found) or not str(found).strip() else repr(found)
        raise DataError(
            f"{at(place, rows[bad[0]])}, column {name!r}: found {what}, expected a time stamp like the first one "
            f"({column.iloc[0]}): correct it"
        )
    return pd.DatetimeIndex(parsed), notes


def _are_numbers(column: pd.Series, text: pd.Series) -> bool:
    if pd.api.types.is_bool_dtype(column):
        return False
    return pd.api.types.is_numeric_dtype(column) or bool(text.str.fullmatch(_NUMBER).all())


def _from_numbers(text: pd.Series, name: str, place: str, rows: np.ndarray) -> pd.DatetimeIndex:
    whole = text.str.replace(r"\.0*$", "", regex=True)
    lengths = whole.str.len().unique()
    form = _WRITTEN.get(int(lengths[0])) if len(lengths) == 1 else None
    parsed = pd.to_datetime(whole, format=form, errors="coerce") if form else None
    if parsed is None or parsed.isna().any() or not parsed.dt.year.between(1600, 2250).all():
        raise DataError(
            f"{place}, column {name!r}: found the number {text.iloc[0]}, expected stamps such as 2024-01-31 13:00: "
            "convert it, as pd.to_datetime(seconds, unit='s') does"
        )
    return pd.DatetimeIndex(parsed)


def _parsed(column: pd.Series, text: pd.Series) -> tuple[pd.Series, tuple[str, ...]]:
    if pd.api.types.is_datetime64_any_dtype(column):
        return column, ()
    if text.str.fullmatch(_QUARTER).all():
        return pd.Series(pd.PeriodIndex(text, freq="Q").to_timestamp(), index=column.index), ()
    first = text.iloc[0]
    form = "ISO8601" if _YEAR_FIRST.match(first) else None
    if form is None and guess_datetime_format(first) is None:
        form = "mixed"
    try:
        parsed = pd.to_datetime(text, format=form, errors="coerce")
        if pd.api.types.is_datetime64_any_dtype(parsed):
            return parsed, ()
    except (ValueError, TypeError):  # several offsets from UTC
        pass
    parsed = pd.to_datetime(text, format=form, errors="coerce", utc=True)
    return parsed, ("the stamps have several offsets from UTC and name no time zone: they are read as UTC",)


def _day_or_month_first(text: pd.Series, name: str, place: str) -> pd.Series:
    """Stamps such as 13.01.2024 or 01/13/2024: the one order that dates every row, or that alone is regular."""
    first, second = (int(part) for part in re.split(r"[./-]", text.iloc[0])[:2])
    found = []
    for day_first, possible in ((True, second <= 12), (False, first <= 12)):
        if possible:
            form = guess_datetime_format(text.iloc[0], dayfirst=day_first) or "mixed"
            found.append(pd.to_datetime(text, format=form, errors="coerce", dayfirst=day_first))
    whole = [parsed for parsed in found if parsed.notna().all()]
    if len(whole) == 2 and not whole[0].equals(whole[1]):
        regular = [parsed for parsed in whole if frequency(pd.DatetimeIndex(parsed).unique().sort_values())]
        if len(regular) == 1:
            return regular[0]
        raise DataError(
            f"{place}, column {name!r}: {text.iloc[0]} … {text.iloc[-1]} are dates with the day first and with the "
            "month first: write them as 2024-01-31"
        )
    best = min(found, key=lambda parsed: parsed.isna().sum(), default=None)
    return pd.Series(pd.NaT, index=text.index) if best is None else best


def zone_of(stamps: pd.DatetimeIndex) -> str | None:
    """The name of the time zone; None without one."""
    return None if stamps.tz is None else str(stamps.tz)
