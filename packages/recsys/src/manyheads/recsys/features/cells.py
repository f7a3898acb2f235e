"""Read cells, one by one or as an array of one type, as one family of values; describe cells that cannot be read."""

from __future__ import annotations

import datetime
import math
import numbers
import re
import reprlib
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

Family = Literal["text", "integer", "number", "boolean", "time", "list"]
Unit = Literal["s", "ms", "us", "ns"]
# texts that stand for a missing value
MARKS = ("?", "NA", "N/A", "NaN", "nan", "null", "NULL")
NANOSECONDS: dict[str, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
SECONDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
# from here on, several whole numbers share one float64
EXACT = 2**53
# exclusive limit of whole numbers
_INTEGER_LIMIT = 2**128
# the years 1990 to 2050 in seconds since 1970: plausible times of an event log
LOGGED = (631_152_000, 2_524_608_000)
_EARLIEST = pd.Timestamp("1678-01-01", tz="UTC").value
_LATEST = pd.Timestamp("2262-01-01", tz="UTC").value
_ISO = re.compile(
    r"\d{4}(-\d\d(-\d\d)?|\d{4})?([T ]\d\d(:?\d\d(:?\d\d([.,]\d{1,9})?)?)?\s?(Z|UTC|[+-]\d\d(:?\d\d)?)?)?", re.ASCII
)
EXPECTED: dict[Family, str] = {
    "text": "text",
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "time": "a time such as 2024-01-31T18:00",
    "list": "a list of values",
}


class Read(NamedTuple):
    """Values of one family in one plain form.

    Text: objects (str). Whole numbers and booleans: int64, or objects (int) if one does not fit. Numbers: float64.
    Times: nanoseconds since 1970, int64. Lists: objects (lists of str).
    """

    values: np.ndarray
    missing: np.ndarray  # bool
    bad: np.ndarray  # bool: cells that cannot be read as this family


def read_cells(
    cells: np.ndarray, family: Family, marks: tuple[str, ...] = (), unit: Unit = "s", missing: np.ndarray | None = None
) -> Read:
    """Read an array of one type, or of objects, as ``family``; see :func:`manyheads.recsys.features.columns.read`."""
    if missing is None:
        missing = np.asarray(pd.isna(cells), bool)
    if cells.dtype.kind == "m":
        cells = pd.Series(cells).dt.total_seconds().to_numpy()
    kind = cells.dtype.kind
    if kind == "O":
        kinds = set(map(type, cells[~missing])) if missing.any() else set(map(type, cells))
        if not kinds:
            cells, kind = np.zeros(len(cells)), "f"
        elif family == "text" and kinds == {str}:
            values, absent = np.where(missing, "", cells), {"", *marks}
            is_missing = missing | np.fromiter((value in absent for value in values), bool, len(values))
            return Read(values, is_missing, np.zeros(len(cells), bool))
        else:
            return _one_by_one(cells, family, marks, unit, missing)
    convert = _TYPED.get((family, kind))
    none = np.zeros(len(cells), bool)
    if convert is None:
        empty = np.full(len(cells), "", object) if family == "text" else np.zeros(len(cells), np.int64)
        if family == "list":
            empty = objects([[] for _ in cells])
        return Read(empty, missing, ~missing)
    with np.errstate(invalid="ignore", over="ignore"):
        values, bad = convert(np.where(missing, np.zeros(1, cells.dtype), cells), unit)
    return Read(values, missing, none | (bad & ~missing))


def complaint(place: str, cell: Any, family: Family, unit: Unit = "s", fix: str = "") -> str:
    """Return one line that says what is wrong with a cell."""
    expected = EXPECTED[family]
    number = isinstance(cell, numbers.Real) and not isinstance(cell, bool | np.bool_)
    if family == "time" and number:
        other = next((u for u in SCALES if u != unit and _within_log(float(cell), u)), None) if _floats(cell) else None
        found = f"{shown(cell)}, which is in {SECONDS[other]}" if other else shown(cell)
        return f"{place}: found {found}, expected {SECONDS[unit]} since 1970, from 1678 to 2261: convert it"
    kind = {"text": "text ", "list": "a list ", "boolean": "a boolean "}.get(str(_kind(cell)), "")
    kind = kind or ("" if number or isinstance(cell, datetime.date) else f"{type(cell).__name__} ")
    found = f"{kind}({shown(cell)})" if kind else shown(cell)
    return f"{place}: found {found}, expected {expected}" + (f": {fix}" if fix else "")


def shown(value: object) -> str:
    """Return a value as text of at most 40 characters."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a whole number of {value.bit_length()} bits"
    text = str(value) if isinstance(value, float | int | np.number) else _SHORT.repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 40 else f"{text[:39]}…"


def objects(cells: Sequence[Any]) -> np.ndarray:
    """Return an array of objects, also for lists of equal length."""
    found = np.empty(len(cells), object)
    for number, cell in enumerate(cells):
        found[number] = cell
    return found


def _one_by_one(cells: np.ndarray, family: Family, marks: tuple[str, ...], unit: Unit, missing: np.ndarray) -> Read:
    spans = [n for n, cell in enumerate(cells) if isinstance(cell, datetime.timedelta | np.timedelta64)]
    # durations are read as seconds
    if spans:
        cells = cells.copy()
        for number in spans:
            cells[number] = pd.Timedelta(cells[number]).total_seconds()
    if family == "time":
        return _times(cells, marks, unit, missing)
    convert = _CELL[family]
    values: list[Any] = []
    is_missing, bad = missing.copy(), np.zeros(len(cells), bool)
    blank: Any = {"text": "", "number": 0.0, "list": []}.get(family, 0)
    for number, cell in enumerate(cells):
        value = None
        if not is_missing[number]:
            try:
                value = convert(cell)
            except (TypeError, ValueError, OverflowError, ArithmeticError):
                bad[number] = True
        if family == "text" and (value == "" or value in marks):
            value, is_missing[number] = None, True
        values.append(blank if value is None else value)
    if family in ("text", "list"):
        return Read(objects(values), is_missing, bad)
    if family == "number":
        return Read(np.array(values, np.float64), is_missing, bad)
    return Read(_integers(values), is_missing, bad)


def _text(cell: Any) -> str:
    if isinstance(cell, str | uuid.UUID | pd.Interval):
        return str(cell)
    raise TypeError


def _integer(cell: Any) -> int:
    if not isinstance(cell, _NUMBERS) or not abs(cell) < _INTEGER_LIMIT or cell != (whole := int(cell)):
        raise TypeError
    return whole


def _number(cell: Any) -> float:
    if not isinstance(cell, _NUMBERS) or not math.isfinite(found := float(cell)):
        raise TypeError
    return found


def _boolean(cell: Any) -> int:
    if not isinstance(cell, _NUMBERS) or cell not in (0, 1):
        raise TypeError
    return int(cell)


def _list(cell: Any) -> list[str]:
    if isinstance(cell, np.ndarray) and cell.ndim == 1:
        cell = cell.tolist()
    if isinstance(cell, set | frozenset):
        return sorted(part for value in cell for part in _element(value))
    if not isinstance(cell, list | tuple):
        raise TypeError
    return [part for value in cell for part in _element(value)]


def _element(value: Any) -> list[str]:
    """Return one value of a list as text, in a list that is empty if it is missing. 1 and 1.0 are equal."""
    if value is None or value is pd.NA or value is pd.NaT or value == "":
        return []
    if isinstance(value, str | uuid.UUID):
        return [str(value)]
    if isinstance(value, bool | np.bool_):
        return [str(bool(value))]
    if isinstance(value, _NUMBERS):
        return [] if value != value else [number_text(value)]
    raise TypeError


def number_text(value: Any) -> str:
    """A number as text: the same for the same number, whatever its type."""
    if not math.isfinite(found := float(value)):
        raise ValueError
    if abs(value) < _INTEGER_LIMIT:
        return str(whole) if value == (whole := int(value)) else repr(found)
    if isinstance(value, int):
        raise ValueError
    return repr(found)


def _times(cells: np.ndarray, marks: tuple[str, ...], unit: Unit, missing: np.ndarray) -> Read:
    values, is_missing, bad = np.zeros(len(cells), np.int64), missing.copy(), np.zeros(len(cells), bool)
    texts: list[int] = []
    for number, cell in enumerate(cells):
        if is_missing[number]:
            continue
        if isinstance(cell, str):
            if cell == "" or cell in marks:
                is_missing[number] = True
            elif _ISO.fullmatch(cell):
                texts.append(number)
            else:
                bad[number] = True
            continue
        try:
            values[number] = _time(cell, unit)
        except (TypeError, ValueError, OverflowError, ArithmeticError):
            bad[number] = True
    if texts:
        plain = [str(cells[n]).replace("UTC", "Z").replace(",", ".") for n in texts]
        parsed = pd.Series(pd.to_datetime(plain, utc=True, errors="coerce", format="ISO8601"))
        # NaT becomes the lowest int64, which is too early and thus bad
        micros = parsed.dt.as_unit("us").astype("int64").to_numpy()
        wrong = ~((micros >= _EARLIEST // 1000) & (micros < _LATEST // 1000))
        values[texts] = np.where(wrong, 0, micros) * 1000
        bad[texts] = wrong
    return Read(values, is_missing, bad)


def _time(cell: Any, unit: Unit) -> int:
    if isinstance(cell, pd.Period):
        cell = cell.start_time
    if isinstance(cell, datetime.date | np.datetime64):
        found = pd.Timestamp(cell).value
    elif isinstance(cell, _NUMBERS) and not isinstance(cell, bool | np.bool_):
        if not _floats(cell) or not math.isfinite(float(cell)) or _wrong_unit(float(cell), unit):
            raise ValueError
        plain = int(cell) if isinstance(cell, int | np.integer) else float(cell)
        found = int(plain * NANOSECONDS[unit])
    else:
        raise TypeError
    if not _EARLIEST <= found < _LATEST:
        raise OverflowError
    return found


def _wrong_unit(value: float, unit: Unit) -> bool:
    """Return whether a number is no plausible time in ``unit``, but is one in another unit."""
    return not _within_log(value, unit) and any(_within_log(value, other) for other in SCALES if other != unit)


def _within_log(value: float, unit: Unit) -> bool:
    return LOGGED[0] * SCALES[unit] <= value <= LOGGED[1] * SCALES[unit]


def _floats(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


# Converters of arrays of one type without missing values: values, and which are bad.

Converted = tuple[np.ndarray, np.ndarray]


def _integers(values: Sequence[int]) -> np.ndarray:
    """Return int64, or objects if a value does not fit."""
    fits = all(-(2**63) <= value < 2**63 for value in values)
    return np.array(values, np.int64) if fits else objects(list(values))


def _whole_of_integers(values: np.ndarray, unit: Unit) -> Converted:
    good = np.zeros(len(values), bool)
    if values.dtype.kind == "u" and len(values) and values.max() >= 2**63:
        return objects(values.tolist()), good
    return values.astype(np.int64), good


def _whole_of_floats(values: np.ndarray, unit: Unit) -> Converted:
    values = values.astype(np.float64)
    bad = ~np.isfinite(values) | (values != np.round(values)) | (np.abs(values) >= float(_INTEGER_LIMIT))
    whole = np.where(bad, 0.0, values)
    if (np.abs(whole) >= 2.0**63).any():
        return _integers([int(value) for value in whole]), bad
    return whole.astype(np.int64), bad


def _number_of_any(values: np.ndarray, unit: Unit) -> Converted:
    values = values.astype(np.float64)
    return values, ~np.isfinite(values)


def _boolean_of_any(values: np.ndarray, unit: Unit) -> Converted:
    bad = ~np.isin(values, [0, 1])
    return np.where(bad, 0, values).astype(np.int64), bad


def _time_of_numbers(values: np.ndarray, unit: Unit) -> Converted:
    plain = values.astype(np.float64)
    scale = NANOSECONDS[unit]
    bad = ~((plain * scale >= _EARLIEST) & (plain * scale < _LATEST))
    within = {name: (plain >= LOGGED[0] * s) & (plain <= LOGGED[1] * s) for name, s in SCALES.items()}
    bad |= ~within[unit] & np.any([found for name, found in within.items() if name != unit], 0)
    if values.dtype.kind == "f":
        return (np.where(bad, 0.0, plain) * scale).astype(np.int64), bad
    return np.where(bad, 0, values).astype(np.int64) * scale, bad


def _time_of_stamps(values: np.ndarray, unit: Unit) -> Converted:
    # seconds can hold every year, nanoseconds only 1678 to 2261
    seconds = values.astype("datetime64[s]").astype(np.int64)
    bad = ~((seconds >= _EARLIEST // 10**9) & (seconds < _LATEST // 10**9))
    good = np.where(bad, np.zeros(1, values.dtype), values)
    return good.astype("datetime64[us]").astype(np.int64) * 1000, bad


SCALES: dict[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
NUMERIC = ("integer", "number", "boolean")
_NUMBERS = (int, float, np.number, np.bool_, Decimal, Fraction)
ARRAY_FAMILIES: dict[str, Family] = {
    "b": "boolean",
    "i": "integer",
    "u": "integer",
    "f": "number",
    "M": "time",
    "m": "number",
}
_TYPED: dict[tuple[str, str], Callable[[np.ndarray, Unit], Converted]] = {
    **{("integer", kind): _whole_of_integers for kind in "biu"},
    ("integer", "f"): _whole_of_floats,
    **{("number", kind): _number_of_any for kind in "biuf"},
    **{("boolean", kind): _boolean_of_any for kind in "biuf"},
    **{("time", kind): _time_of_numbers for kind in "iuf"},
    ("time", "M"): _time_of_stamps,
}
_CELL: dict[str, Callable[[Any], Any]] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "list": _list,
}
FIXES: dict[Family, str] = {
    "text": "convert it with astype(str), or fit again",
    "integer": "round or clean it, or fit again",
    "number": "clean it, or leave the cell empty",
    "time": "convert with pd.to_datetime",
}
TYPE_FIXES: tuple[tuple[Any, str], ...] = (
    ((bytes, bytearray), "decode it with .str.decode('utf-8')"),
    (dict, "give its values as columns of their own"),
    ((complex, np.complexfloating), "give its real and imaginary part as columns"),
    (datetime.time, "give the hour as a number, or the whole time with its date"),
)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _kind(cell: Any) -> Family | None:
    return family_of_type(type(cell))


def family_of_type(kind: type) -> Family | None:
    if issubclass(kind, bool | np.bool_):
        return "boolean"
    if issubclass(kind, int | np.integer):
        return "integer"
    if issubclass(kind, np.complexfloating):
        return None
    if issubclass(kind, (*_NUMBERS, datetime.timedelta, np.timedelta64)):
        return "number"
    if issubclass(kind, list | tuple | set | frozenset | np.ndarray):
        return "list"
    if issubclass(kind, datetime.date | np.datetime64 | pd.Period):
        return "time"
    if issubclass(kind, str | uuid.UUID | pd.Interval):
        return "text"
    return None
