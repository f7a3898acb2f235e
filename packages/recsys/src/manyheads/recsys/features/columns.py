"""Read the columns of a table: the family of their values, and the values in one plain form.

Each cell is read alone. Whether it is accepted, and as what, depends on the cell and on the fitted encoder, never on
other cells or on the type of its column. Tables and the rows of a server are read by the same functions.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.recsys.features.cells import (
    ARRAY_FAMILIES,
    FIXES,
    LOGGED,
    NUMERIC,
    SCALES,
    SECONDS,
    TYPE_FIXES,
    Family,
    Read,
    Unit,
    complaint,
    family_of_type,
    read_cells,
    shown,
)


def family_of(column: pd.Series) -> Family:
    """Return the family of the values of a column.

    Raises :class:`DataError` if they are of no family that can be a feature, of several families, or all missing.
    """
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
    typed = ARRAY_FAMILIES.get(bare.dtype.kind)
    if typed is not None:
        return typed
    held = bare[~missing]
    kinds = {kind: family_of_type(kind) for kind in set(map(type, held))}
    for kind, family in kinds.items():
        if family is None:
            number = next(n for n, cell in enumerate(bare) if type(cell) is kind)
            fix = next((said for one, said in TYPE_FIXES if issubclass(kind, one)), "convert or drop it")
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
    """Read a column as ``family``.

    The empty text and ``marks`` are missing. Numbers that are times count ``unit`` since 1970. ``bad`` marks cells that
    cannot be read; :func:`as_family` raises for the first one.
    """
    column = _dense(column)
    if isinstance(column.dtype, pd.CategoricalDtype):
        few, codes = _used(column)
        if len(few) == 0:
            return read(column.astype(object), family, marks, unit)
        found = read(few, family, marks, unit)
        absent = codes < 0
        pick = np.where(absent, 0, codes)
        return Read(found.values[pick], found.missing[pick] | absent, found.bad[pick] & ~absent)
    missing = _missing(column)
    return read_cells(_bare(column, missing), family, marks, unit, missing)


def as_family(column: pd.Series, family: Family, marks: tuple[str, ...] = (), unit: Unit = "s") -> Read:
    """The same as :func:`read`; raises :class:`DataError` for the first cell that cannot be read."""
    found = read(column, family, marks, unit)
    if found.bad.any():
        refuse_column(column, found, family, unit)
    return found


def refuse_column(column: pd.Series, found: Read, family: Family, unit: Unit = "s") -> None:
    """Raise :class:`DataError` with column, first bad row, found value, expected value and fix."""
    name, count, row = column.name, int(found.bad.sum()), int(np.argmax(found.bad))
    cell = column.iloc[row]
    if (found.bad | found.missing).all() and column.dtype != object:
        was = family_of(column)
        # show the first cell that is no number: it made the whole column text
        if was == "text" and family in NUMERIC:
            plain = pd.to_numeric(column.astype(object), errors="coerce").isna().to_numpy() & found.bad
            cell = column.iloc[int(np.argmax(plain))] if plain.any() else cell
        readable = (*NUMERIC[:2], "text", "time") if family == "time" else NUMERIC if family in NUMERIC else (family,)
        if was not in readable:
            fix = f"convert it with df[{name!r}].astype(str)" if family == "text" else "convert it"
            raise DataError(
                f"column {name!r}: found {was} ({shown(cell)}), expected {family} as at fitting: {fix}, or fit again"
            )
    more = f" and {count - 1} more" if count > 1 else ""
    place = f"column {name!r}, row {column.index[row]}{more}"
    raise DataError(complaint(place, cell, family, unit, FIXES.get(family, "convert it, or leave the cell empty")))


def epoch_unit(column: pd.Series) -> Unit | None:
    """Return the unit in which all numbers of a column are times of the years 1990 to 2050; None if there is none.

    Raises :class:`DataError` if each number is such a time, but not all in the same unit.
    """
    found = read(column, "number")
    values = found.values[~found.missing & ~found.bad]
    fits = {unit: (values >= LOGGED[0] * scale) & (values <= LOGGED[1] * scale) for unit, scale in SCALES.items()}
    for unit, within in fits.items():
        if within.all():
            return unit
    if np.any(list(fits.values()), 0).all():
        held = " and ".join(SECONDS[unit] for unit, within in fits.items() if within.any())
        raise DataError(f"column {column.name!r}: found {held} since 1970 mixed, expected one unit: convert it")
    return None


def _dense(column: pd.Series) -> pd.Series:
    """Convert sparse columns and Arrow dictionaries to dense ones."""
    if isinstance(column.dtype, pd.SparseDtype):
        return column.sparse.to_dense()
    if isinstance(column.dtype, pd.ArrowDtype) and str(column.dtype).startswith("dictionary"):
        return column.astype(object)
    return column


def _missing(column: pd.Series) -> np.ndarray:
    return column.isna().to_numpy(bool)


def _bare(column: pd.Series, missing: np.ndarray) -> np.ndarray:
    """Return a NumPy array of bool, integers, floats, timestamps in UTC or durations; otherwise of objects."""
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
    """Return the categories that occur, indexed by the first row of each, and their code per row; -1 if missing."""
    codes = column.cat.codes.to_numpy()
    used, first, places = np.unique(codes, return_index=True, return_inverse=True)
    offset = int(len(used) > 0 and used[0] < 0)
    few = column.cat.categories.take(used[offset:]).to_series(index=column.index[first[offset:]], name=column.name)
    return few, places - offset
