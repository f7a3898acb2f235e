"""Columns of a table as the features need them: what kind of values they hold, and those values in one plain form.

Every complaint names the column, what was found, what was expected, and the mend.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError

Family = Literal["text", "integer", "number", "boolean", "time", "list"]
MARKS = ("?", "NA", "N/A", "NaN", "nan", "null", "NULL")  # texts that tables write for "not known"
_EARLIEST, _LATEST = pd.Timestamp("1678-01-01", tz="UTC"), pd.Timestamp("2262-01-01", tz="UTC")  # of nanoseconds
_INFERRED: dict[str, Family] = {"string": "text", "integer": "integer", "floating": "number", "boolean": "boolean"}


def check_frame(frame: pd.DataFrame, columns: list[str], place: str) -> None:
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
    """What kind of values a column holds. Raises :class:`DataError` where they are mixed or all are missing."""
    kind = column.dtype
    if isinstance(kind, pd.CategoricalDtype):
        return family_of(pd.Series(kind.categories, name=column.name))
    if pd.api.types.is_bool_dtype(kind):
        return "boolean"
    if pd.api.types.is_datetime64_any_dtype(kind):
        return "time"
    if pd.api.types.is_integer_dtype(kind):
        return "integer"
    if pd.api.types.is_float_dtype(kind):
        return "number"
    values = column.dropna()
    if len(values) == 0:
        raise DataError(
            f"column {column.name!r}: every value is missing, expected some: drop it, ignore it (--ignore) or fill it"
        )
    if isinstance(kind, pd.StringDtype):
        return "text"
    quick = _INFERRED.get(pd.api.types.infer_dtype(values, skipna=False))
    found = {quick} if quick is not None else {_family_of_value(value) for value in values}
    if found <= {"integer", "number"}:
        return "number" if "number" in found else "integer"
    if len(found) > 1:
        raise DataError(
            f"column {column.name!r}: found {' and '.join(sorted(found))} mixed, expected one kind of value: "
            "convert it, for example with astype(str)"
        )
    return found.pop()


def _family_of_value(value: object) -> Family:
    if isinstance(value, bool | np.bool_):
        return "boolean"
    if isinstance(value, int | np.integer):
        return "integer"
    if isinstance(value, float | np.floating):
        return "number"
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return "list"
    if isinstance(value, pd.Timestamp | np.datetime64) or hasattr(value, "isoformat"):
        return "time"
    return "text"


def as_family(column: pd.Series, expected: Family, marks: tuple[str, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """The values in one plain form, and where they are missing.

    Text gives objects, integers and booleans int64, numbers float64, times nanoseconds as int64. The empty text and
    ``marks`` count as missing. Raises :class:`DataError` where the column now holds another kind of value than it was
    fitted with.
    """
    name = column.name
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.dtype.categories.dtype)
    if column.isna().all():
        plain = np.full(len(column), "", object) if expected == "text" else np.zeros(len(column), np.int64)
        return plain, np.ones(len(column), bool)
    found = family_of(column)
    missing = column.isna().to_numpy()
    if expected == "text":
        if found != "text":
            _changed(column, found, expected, f"convert it with df[{name!r}].astype(str), or fit again")
        values = column.to_numpy(object, na_value="")
        return values, missing | np.isin(values.astype(str), ["", *marks])
    if expected == "time":
        return _times(column, found, missing)
    if found == "boolean" or (found == "integer" and expected != "boolean"):
        kind = np.float64 if expected == "number" else np.int64
        return column.astype(object).where(~missing, 0).to_numpy(kind), missing
    if found == "number" and expected in ("number", "integer", "boolean"):
        values = column.astype("float64").to_numpy()
        if expected == "number":
            return values, missing
        whole = np.where(missing, 0.0, values)
        off = ~np.isfinite(whole) | (whole != np.round(whole)) | (np.abs(whole) >= 2.0**63)
        if off.any():
            _at(column, off, values, f"{expected} as at fitting", "round or clean it, or fit again")
        return whole.astype(np.int64), missing
    _changed(column, found, expected, "convert it, or fit again")
    raise AssertionError


def _times(column: pd.Series, found: Family, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if found == "time":
        parsed = pd.to_datetime(column, utc=True)
    elif found in ("integer", "number"):
        seconds = column.astype("float64")
        parsed = pd.to_datetime(seconds, unit="ms" if seconds.abs().max() > 1e11 else "s", utc=True, errors="coerce")
    elif found == "text":
        parsed = pd.to_datetime(column, utc=True, errors="coerce", format="ISO8601")
    else:
        _changed(column, found, "time", "convert it with pd.to_datetime")
        raise AssertionError
    bad = parsed.isna().to_numpy() & ~missing
    if bad.any():
        _at(column, bad, column.to_numpy(object), "a time such as 2024-01-31 18:00", "convert with pd.to_datetime")
    beyond = ((parsed < _EARLIEST) | (parsed > _LATEST)).to_numpy() & ~missing
    if beyond.any():
        _at(
            column,
            beyond,
            column.to_numpy(object),
            "a year from 1678 to 2261",
            "clean it, or leave the cell empty",
        )
    return parsed.astype("datetime64[ns, UTC]").astype("int64").to_numpy(), missing


def finite(column: pd.Series, values: np.ndarray, missing: np.ndarray) -> None:
    """Raises :class:`DataError` at the first infinity of a numeric column."""
    infinite = np.isinf(np.where(missing, 0.0, values.astype(np.float64)))
    if infinite.any():
        _at(column, infinite, values, "a finite number", "clean it, or leave the cell empty")


def _changed(column: pd.Series, found: Family, expected: Family, mend: str) -> None:
    example = column.dropna().iloc[0]
    raise DataError(
        f"column {column.name!r}: found {found} ({_short(example)}), expected {expected} as at fitting: {mend}"
    )


def first_row(index: pd.Index | None, where: np.ndarray) -> object:
    """The name of the first row ``where`` is true: what the table's own index says, which is the place in the file also
    after rows were drawn or dropped."""
    row = int(np.argmax(where))
    return row if index is None else index[row]


def _at(column: pd.Series, where: np.ndarray, values: np.ndarray, expected: str, mend: str) -> None:
    more = f" and {where.sum() - 1} more" if where.sum() > 1 else ""
    found, row = _short(values[int(np.argmax(where))]), first_row(column.index, where)
    raise DataError(f"column {column.name!r}, row {row}{more}: found {found}, expected {expected}: {mend}")


def _short(value: object) -> str:
    if isinstance(value, float | int | np.number):
        return str(value)
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
