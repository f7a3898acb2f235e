"""Accept tables of pandas and of any library with the Arrow interface; check columns; name rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.lab.install import missing


def as_frame(table: Any, place: str = "table") -> pd.DataFrame:
    """Convert any table with the Arrow interface (polars, pyarrow, DuckDB) to a pandas DataFrame.

    Names, whole numbers and missing values are kept. Raises :class:`DataError` for anything else.
    """
    if isinstance(table, pd.DataFrame):
        return table
    if not hasattr(table, "__arrow_c_stream__") or isinstance(table, pd.Series):
        lazy = ": collect it first" if hasattr(table, "collect") else ""
        raise DataError(f"{place}: found {type(table).__name__}, expected a pandas DataFrame or another table{lazy}")
    try:
        import pyarrow
    except ImportError as error:
        raise missing("pyarrow", "manyheads-recsys", "parquet", place=place) from error
    try:
        return from_arrow(pyarrow.table(table))
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:160]
        raise DataError(f"{place}: found {type(table).__name__} that is no table ({said}), expected columns") from error


def from_arrow(table: Any) -> pd.DataFrame:
    """Convert a pyarrow table or batch to a DataFrame; whole numbers with gaps stay whole numbers."""
    import pyarrow

    names = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
    kinds = {getattr(pyarrow, name.lower())(): getattr(pd, f"{name}Dtype")() for name in names}
    return plain_types(table.to_pandas(types_mapper=kinds.get))


def plain_types(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert nullable columns to NumPy types, except whole numbers and booleans with gaps: NumPy has none for them."""
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
    """Raise :class:`DataError` for a table without rows, without one of ``columns``, or with one of them twice."""
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


def first_row(index: pd.Index | None, where: np.ndarray) -> object:
    """Return the index label of the first row with ``where``.

    The index of the table is the row number in the file, also after rows were sampled or dropped.
    """
    row = int(np.argmax(where))
    return row if index is None else index[row]


def check_scores(scores: np.ndarray, place: Callable[[int], str]) -> None:
    """Raise :class:`DataError` for the first row with a score, ``(n, K)``, that is not finite."""
    lost = ~np.isfinite(scores).all(1)
    if lost.any():
        raise DataError(
            f"{place(int(np.argmax(lost)))}: its score is no number, expected values near those that were fitted: a "
            "number in this row is too large for the network"
        )
