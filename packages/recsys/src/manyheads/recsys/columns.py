"""Read the columns of a table: the kind of their values, and those values in one plain form.

A cell is read alone: whether it is taken, and as what, depends on the cell and on what was fitted, never on the cells
beside it or on the type of the column that holds it. Tables and the rows of a server are read by the same functions.
"""

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

from manyheads.core.errors import DataError, MissingPackageError

Family = Literal["text", "integer", "number", "boolean", "time", "list"]
Unit = Literal["s", "ms", "us", "ns"]
MARKS = ("?", "NA", "N/A", "NaN", "nan", "null", "NULL")  # texts that tables write for "not known"
NANOSECONDS: dict[str, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
SECONDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EXACT = 2**53  # whole numbers from here on may share one float64
_WHOLE = 2**128  # what a whole number may not reach
_LOG = (631_152_000, 2_524_608_000)  # seconds since 1970 of the years 1990 to 2050: what a log of events holds
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
    """Values in one plain form: objects that are str for text, int64 (objects that are int where one does not fit) for
    whole numbers and booleans, float64 for numbers, nanoseconds since 1970 as int64 for times, objects that are lists
    of str for lists."""

    values: np.ndarray
    missing: np.ndarray  # bool
    bad: np.ndarray  # bool: cells that cannot be read as this family


def as_frame(table: Any, place: str = "table") -> pd.DataFrame:
    """A pandas DataFrame of any table that speaks Arrow (polars, pyarrow, DuckDB): names, whole numbers and gaps stay
    what they are. Raises :class:`DataError` for anything else."""
    if isinstance(table, pd.DataFrame):
        return table
    if not hasattr(table, "__arrow_c_stream__") or isinstance(table, pd.Series):
        lazy = ": collect it first" if hasattr(table, "collect") else ""
        raise DataError(f"{place}: found {type(table).__name__}, expected a pandas DataFrame or another table{lazy}")
    try:
        import pyarrow
    except ImportError as error:
        raise MissingPackageError(
            f"{place}: reading {type(table).__name__} needs pyarrow: pip install 'manyheads-recsys[parquet]'"
        ) from error
    try:
        return from_arrow(pyarrow.table(table))
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:160]
        raise DataError(f"{place}: found {type(table).__name__} that is no table ({said}), expected columns") from error


def from_arrow(table: Any) -> pd.DataFrame:
    """A pyarrow table or batch as a DataFrame; whole numbers with gaps stay whole numbers."""
    import pyarrow

    names = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
    kinds = {getattr(pyarrow, name.lower())(): getattr(pd, f"{name}Dtype")() for name in names}
    return plain_types(table.to_pandas(types_mapper=kinds.get))


def plain_types(frame: pd.DataFrame) -> pd.DataFrame:
    """Nullable columns as NumPy's types; whole numbers and booleans with gaps stay nullable, as these hold none."""
    kinds: dict[Any, Any] = {}
    for place, kind in enumerate(frame.dtypes):
        if isinstance(kind, pd.Float64Dtype | pd.Float32Dtype):
            kinds[place] = kind.numpy_dtype
        elif isinstance(kind, pd.BooleanDtype) or (
            pd.api.types.is_integer_dtype(kind) and isinstance(kind, pd.api.extensions.ExtensionDtype)
        ):
            if not frame.iloc[:, place].isna().any():
                kinds[place] = getattr(kind, "numpy_dtype", np.dtype(bool))
        elif isinstance(kind, pd.StringDtype) and kind.na_value is pd.NA:
            kinds[place] = "str"
    if not kinds:
        return frame
    columns = [
        column.to_numpy(kinds[place], na_value=np.nan)
        if isinstance(kinds.get(place), np.dtype) and kinds[place].kind == "f"
        else column.astype(kinds.get(place, column.dtype)).array
        for place, (_, column) in enumerate(frame.items())
    ]
    made = pd.DataFrame(dict(enumerate(columns)), index=frame.index)
    made.columns = frame.columns
    return made


def check_frame(frame: pd.DataFrame, columns: Sequence[str], place: str) -> None:
    """Raises :class:`DataError` for a table without rows, without one of ``columns``, or with one of them twice."""
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{place}: found {type(frame).__name__}, expected a pandas DataFrame")
    if len(frame) == 0:
        raise DataError(f"{place}: found no rows, expected at least one: give a table with rows")
    for name in columns:
        if name not in frame.columns:
            held = ", ".join(map(str, frame.columns[:8])) + (" …" if len(frame.columns) > 8 else "")
            raise DataError(f"{place}: column {name!r} is missing; found {held}: add it, or fit without it")
        if isinstance(frame[name], pd.DataFrame):
            raise DataError(f"{place}: column {name!r} is there twice, expected once: rename or drop one of them")


def family_of(column: pd.Series) -> Family:
    """The kind of values that a column holds. Raises :class:`DataError` if they are of no kind that can be a feature,
    of several, or all missing."""
    column = _dense(column)
    kind = column.dtype
    if isinstance(kind, pd.CategoricalDtype):
        return family_of(_used(column)[0])
    missing = _missing(column)
    if missing.all():
        raise DataError(
            f"column {column.name!r}: every value is missing, expected some: drop it, ignore it (--ignore) or fill it"
        )
    bare = _bare(column, missing)
    typed = _FAMILIES.get(bare.dtype.kind)
    if typed is not None:
        return typed
    held = bare[~missing]
    kinds = {kind: _family_of_type(kind) for kind in set(map(type, held))}
    for kind, family in kinds.items():
        if family is None:
            number = next(n for n, cell in enumerate(bare) if type(cell) is kind)
            fix = next((said for one, said in _FIXES if issubclass(kind, one)), "convert or drop it")
            raise DataError(
                f"column {column.name!r}, row {column.index[number]}: found {kind.__name__} "
                f"({shown(bare[number])}), expected text, numbers, times, booleans or lists: {fix}"
            )
    found = {family for family in kinds.values() if family is not None}
    if found <= {"integer", "number"}:
        return "number" if "number" in found else "integer"
    if len(found) > 1:
        raise DataError(
            f"column {column.name!r}: found {' and '.join(sorted(found))} mixed, expected one kind of value: "
            "convert it, for example with astype(str)"
        )
    return found.pop()


def read(column: pd.Series, family: Family, marks: tuple[str, ...] = (), unit: Unit = "s") -> Read:
    """The values of a column as ``family``. The empty text and ``marks`` count as missing; numbers that are times count
    ``unit`` since 1970. Cells that cannot be read are told in ``bad``; :func:`refuse` names the first."""
    column = _dense(column)
    if isinstance(column.dtype, pd.CategoricalDtype):
        few, codes = _used(column)
        found = read(few, family, marks, unit)
        absent = codes < 0
        pick = np.where(absent, 0, codes)
        if len(few) == 0:
            return read(pd.Series([None] * len(column), dtype=object), family, marks, unit)
        return Read(found.values[pick], found.missing[pick] | absent, found.bad[pick] & ~absent)
    missing = _missing(column)
    return read_cells(_bare(column, missing), family, marks, unit, missing)


def read_cells(
    cells: np.ndarray, family: Family, marks: tuple[str, ...] = (), unit: Unit = "s", missing: np.ndarray | None = None
) -> Read:
    """As :func:`read`, of an array: of one type, or of objects."""
    if missing is None:
        missing = np.asarray(pd.isna(cells), bool)
    kind = cells.dtype.kind
    if kind == "O":
        kinds = set(map(type, cells[~missing])) if missing.any() else set(map(type, cells))
        if not kinds:
            cells, kind = np.zeros(len(cells)), "f"
        elif family == "text" and kinds == {str}:
            values, absent = np.where(missing, "", cells), {"", *marks}
            gone = missing | np.fromiter((value in absent for value in values), bool, len(values))
            return Read(values, gone, np.zeros(len(cells), bool))
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


def as_family(column: pd.Series, family: Family, marks: tuple[str, ...] = (), unit: Unit = "s") -> Read:
    """As :func:`read`; raises :class:`DataError` at the first cell that cannot be read."""
    found = read(column, family, marks, unit)
    if found.bad.any():
        refuse_column(column, found, family, unit)
    return found


def refuse_column(column: pd.Series, found: Read, family: Family, unit: Unit = "s") -> None:
    """Raises :class:`DataError` naming the column, the first bad row, what was found, what was expected and the fix."""
    name, count, row = column.name, int(found.bad.sum()), int(np.argmax(found.bad))
    cell = column.iloc[row]
    if (found.bad | found.missing).all() and column.dtype != object:
        was = family_of(column)
        if was == "text" and family in _NUMERIC:  # the first that made the column text
            plain = pd.to_numeric(column.astype(object), errors="coerce").isna().to_numpy() & found.bad
            cell = column.iloc[int(np.argmax(plain))] if plain.any() else cell
        readable = (
            (*_NUMERIC[:2], "text", "time") if family == "time" else _NUMERIC if family in _NUMERIC else (family,)
        )
        if was not in readable:
            fix = f"convert it with df[{name!r}].astype(str)" if family == "text" else "convert it"
            raise DataError(
                f"column {name!r}: found {was} ({shown(cell)}), expected {family} as at fitting: {fix}, or fit again"
            )
    more = f" and {count - 1} more" if count > 1 else ""
    place = f"column {name!r}, row {column.index[row]}{more}"
    raise DataError(complaint(place, cell, family, unit, _FIX.get(family, "convert it, or leave the cell empty")))


def complaint(place: str, cell: Any, family: Family, unit: Unit = "s", fix: str = "") -> str:
    """What is wrong with a cell, in one line."""
    expected = EXPECTED[family]
    number = isinstance(cell, numbers.Real) and not isinstance(cell, bool | np.bool_)
    if family == "time" and number:
        other = next((u for u in _SCALES if u != unit and _within_log(float(cell), u)), None) if _floats(cell) else None
        found = f"{shown(cell)}, which is in {SECONDS[other]}" if other else shown(cell)
        return f"{place}: found {found}, expected {SECONDS[unit]} since 1970, from 1678 to 2261: convert it"
    kind = {"text": "text ", "list": "a list ", "boolean": "a boolean "}.get(str(_kind(cell)), "")
    kind = kind or ("" if number or isinstance(cell, datetime.date) else f"{type(cell).__name__} ")
    found = f"{kind}({shown(cell)})" if kind else shown(cell)
    return f"{place}: found {found}, expected {expected}" + (f": {fix}" if fix else "")


def check_scores(scores: np.ndarray, place: Callable[[int], str]) -> None:
    """Raises :class:`DataError` for the first row whose score, ``(n, K)``, is no number."""
    lost = ~np.isfinite(scores).all(1)
    if lost.any():
        raise DataError(
            f"{place(int(np.argmax(lost)))}: its score is no number, expected values near those that were fitted: a "
            "number in this row is too large for the network"
        )


def first_row(index: pd.Index | None, where: np.ndarray) -> object:
    """The name of the first row ``where`` is true: what the table's own index says, which is the place in the file also
    after rows were drawn or dropped."""
    row = int(np.argmax(where))
    return row if index is None else index[row]


def shown(value: object) -> str:
    """A value in at most 40 characters, however long or deep it is."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a whole number of {value.bit_length()} bits"
    text = str(value) if isinstance(value, float | int | np.number) else _SHORT.repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 40 else f"{text[:39]}…"


def objects(cells: Sequence[Any]) -> np.ndarray:
    """An array of objects, also of lists of one length."""
    found = np.empty(len(cells), object)
    for number, cell in enumerate(cells):
        found[number] = cell
    return found


def epoch_unit(column: pd.Series) -> Unit | None:
    """The unit in which all numbers of a column are times of the years 1990 to 2050; None if there is none.

    Raises :class:`DataError` if each is such a time, but not all in the same unit.
    """
    found = read(column, "number")
    values = found.values[~found.missing & ~found.bad]
    fits = {unit: (values >= _LOG[0] * scale) & (values <= _LOG[1] * scale) for unit, scale in _SCALES.items()}
    for unit, within in fits.items():
        if within.all():
            return unit
    if np.any(list(fits.values()), 0).all():
        held = " and ".join(SECONDS[unit] for unit, within in fits.items() if within.any())
        raise DataError(f"column {column.name!r}: found {held} since 1970 mixed, expected one unit: convert it")
    return None


# cells


def _one_by_one(cells: np.ndarray, family: Family, marks: tuple[str, ...], unit: Unit, missing: np.ndarray) -> Read:
    if family == "time":
        return _times(cells, marks, unit, missing)
    convert = _CELL[family]
    values: list[Any] = []
    gone, bad = missing.copy(), np.zeros(len(cells), bool)
    blank: Any = {"text": "", "number": 0.0, "list": []}.get(family, 0)
    for number, cell in enumerate(cells):
        value = None
        if not gone[number]:
            try:
                value = convert(cell)
            except (TypeError, ValueError, OverflowError, ArithmeticError):
                bad[number] = True
        if family == "text" and (value == "" or value in marks):
            value, gone[number] = None, True
        values.append(blank if value is None else value)
    if family in ("text", "list"):
        return Read(objects(values), gone, bad)
    if family == "number":
        return Read(np.array(values, np.float64), gone, bad)
    return Read(_integers(values), gone, bad)


def _text(cell: Any) -> str:
    if isinstance(cell, str | uuid.UUID | pd.Interval):
        return str(cell)
    raise TypeError


def _integer(cell: Any) -> int:
    if not isinstance(cell, _NUMBERS) or not abs(cell) < _WHOLE or cell != (whole := int(cell)):
        raise TypeError
    return whole


def _number(cell: Any) -> float:
    if isinstance(cell, np.timedelta64):
        cell = pd.Timedelta(cell)
    if isinstance(cell, datetime.timedelta):
        return cell.total_seconds()
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
    """One value of a list as text, none where it is missing. 1 and 1.0 are the same."""
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
    if abs(value) < _WHOLE:
        return str(whole) if value == (whole := int(value)) else repr(found)
    if isinstance(value, int):
        raise ValueError
    return repr(found)


def _times(cells: np.ndarray, marks: tuple[str, ...], unit: Unit, missing: np.ndarray) -> Read:
    values, gone, bad = np.zeros(len(cells), np.int64), missing.copy(), np.zeros(len(cells), bool)
    texts: list[int] = []
    for number, cell in enumerate(cells):
        if gone[number]:
            continue
        if isinstance(cell, str):
            if cell == "" or cell in marks:
                gone[number] = True
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
        micros = parsed.dt.as_unit("us").astype("int64").to_numpy()  # of NaT the least, which is too early
        wrong = ~((micros >= _EARLIEST // 1000) & (micros < _LATEST // 1000))
        values[texts] = np.where(wrong, 0, micros) * 1000
        bad[texts] = wrong
    return Read(values, gone, bad)


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
    """Whether a number that is no time of a log in ``unit`` is one in another unit."""
    return not _within_log(value, unit) and any(_within_log(value, other) for other in _SCALES if other != unit)


def _within_log(value: float, unit: Unit) -> bool:
    return _LOG[0] * _SCALES[unit] <= value <= _LOG[1] * _SCALES[unit]


def _floats(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


# arrays of one type: values and where they are bad, from an array without gaps

Converted = tuple[np.ndarray, np.ndarray]


def _integers(values: Sequence[int]) -> np.ndarray:
    """int64, or objects where a value does not fit."""
    fits = all(-(2**63) <= value < 2**63 for value in values)
    return np.array(values, np.int64) if fits else objects(list(values))


def _whole_of_integers(values: np.ndarray, unit: Unit) -> Converted:
    good = np.zeros(len(values), bool)
    if values.dtype.kind == "u" and len(values) and values.max() >= 2**63:
        return objects(values.tolist()), good
    return values.astype(np.int64), good


def _whole_of_floats(values: np.ndarray, unit: Unit) -> Converted:
    values = values.astype(np.float64)
    bad = ~np.isfinite(values) | (values != np.round(values)) | (np.abs(values) >= float(_WHOLE))
    whole = np.where(bad, 0.0, values)
    if (np.abs(whole) >= 2.0**63).any():
        return _integers([int(value) for value in whole]), bad
    return whole.astype(np.int64), bad


def _number_of_any(values: np.ndarray, unit: Unit) -> Converted:
    values = values.astype(np.float64)
    return values, ~np.isfinite(values)


def _number_of_spans(values: np.ndarray, unit: Unit) -> Converted:
    return _number_of_any(pd.Series(pd.TimedeltaIndex(values)).dt.total_seconds().to_numpy(), unit)


def _boolean_of_any(values: np.ndarray, unit: Unit) -> Converted:
    bad = ~np.isin(values, [0, 1])
    return np.where(bad, 0, values).astype(np.int64), bad


def _time_of_numbers(values: np.ndarray, unit: Unit) -> Converted:
    plain = values.astype(np.float64)
    scale = NANOSECONDS[unit]
    bad = ~((plain * scale >= _EARLIEST) & (plain * scale < _LATEST))
    within = {name: (plain >= _LOG[0] * s) & (plain <= _LOG[1] * s) for name, s in _SCALES.items()}
    bad |= ~within[unit] & np.any([found for name, found in within.items() if name != unit], 0)
    if values.dtype.kind == "f":
        return (np.where(bad, 0.0, plain) * scale).astype(np.int64), bad
    return np.where(bad, 0, values).astype(np.int64) * scale, bad


def _time_of_stamps(values: np.ndarray, unit: Unit) -> Converted:
    seconds = values.astype("datetime64[s]").astype(np.int64)  # which holds every year
    bad = ~((seconds >= _EARLIEST // 10**9) & (seconds < _LATEST // 10**9))
    good = np.where(bad, np.zeros(1, values.dtype), values)
    return good.astype("datetime64[us]").astype(np.int64) * 1000, bad


_SCALES: dict[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_NUMERIC = ("integer", "number", "boolean")
_NUMBERS = (int, float, np.number, np.bool_, Decimal, Fraction)
_FAMILIES: dict[str, Family] = {
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
    ("number", "m"): _number_of_spans,
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
_FIX: dict[Family, str] = {
    "text": "convert it with astype(str), or fit again",
    "integer": "round or clean it, or fit again",
    "number": "clean it, or leave the cell empty",
    "time": "convert with pd.to_datetime",
}
_FIXES: tuple[tuple[Any, str], ...] = (
    ((bytes, bytearray), "decode it with .str.decode('utf-8')"),
    (dict, "give its values as columns of their own"),
    ((complex, np.complexfloating), "give its real and imaginary part as columns"),
    (datetime.time, "give the hour as a number, or the whole time with its date"),
)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _kind(cell: Any) -> Family | None:
    return _family_of_type(type(cell))


def _family_of_type(kind: type) -> Family | None:
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


# columns


def _dense(column: pd.Series) -> pd.Series:
    """Without what is only storage: sparse columns and Arrow dictionaries."""
    if isinstance(column.dtype, pd.SparseDtype):
        return column.sparse.to_dense()
    if isinstance(column.dtype, pd.ArrowDtype) and str(column.dtype).startswith("dictionary"):
        return column.astype(object)
    return column


def _missing(column: pd.Series) -> np.ndarray:
    return column.isna().to_numpy(bool)


def _bare(column: pd.Series, missing: np.ndarray) -> np.ndarray:
    """A NumPy array of bool, whole numbers, floats, stamps in UTC or spans; else of objects."""
    kind = column.dtype
    types = pd.api.types
    if types.is_bool_dtype(kind):
        return column.to_numpy(bool, na_value=False)
    if types.is_integer_dtype(kind):
        return column.to_numpy(np.uint64 if types.is_unsigned_integer_dtype(kind) else np.int64, na_value=0)
    if types.is_float_dtype(kind):
        return column.to_numpy(np.float64, na_value=np.nan)
    if isinstance(kind, pd.DatetimeTZDtype):
        return column.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    if isinstance(kind, np.dtype) and kind.kind in "Mm":
        return column.to_numpy()
    return column.to_numpy(object, na_value=None)


def _used(column: pd.Series) -> tuple[pd.Series, np.ndarray]:
    """The categories that occur, named by the first row of each, and their number in every row; -1 where missing."""
    codes = column.cat.codes.to_numpy()
    used, first, places = np.unique(codes, return_index=True, return_inverse=True)
    offset = int(len(used) > 0 and used[0] < 0)
    few = column.cat.categories.take(used[offset:]).to_series(index=column.index[first[offset:]], name=column.name)
    return few, places - offset
