"""Read a user's table, a file or an object in memory, as cells that nothing has changed yet.

Text stays as it is written: ids keep their zeros, and ``NA`` is a name. Only the columns of values are numbers, with
the empty cells and the words for "missing" that pandas knows.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.lab.data import read_unpacked
from manyheads.lab.install import missing

IN_MEMORY = "the table"
TIME_NAMES = ("ds", "date", "time", "timestamp", "datetime")
SEPARATORS = (",", ";", "\t", "|")
# Words of pandas' own list that stand for a missing number.
NO_VALUE = ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A")
NO_VALUE += ("NA", "NULL", "NaN", "None", "n/a", "nan", "null")
_CELLS = 1000  # cells for each byte of a parquet file
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?")


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
class Table:
    """Cells, and what is needed to name one of them."""

    cells: pd.DataFrame
    place: str  # the file, or "the table"
    first: int  # number of the first row: 0 in memory, line 2 of a file
    time: str | None = None  # the column of time that the table itself marks, as its index does
    notes: tuple[str, ...] = ()

    @property
    def numbers(self) -> np.ndarray:
        return np.arange(len(self.cells)) + self.first


def read_table(source: Any, columns: Columns) -> Table:
    """Read a path (CSV with any of ``, ; tab |``, compressed or not, or parquet), a pandas frame or series, or another
    table that speaks Arrow, such as one of polars.

    Raises:
        DataError: anything else, a damaged or empty file, a column name that is there twice.
        MissingPackageError: parquet or Arrow without pyarrow.
    """
    if isinstance(source, str | Path):
        table = _parquet(Path(source), columns) if Path(source).suffix == ".parquet" else _text(Path(source), columns)
    else:
        table = _in_memory(source, columns, IN_MEMORY, 0)
    names = [str(name) for name in table.cells.columns]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{table.place}: column {twice[0]!r} is there twice, expected once: rename or drop one of them")
    table.cells.columns = pd.Index(names, dtype=object)
    if table.cells.empty:
        raise DataError(f"{table.place} has no rows below its header: give at least two seasons of data")
    return table


def at(place: str, number: int) -> str:
    """Rows of a table in memory count from 0, lines of a file as an editor counts them."""
    return f"{place}, {'row' if place.startswith(IN_MEMORY) else 'line'} {number}"


def listed(names: Sequence[object] | pd.Index) -> str:
    """The first eight names."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:8]) + (", …" if len(texts) > 8 else "")


def _in_memory(source: Any, columns: Columns, place: str, first: int) -> Table:
    if isinstance(source, pd.Series):
        if not isinstance(source.index, pd.DatetimeIndex | pd.PeriodIndex | pd.MultiIndex):
            raise DataError(
                f"{place}: found a Series without time stamps, expected an index of them: "
                "series.index = pd.date_range('2024-01-31', periods=len(series), freq='D')"
            )
        source = source.to_frame(columns.target if source.name is None else source.name)
    if not isinstance(source, pd.DataFrame):
        source = _from_arrow(source, place)
    if isinstance(source.columns, pd.MultiIndex):
        raise DataError(f"{place}: found column names of {source.columns.nlevels} levels, expected one: join them")
    return _index_as_columns(source, columns, place, first)


def _from_arrow(source: Any, place: str) -> pd.DataFrame:
    kind = type(source).__name__
    fix = "give a DataFrame with a column of time stamps, such as pd.DataFrame({'ds': stamps, 'y': values})"
    if hasattr(source, "collect"):
        fix = "collect it first"
    if not hasattr(source, "__arrow_c_stream__") or not hasattr(source, "columns"):
        raise DataError(f"{place}: found {kind}, expected a table: {fix}")
    try:
        import pyarrow
    except ImportError as error:
        raise missing("pyarrow", "manyheads-forecasting", "parquet", place=f"{place} of type {kind}") from error
    try:
        return pyarrow.table(source).to_pandas()
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{place}: found {kind} that is no table ({_said(error)}): {fix}") from error


def _index_as_columns(frame: pd.DataFrame, columns: Columns, place: str, first: int) -> Table:
    """Levels of the index that hold stamps or ids become columns; numbers of rows do not."""
    names = list(map(str, frame.columns))
    index = frame.index
    bare = frame.reset_index(drop=True)
    if isinstance(index, pd.MultiIndex):
        levels = [index.get_level_values(level) for level in range(index.nlevels)]
        times = [at for at, level in enumerate(levels) if isinstance(level, pd.DatetimeIndex | pd.PeriodIndex)]
        times = times or [at for at, level in enumerate(levels) if _is_time(level)]
        others = [level for level in range(index.nlevels) if level not in times]
        if len(times) != 1:
            raise DataError(f"{place}: found an index of {index.nlevels} levels, {len(times)} of time, expected one")
        titles = list(index.names)
        if len(others) == 1 and (titles[others[0]] is None or columns.id not in names):
            titles[others[0]] = columns.id
            values = [name for name in names if name not in (columns.id, columns.target)]
            if columns.target not in names and len(values) == 1:
                bare = bare.rename(columns={frame.columns[names.index(values[0])]: columns.target})
        time = str(titles[times[0]] or "ds")
        for level, name in zip(levels, titles, strict=True):
            bare = _with(bare, str(name or time), level, place)
        return Table(bare, place, first, time)
    has_time = any(name.lower() in TIME_NAMES for name in names) or (columns.time or "") in names
    if isinstance(index, pd.DatetimeIndex | pd.PeriodIndex) or (_is_text(index) and not has_time and _is_time(index)):
        time = str(index.name or "ds")
        return Table(_with(bare, time, index, place), place, first, time)
    return Table(bare, place, first)


def _with(frame: pd.DataFrame, name: str, values: pd.Index, place: str) -> pd.DataFrame:
    column = pd.Series(values, index=frame.index)
    if name not in frame.columns:
        return frame.assign(**{name: column})
    if not isinstance(frame[name], pd.Series) or not column.astype(str).equals(frame[name].astype(str)):
        raise DataError(f"{place}: the index and a column are both named {name!r} and differ: drop one of them")
    return frame


def _is_text(index: pd.Index) -> bool:
    return not len(index) or isinstance(index[0], str)


def _is_time(level: pd.Index) -> bool:
    if isinstance(level, pd.DatetimeIndex | pd.PeriodIndex):
        return True
    if not len(level) or not isinstance(level[0], str):
        return False
    try:
        pd.Timestamp(level[0])
    except ValueError:
        return False
    return True


def _parquet(path: Path, columns: Columns) -> Table:
    _there(path)
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise missing("pyarrow", "manyheads-forecasting", "parquet", place=str(path)) from error
    try:
        with parquet.ParquetFile(path) as file:
            size = file.metadata.num_rows * max(1, file.metadata.num_columns)
            if size > _CELLS * path.stat().st_size:
                raise DataError(f"{path}: claims {size} cells in {path.stat().st_size} bytes: put a good copy there")
            frame = file.read().to_pandas()
    except (pyarrow.ArrowException, ValueError, TypeError, KeyError, OSError, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no parquet file that can be read ({_said(error)}): check the file") from error
    return _in_memory(frame, columns, str(path), 0)


def _there(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the path of a CSV file")
    if not path.is_file():
        raise DataError(f"{path} is not there: give the path of a CSV file")


def _text(path: Path, columns: Columns) -> Table:
    _there(path)
    raw = read_unpacked(path)
    text, notes = _decoded(raw, path)
    if not text.strip():
        raise DataError(f"{path} is empty: give a CSV file with a header and rows")
    separator, names = _header(text, path)
    cells = _parsed(text, separator, path, _as_written(names, columns))
    if separator != ",":
        cells = _decimal_commas(cells, text, separator, path, _as_written(names, columns))
    return Table(cells, str(path), 2, notes=notes)


def _decoded(raw: bytes, path: Path) -> tuple[str, tuple[str, ...]]:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return raw.decode("utf-16"), ()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: begins as UTF-16 and is none ({error.reason}): save it as UTF-8") from error
    if b"\x00" in raw[:4096]:
        raise DataError(f"{path} is not a CSV file (it holds binary data): give a text table with commas")
    try:
        return raw.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        return raw.decode("latin-1"), (f"{path} is no UTF-8: its text is read as Latin-1",)


def _header(text: str, path: Path) -> tuple[str, list[str]]:
    """The separator and the names: the first lines have the same number of cells, as many as any separator gives."""
    lines = [line for line in text[: 1 << 20].splitlines() if line.strip()][:20]
    try:
        parsed = {one: list(csv.reader(lines, delimiter=one)) for one in SEPARATORS}
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {_said(error)}: give a table with commas") from error
    even = {one: rows for one, rows in parsed.items() if len({len(row) for row in rows}) == 1}
    separator = max(even or parsed, key=lambda one: len(parsed[one][0]))
    if len(parsed[separator][0]) == 1:
        separator = max(SEPARATORS, key=lambda one: len(parsed[one][0]))
    header, *rows = parsed[separator]
    names = [name.strip() for name in header]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:  # pandas would rename the second
        raise DataError(f"{path}: column {twice[0]!r} is there twice, expected once: rename or drop one of them")
    if rows and len(rows[0]) > len(names):
        raise DataError(
            f"{path} is not a CSV file: found {len(rows[0])} cells in the second line and {len(names)} names in the "
            "header, expected as many: give each column a name"
        )
    return separator, header


def _as_written(names: Sequence[str], columns: Columns) -> list[str]:
    """The columns of ids and of time."""
    return [name for name in names if name in (columns.id, columns.time) or name.strip().lower() in TIME_NAMES]


def _parsed(text: str, separator: str, path: Path, written: Sequence[str]) -> pd.DataFrame:
    """Cells of the columns ``written`` as text, the others as pandas takes them."""
    try:
        return pd.read_csv(
            io.StringIO(text),
            sep=separator,
            keep_default_na=False,
            na_values={name: list(NO_VALUE) for name in _names(text, separator) if name not in written},
            dtype=dict.fromkeys(written, str),
            low_memory=False,
            index_col=False,
        ).rename(columns=str.strip)
    except (ValueError, OverflowError, pd.errors.ParserError) as error:
        raise DataError(f"{path} is not a CSV file: {_said(error)}: give a table with commas") from error


def _names(text: str, separator: str) -> list[str]:
    return list(pd.read_csv(io.StringIO(text), sep=separator, nrows=0, index_col=False).columns)


def _decimal_commas(cells: pd.DataFrame, text: str, separator: str, path: Path, written: Sequence[str]) -> pd.DataFrame:
    """Numbers such as 1,5 and 1.234,5, where another character separates the columns."""
    values = [name for name in cells.columns if name not in {name.strip() for name in written}]
    texts = [name for name in values if not pd.api.types.is_numeric_dtype(cells[name])]
    if not any(cells[name].dropna().astype(str).str.strip().str.fullmatch(_DECIMAL_COMMA).any() for name in texts):
        return cells
    plain = _parsed(text, separator, path, _names(text, separator))
    for name in values:
        column = plain[name].str.strip()
        commas = column.str.fullmatch(_GROUPED) & column.notna()
        if not commas[column.notna()].all():
            continue  # the first cell that is no number will be named
        if column.str.contains(",").any() and column[commas].str.fullmatch(r"[1-9]\d{0,2}(,\d{3})+").all():
            raise DataError(
                f"{path}, column {name!r}: {column[commas].iloc[0]} may be a decimal comma or group the thousands: "
                "write decimals with a point"
            )
        cells[name] = pd.to_numeric(column.str.replace(".", "").str.replace(",", "."))
    return cells


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
