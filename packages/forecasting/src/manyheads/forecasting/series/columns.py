"""Series ids as text and values as numbers; errors name the row that is neither."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from decimal import Decimal
from numbers import Real

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.forecasting.series.cells import Cells

_Kinded = tuple[str, object]  # the type of a cell, and the cell
_NUMBERS = (str, Real, Decimal, np.bool_)
_EXACT = 2**53  # above it, several whole numbers have the same float


def id_texts(cells: Cells, name: str) -> np.ndarray:
    """The series ids as text, exactly as written.

    Raises :class:`DataError` for a missing id, for a number that is not exact, and if ids of two types have the same
    text, such as 1 and "1".
    """
    column = cells.frame[name]
    # pandas counts 1, 1.0 and True as equal: factorise the type with the cell
    if column.dtype == object:
        column = pd.Series(_with_kinds(column), dtype=object)
    codes, unique = pd.factorize(column, use_na_sentinel=False)
    rows = np.unique(codes, return_index=True)[1]
    texts = np.empty(len(unique), dtype=object)
    kinds: dict[str, str] = {}  # the type by text, and by whole number
    for code, row in enumerate(rows):
        cell = cells.frame[name].iloc[row]
        at = f"{cells.at(int(row))}, column {name!r}"
        texts[code] = _id_text(cell, at)
        keys = {texts[code]}
        if isinstance(cell, Real) and cell % 1 == 0:
            keys.add(str(int(cell)))
        other = next((kinds[key] for key in keys if kinds.setdefault(key, _kind(cell)) != _kind(cell)), None)
        if other is not None:
            raise DataError(
                f"{at}: found {cell} as {_kind(cell)} and as {other}, expected one of them: write all ids as text"
            )
    return texts[codes]


def _with_kinds(column: pd.Series) -> list[_Kinded]:
    return [(_kind(cell), cell if isinstance(cell, Hashable) and not _missing(cell) else None) for cell in column]


def _kind(cell: object) -> str:
    if isinstance(cell, bool | np.bool_):
        return "bool"
    for kind, types in (("str", str), ("int", int | np.integer), ("float", float | np.floating)):
        if isinstance(cell, types):
            return kind
    return type(cell).__name__


def _missing(cell: object) -> bool:
    return not isinstance(cell, str) and bool(pd.api.types.is_scalar(cell) and pd.isna(cell))


def _id_text(cell: object, at: str) -> str:
    if _missing(cell) or (isinstance(cell, str) and not cell.strip()):
        raise DataError(f"{at}: found no id, expected the name of the series: write it in")
    if not pd.api.types.is_scalar(cell) or isinstance(cell, bytes | complex):
        raise DataError(f"{at}: found {cell!r:.40}, expected an id as text or a number")
    if isinstance(cell, float | np.floating) and not abs(cell) <= _EXACT:
        raise DataError(
            f"{at}: found {cell!r}, a number that stands for several ids above 2**53, expected text: read the column "
            "as text"
        )
    return str(cell)


def numbers(cells: Cells, name: str, what: Callable[[int], str], missing: float | None) -> np.ndarray:
    """The values of a column as float64, NaN for a missing one.

    Args:
        cells: the table.
        name: the column.
        what: the name of the column, or of the series in it, at a row, for errors.
        missing: a number that stands for a missing value.

    Raises :class:`DataError` for a cell that is not a number, and for infinity.
    """
    column = cells.frame[name]
    kind = column.dtype
    if isinstance(kind, pd.PeriodDtype | pd.IntervalDtype) or kind.kind in "mMc":
        raise DataError(
            f"{cells.place}, {what(0)}: found {column.iloc[0]} ({kind}), expected numbers: leave the column out "
            f"(--drop {name})"
        )
    if pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind):
        found = column.to_numpy(np.float64, na_value=np.nan)
    else:
        found = _from_objects(cells, name, what)
    if missing is not None:
        found = np.where(found == missing, np.nan, found)
    infinite = np.isinf(found)
    if infinite.any():
        row = int(np.argmax(infinite))
        raise DataError(
            f"{cells.at(row)}, {what(row)}: found an infinite value ({int(infinite.sum())} in all), expected a number: "
            "correct it"
        )
    return found


def _from_objects(cells: Cells, name: str, what: Callable[[int], str]) -> np.ndarray:
    """Convert texts, decimals and other objects to float64."""
    column = cells.frame[name].astype(object)
    found = np.full(len(column), np.nan)
    for row, cell in enumerate(column):
        if isinstance(cell, str):
            cell = cell.strip() or np.nan
        elif _missing(cell):
            continue
        try:
            if (
                not isinstance(cell, str | Real | Decimal | np.bool_)
                or isinstance(cell, np.timedelta64)
                or "_" in str(cell)
            ):
                raise TypeError
            found[row] = float(cell)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{cells.at(row)}, {what(row)}: found {cell!r:.60}, expected a number: correct it or drop it"
            ) from error
    return found
