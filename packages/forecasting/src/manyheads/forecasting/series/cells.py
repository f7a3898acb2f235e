"""Read a CSV or parquet file, or a table in memory, into one pandas frame whose rows errors can point to.

Ids and stamps of a file stay text, so that the ids ``NA`` and ``007`` are kept as written. Anything that cannot be read
raises :class:`DataError` with a message of one line.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.forecasting.series.csv_files import TIME_NAMES, check_unique, one_line, read_csv
from manyheads.forecasting.series.stamps import is_stamps, reads_as_dates
from manyheads.lab.data.registry import read_unpacked
from manyheads.lab.install import missing

IN_MEMORY = "the table"
_CELLS = 1000  # cells for each byte of a parquet file, at most
# pyarrow and pandas raise these, and their subclasses, for damaged parquet files
_DAMAGE = (ValueError, OSError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a long table; --time also names the time column of a wide table."""

    id: str = "unique_id"
    """Name of the column with the series ids of a long table."""
    time: str | None = None
    """Name of the time column; by default the first column named ds, date, time, timestamp or datetime."""
    target: str = "y"
    """Name of the column with the values of a long table."""


@dataclass(frozen=True)
class Cells:
    """A table before its stamps, ids and values are interpreted."""

    frame: pd.DataFrame  # column names are unique texts
    time: str  # name of the time column
    place: str  # name of the table in errors
    rows: np.ndarray  # number of each row in errors: the line of a file, or the position in memory
    notes: tuple[str, ...] = ()

    def at(self, row: int) -> str:
        """The place of a row for errors: rows in memory count from 0, lines of a file as in an editor."""
        kind = "row" if self.place == IN_MEMORY or self.place.endswith(".parquet") else "line"
        return f"{self.place}, {kind} {self.rows[row]}"

    def without(self, names: Sequence[str]) -> Cells:
        """The table without some columns."""
        return replace(self, frame=self.frame.drop(columns=list(names)))


def read_cells(source: Any, columns: Columns) -> Cells:
    """Read a path, a DataFrame, a Series, or any table with the Arrow interface (polars, pyarrow).

    Stamps and ids may be in the index.

    Raises:
        DataError: anything that is not a table with a time column.
        MissingPackageError: pyarrow is needed and not installed.
    """
    if isinstance(source, str | os.PathLike):
        return _of_file(Path(source), columns)
    if isinstance(source, pd.Series):
        if not isinstance(source.index, pd.MultiIndex) and not (is_stamps(source.index) or _dates(source.index)):
            raise DataError(
                f"{IN_MEMORY}: found a Series without time stamps, expected an index of them: series.index = "
                "pd.date_range('2024-01-31', periods=len(series), freq='D')"
            )
        source = source.to_frame(columns.target if source.name is None else source.name)
    elif not isinstance(source, pd.DataFrame):
        source = _of_arrow(source)
    return _of_frame(source, IN_MEMORY, columns)


def listed(names: Sequence[object] | pd.Index) -> str:
    """The first eight names, separated by commas."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:8]) + (", …" if len(texts) > 8 else "")


def _of_arrow(source: Any) -> pd.DataFrame:
    kind = type(source).__name__
    fix = "give a DataFrame with a column of time stamps, such as pd.DataFrame({'ds': stamps, 'y': values})"
    if hasattr(source, "collect"):
        fix = "collect it first"
    if not hasattr(source, "__arrow_c_stream__") or not hasattr(source, "columns"):
        raise DataError(f"{IN_MEMORY}: found {kind}, expected a table: {fix}")
    try:
        return pd.DataFrame.from_arrow(source)
    except ImportError as error:
        raise missing("pyarrow", "manyheads-forecasting", "parquet", place=f"{IN_MEMORY} of type {kind}") from error
    except _DAMAGE as error:
        raise DataError(f"{IN_MEMORY}: found {kind} that is no table ({one_line(error)}): {fix}") from error


def _of_frame(frame: pd.DataFrame, place: str, columns: Columns) -> Cells:
    if isinstance(frame.columns, pd.MultiIndex):
        raise DataError(f"{place}: found column names of {frame.columns.nlevels} levels, expected one: join them")
    nameless = [n for n, name in enumerate(frame.columns) if pd.api.types.is_scalar(name) and pd.isna(name)]
    if nameless:
        raise DataError(f"{place}: column {nameless[0]} has no name, expected one: give it one")
    made, time = _with_index(frame.set_axis([str(name) for name in frame.columns], axis=1), place, columns)
    check_unique(list(made.columns), place)
    return Cells(made, time or _time_column(made, place, columns.time), place, np.arange(len(made)))


def _with_index(frame: pd.DataFrame, place: str, columns: Columns) -> tuple[pd.DataFrame, str | None]:
    """The frame with stamps and ids of its index as columns, and the name of the time column if it was the index.

    Any other index is dropped.
    """
    index, plain = frame.index, frame.reset_index(drop=True)
    if isinstance(index, pd.MultiIndex):
        return _with_levels(index, plain, place, columns)
    named = _named_time(plain, columns)
    if index.name == columns.id:
        return _with_column(plain, columns.id, index, place), None
    if not is_stamps(index) and (named is not None or not _dates(index)):
        return plain, None
    if columns.time is not None and columns.time != index.name and named is not None:
        return plain, None
    time = str(index.name if index.name is not None else columns.time or "ds")
    return _with_column(plain, time, index, place), time


def _with_levels(index: pd.MultiIndex, plain: pd.DataFrame, place: str, columns: Columns) -> tuple[pd.DataFrame, str]:
    levels = [index.get_level_values(number) for number in range(index.nlevels)]
    times = [number for number, level in enumerate(levels) if is_stamps(level)]
    times = times or [number for number, level in enumerate(levels) if _dates(level)]
    if len(times) != 1 or len(levels) != 2:
        raise DataError(
            f"{place}: found an index of {len(levels)} levels, {len(times)} of time, expected two, one of time: "
            "reset_index() makes columns of them"
        )
    names = [None if name is None else str(name) for name in index.names]
    other = 1 - times[0]
    if columns.id not in plain and names[other] not in plain:
        names[other] = columns.id
        if columns.target not in plain and len(plain.columns) == 1:
            plain = plain.set_axis([columns.target], axis=1)
    time = names[times[0]] = names[times[0]] or columns.time or "ds"
    for level, name in zip(levels, names, strict=True):
        plain = _with_column(plain, name or columns.id, level, place)
    return plain, time


def _with_column(plain: pd.DataFrame, name: str, values: pd.Index, place: str) -> pd.DataFrame:
    column = pd.Series(values, index=plain.index)
    if name not in plain:
        return pd.concat([pd.DataFrame({name: column}), plain], axis=1)
    if not isinstance(plain[name], pd.Series) or not column.astype(str).equals(plain[name].astype(str)):
        raise DataError(f"{place}: the index and a column are both named {name!r} and differ: drop one of them")
    return plain


def _dates(index: pd.Index) -> bool:
    """Return whether an index of texts or of named whole numbers holds dates; unnamed whole numbers count rows."""
    counts = pd.api.types.is_numeric_dtype(index.dtype) and index.name is None
    return not counts and len(index) > 0 and reads_as_dates(index)


def _named_time(frame: pd.DataFrame, columns: Columns) -> str | None:
    if columns.time is not None:
        return columns.time if columns.time in frame else None
    return next((name for name in frame if name.strip().lower() in TIME_NAMES), None)


def _time_column(frame: pd.DataFrame, place: str, requested: str | None) -> str:
    found = _named_time(frame, Columns(time=requested))
    if found is None and requested is not None:
        raise DataError(f"{place}: no time column {requested!r}, found {listed(frame.columns)}: name it with --time")
    found = found or next((name for name in frame if is_stamps(frame[name])), None)
    if found is None:
        raise DataError(
            f"{place}: no time column ({', '.join(TIME_NAMES)}), found {listed(frame.columns)}: name it with --time"
        )
    return found


def _of_file(path: Path, columns: Columns) -> Cells:
    place = str(path)
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder: give the path of a CSV file")
        if not path.is_file():
            raise DataError(f"{path} is not there: give the path of a CSV file")
        if path.suffix == ".parquet":
            return _of_frame(_parquet(path), place, columns)
        raw = read_unpacked(path)
    except OSError as error:
        raise DataError(f"{place[:200]} cannot be opened ({error.strerror}): give the path of a CSV file") from error
    frame, rows, notes = read_csv(raw, place, id_name=columns.id, time_name=columns.time, target=columns.target)
    if not len(frame):
        raise DataError(f"{place} has no rows below its header: give at least two seasons of data")
    return Cells(frame, _time_column(frame, place, columns.time), place, rows, notes)


def _parquet(path: Path) -> pd.DataFrame:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise missing("pyarrow", "manyheads-forecasting", "parquet", place=str(path)) from error
    try:
        size = path.stat().st_size
        with parquet.ParquetFile(io.BytesIO(path.read_bytes())) as file:
            claimed = file.metadata.num_rows * max(1, file.metadata.num_columns)
            if claimed > _CELLS * size:
                raise DataError(f"{path}: claims {claimed} cells in {size} bytes: put a good copy there")
            return file.read().to_pandas()
    except (*_DAMAGE, ArrowException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no parquet file that can be read ({one_line(error)}): check the file") from error
