"""Read a column of time stamps: dates, times, their texts, periods, and whole numbers such as 2024 or 20240131."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.forecasting.series.frequencies import is_regular

_EXPECTED = "expected stamps such as 2024-01-31 13:00"
_YEAR_LAST = r"^(\d{1,2})([./-])(\d{1,2})\2(\d{4}|\d{2})(?!\d)(.*)$"
_YEAR = r"(?<!\d)\d{4}(?!\d)|^\d{8}"
_OFFSET = r"(?<=\d)\s*(Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$"
_QUARTERS = (r"^(?P<year>\d{4})[- ]?Q(?P<quarter>[1-4])$", r"^Q(?P<quarter>[1-4])[-/ ](?P<year>\d{4})$")
_MONTH = r"^(\d{1,2})[./-](\d{4})$"
# dateutil would ignore any other word, for example the name of a time zone
_WORDS = re.compile(
    r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*|(mon|tue|wed|thu|fri|sat|sun)[a-z]*|am|pm|st|nd|rd|th|of|t|z"
    "|utc|gmt",
    re.IGNORECASE,
)


def is_stamps(column: Any) -> bool:
    """Return whether the type of a column or an index is stamps, dates or periods."""
    kind = getattr(column, "dtype", None)
    if isinstance(kind, pd.PeriodDtype) or pd.api.types.is_datetime64_any_dtype(kind):
        return True
    return (
        kind is not None
        and kind == np.dtype(object)
        and len(column) > 0
        and all(isinstance(v, datetime.date | pd.Period) for v in column)
    )


def reads_as_dates(column: Any) -> bool:
    """Return whether all cells of a column or an index of texts or whole numbers are dates."""
    try:
        read_stamps(pd.Series(column).reset_index(drop=True), "", lambda row: "")
    except DataError:
        return False
    return True


def zone_name(zone: datetime.tzinfo | None) -> str | None:
    """The name of a time zone that pandas accepts."""
    if zone is None or hasattr(zone, "key"):
        return getattr(zone, "key", None)
    fixed = zone.utcoffset(None)
    return str(zone) if fixed is None else str(datetime.timezone(fixed))


def read_stamps(
    column: pd.Series, name: str, at: Callable[[int], str], zone: str | None = None
) -> tuple[pd.DatetimeIndex, tuple[str, ...]]:
    """The stamps of a column, with or without a time zone, and notes.

    Texts with several offsets from UTC are converted to ``zone``. Without ``zone`` they are converted to UTC, or lose
    their offset if all are at the same time of day on their own clock. A period becomes its first stamp.

    Args:
        column: the cells.
        name: name of the column, for errors.
        at: place of a row, for errors.
        zone: time zone of the result, for stamps with an offset.

    Raises :class:`DataError` for an empty cell, a cell that is not a stamp, an ambiguous order of day and month, and an
    unknown or unusable zone.
    """
    if zone is not None:
        try:
            pd.DatetimeTZDtype(tz=zone)
        except Exception as error:
            raise DataError(f"zone: found {zone!r}, expected a name such as Europe/Berlin") from error
    missing = column.isna().to_numpy() | column.map(lambda cell: isinstance(cell, str) and not cell.strip()).to_numpy(
        bool
    )
    if missing.any():
        row = int(np.argmax(missing))
        raise DataError(
            f"{at(row)}, column {name!r}: found an empty cell, expected a time stamp like the first one "
            f"({column.iloc[0]}): correct it"
        )
    notes: tuple[str, ...] = ()
    # stamps of one time zone keep it
    column = column.infer_objects()
    if isinstance(column.dtype, pd.PeriodDtype):
        found = pd.DatetimeIndex(column.dt.to_timestamp(how="start"))
    elif pd.api.types.is_datetime64_any_dtype(column.dtype):
        found = pd.DatetimeIndex(column)
    elif pd.api.types.is_numeric_dtype(column.dtype):
        found = _of_numbers(column, name, at)
    else:
        found, notes = _of_texts(_as_texts(column, name, at), name, at, zone)
    if found.tz is not None:
        found = found.tz_convert(zone or zone_name(found.tz))
    elif zone is not None:
        raise DataError(
            f"zone: found {zone!r}, but the stamps of column {name!r} have no offset from UTC: leave it out"
        )
    return found, notes


def _as_texts(column: pd.Series, name: str, at: Callable[[int], str]) -> pd.Series:
    """Convert dates, stamps and periods among texts to texts."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    texts = []
    for row, cell in enumerate(column):
        if isinstance(cell, pd.Period):
            cell = cell.to_timestamp(how="start")
        if isinstance(cell, np.datetime64):
            cell = pd.Timestamp(cell)
        if isinstance(cell, datetime.date):
            cell = cell.isoformat()
        if not isinstance(cell, str):
            raise DataError(f"{at(row)}, column {name!r}: found {cell!r:.60}, {_EXPECTED}: correct it")
        texts.append(cell.strip())
    return pd.Series(texts, dtype=object)


def _of_numbers(column: pd.Series, name: str, at: Callable[[int], str]) -> pd.DatetimeIndex:
    """Years (2024), months (202401) and days (20240131) as whole numbers."""
    first = column.iloc[0]
    try:
        numbers = [int(number) for number in column]
        whole = not pd.api.types.is_bool_dtype(column) and all(a == b for a, b in zip(numbers, column, strict=True))
    except (ValueError, OverflowError, TypeError):
        numbers, whole = [], False
    for lowest, highest, parts in ((1600, 2200, "{}-01-01"), (160001, 220012, "{}-01"), (16000101, 22001231, "{}")):
        if whole and all(lowest <= number <= highest for number in numbers):
            texts = [str(number) for number in numbers]
            if len(texts[0]) > 4:
                texts = [f"{t[:4]}-{t[4:6]}-{t[6:] or '01'}" for t in texts]
            else:
                texts = [parts.format(t) for t in texts]
            found = pd.to_datetime(pd.Series(texts), format="%Y-%m-%d", errors="coerce")
            if found.notna().all():
                return pd.DatetimeIndex(found)
    raise DataError(
        f"{at(0)}, column {name!r}: found the number {first}, {_EXPECTED}: give a "
        "date in each row, by pd.to_datetime(column, unit='s') if these are seconds since 1970"
    )


def _of_texts(
    texts: pd.Series, name: str, at: Callable[[int], str], zone: str | None
) -> tuple[pd.DatetimeIndex, tuple[str, ...]]:
    codes, unique = pd.factorize(texts)
    if all(text.isdigit() for text in unique):
        return _of_numbers(texts.astype(float).astype("int64") if texts.str.len().max() < 16 else texts, name, at), ()
    parts = pd.Series(unique, dtype="str")
    offsets = parts.str.extract(_OFFSET, expand=False)
    offsets = offsets.where(parts.str.contains(":", regex=False))
    if offsets.isna().any() and offsets.notna().any():
        _refuse(texts, offsets.isna().to_numpy()[codes] != offsets.isna().to_numpy()[codes[0]], name, at)
    clocks = parts.str.replace(_OFFSET, "", regex=True) if offsets.notna().all() else parts
    clocks = _iso(clocks, name, f"{texts.iloc[0]} … {texts.iloc[-1]}", at)
    parsed = _parsed(clocks)
    _refuse(texts, parsed.isna().to_numpy()[codes], name, at)
    if offsets.isna().any():
        return pd.DatetimeIndex(parsed.to_numpy()[codes]), ()
    seconds = offsets.map(_seconds)
    _refuse(texts, (seconds.abs() >= 86_400).to_numpy()[codes], name, at)
    instants = pd.DatetimeIndex((parsed - pd.to_timedelta(seconds, unit="s")).to_numpy()[codes], tz="UTC")
    if seconds.nunique() == 1:
        fixed = datetime.timezone(datetime.timedelta(seconds=int(seconds.iloc[0])))
        return instants.tz_convert("UTC" if seconds.iloc[0] == 0 else fixed), ()
    if zone is not None:
        return instants, ()
    if (parsed - parsed.dt.normalize()).nunique() == 1:
        result = "stamps have no zone, as the local clock says them"
        instants = pd.DatetimeIndex(parsed.to_numpy()[codes])
    else:
        result = "stamps are given in UTC"
    return instants, (f"column {name!r} has several offsets from UTC: {result}; name the zone for others (--zone)",)


def _seconds(offset: str) -> int:
    """Seconds of an offset such as +01:00, +0100, +01 or Z."""
    digits = re.sub(r"\D", "", offset)
    if not digits:
        return 0
    return (-1 if offset.startswith("-") else 1) * (int(digits[:2]) * 3600 + int(digits[2:] or 0) * 60)


def _refuse(texts: pd.Series, wrong: np.ndarray, name: str, at: Callable[[int], str]) -> None:
    """Raise :class:`DataError` for the first wrong cell."""
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"{at(row)}, column {name!r}: found {texts.iloc[row]!r:.60}, expected a time stamp like the first one "
            f"({texts.iloc[0][:60]}): correct it"
        )


def _iso(texts: pd.Series, name: str, ends: str, at: Callable[[int], str]) -> pd.Series:
    """Rewrite dates such as 13.01.2024 and 01/13/2024 with the year first.

    The order of day and month is the one that makes every row a date. If several do, the one that gives a regular
    series is taken; else :class:`DataError` is raised.
    """
    for quarter in _QUARTERS:
        texts = texts.str.replace(quarter, lambda m: f"{m['year']}-{3 * int(m['quarter']) - 2:02}-01", regex=True)
    texts = texts.str.replace(_MONTH, lambda m: f"{m[2]}-{m[1].zfill(2)}-01", regex=True)
    if not texts.str.match(_YEAR_LAST).all():
        return texts
    parts = texts.str.extract(_YEAR_LAST)
    year = parts[3].where(parts[3].str.len() == 4, parts[3].map(lambda y: f"{2000 + int(y) - 100 * (int(y) > 68)}"))
    first, second = parts[0].str.zfill(2), parts[2].str.zfill(2)
    orders = {"day": year + "-" + second + "-" + first, "month": year + "-" + first + "-" + second}
    if (parts[3].str.len() == 2).any() and (parts[1] == "-").any():
        orders["year"] = "20" + first + "-" + second + "-" + parts[3].str.zfill(2)
    readings = {order: dates + parts[4] for order, dates in orders.items() if _parsed(dates).notna().all()}
    if len({tuple(texts) for texts in readings.values()}) > 1:
        regular = [order for order, dates in readings.items() if is_regular(_parsed(dates))]
        if len(regular) != 1:
            raise DataError(
                f"{at(0)}, column {name!r}: {ends} are dates with the {' first and with the '.join(readings)} first: "
                "write them as 2024-01-31"
            )
        return readings[regular[0]]
    return next(iter(readings.values()), texts)


def _parsed(texts: pd.Series) -> pd.Series:
    """Parse ISO 8601 and dates with names of months; NaT for anything else."""
    parsed = pd.to_datetime(texts, format="ISO8601", errors="coerce").astype("datetime64[us]")
    rest = np.flatnonzero(parsed.isna().to_numpy())
    rest = [n for n in rest if re.search(_YEAR, texts.iloc[n]) and _only_known_words(texts.iloc[n])]
    if rest:
        parsed.iloc[rest] = pd.to_datetime(texts.iloc[rest], format="mixed", errors="coerce").astype("datetime64[us]")
    return parsed.where(texts.str.contains(_YEAR))


def _only_known_words(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text)
    return bool(words) and all(_WORDS.fullmatch(word) for word in words)
