"""Any user's table as panels: long (``unique_id, ds, y``) or wide (a time column and one column a channel).

The way of a cell: :mod:`tables` reads it as it is written; here its series is found by the text of its id, its stamp is
put on the calendar of its own series (:mod:`stamps`, :mod:`frequencies`), and series with the same stamps become one
panel. Bad input never yields a number: each fault raises :class:`DataError` with the file, the line (as an editor
counts it, the header being line 1) or the column, what was found, and how to fix it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.forecasting.frequencies import Grid, find_grid, season_of, usual_step
from manyheads.forecasting.series import SENTINEL, Panel
from manyheads.forecasting.stamps import read_stamps
from manyheads.forecasting.tables import IN_MEMORY, TIME_NAMES, Columns, Table, at, listed, read_table

_EXACT = 2.0**53  # whole numbers above it are not all float64


@dataclass(frozen=True)
class Reading:
    """How a table is read."""

    columns: Columns = field(default_factory=Columns)
    freq: str | None = None
    """pandas' alias of the frequency; inferred by default."""
    season: int | None = None
    """Rows in a season; from the frequency by default."""
    missing: float | None = None
    """A number that stands for a missing value, such as -9999."""
    fill: Literal["interpolate"] | None = None
    """What to do with missing values and missing stamps; they are refused by default."""
    drop: tuple[str, ...] = ()
    """Columns, or series of a long table, to leave out."""

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Reading:
        """What :func:`dataclasses.asdict` made, by way of JSON."""
        fields = dict(stored)
        fields["columns"], fields["drop"] = Columns(**stored["columns"]), tuple(stored["drop"])
        return cls(**fields)


@dataclass(frozen=True)
class _Series:
    """One series on its own calendar."""

    name: str
    values: np.ndarray  # (T,) float64
    stamps: pd.DatetimeIndex  # (T,) with a frequency
    notes: tuple[str, ...] = ()


def read_panels(source: Any, reading: Reading | None = None, *, usual: str | None = None) -> list[Panel]:
    """Read a table as panels: series with the same time stamps share one, others get their own.

    Args:
        source: a path, a pandas frame or series, or another table that speaks Arrow.
        reading: how it is read.
        usual: the frequency of series that are too short to show theirs.

    Raises:
        DataError: a table that cannot be used as it is.
    """
    reading = reading or Reading()
    if reading.season is not None and reading.season < 1:
        raise DataError(f"season: found {reading.season}, expected 1 or more rows")
    table = read_table(source, reading.columns)
    time = _time_column(table, reading.columns.time)
    long = reading.columns.id in table.cells.columns and reading.columns.target in table.cells.columns
    if not long and reading.columns.id in table.cells.columns:
        raise DataError(
            f"{table.place}: found {reading.columns.id!r} but no {reading.columns.target!r}: a long table needs the "
            f"columns {reading.columns.id}, {time}, {reading.columns.target}"
        )
    dropped = [name for name in reading.drop if name in table.cells.columns]
    if len(dropped) < len(reading.drop) and not long:
        absent = next(name for name in reading.drop if name not in dropped)
        raise DataError(f"{table.place}: no column {absent!r} to drop, found {listed(table.cells.columns)}")
    table = replace(table, cells=table.cells.drop(columns=dropped))
    stamps, notes = read_stamps(table.cells[time], time, table.place, table.numbers)
    parts = _long(table, time, stamps, reading) if long else _wide(table, time, stamps, reading)
    series = list(_on_calendar(list(parts), table.place, reading, usual))
    said = (*table.notes, *notes, *_unused_columns(table, time, reading, long=long))
    return _grouped(series, table.place, reading, said)


@dataclass(frozen=True)
class _Part:
    """The rows of one series, or of all channels of a wide table."""

    names: tuple[str, ...]
    values: np.ndarray  # (T, C), NaN for what is missing
    stamps: pd.DatetimeIndex
    rows: np.ndarray  # (T,) numbers of the rows for messages
    where: str  # of the part, for messages


def _wide(table: Table, time: str, stamps: pd.DatetimeIndex, reading: Reading) -> Iterator[_Part]:
    values = table.cells.drop(columns=time)
    if values.columns.empty:
        raise DataError(f"{table.place}: only the time column {time!r} was found: add at least one column of values")
    names = [name for name in values.columns if not values[name].isna().all()]
    if not names:
        raise DataError(f"{table.place}: found no value in any column, expected numbers: fill them in")
    columns = [_numbers(values[name], f"column {name!r}", table, table.numbers, reading) for name in names]
    yield _Part(tuple(names), np.stack(columns, axis=1), stamps, table.numbers, table.place)


def _long(table: Table, time: str, stamps: pd.DatetimeIndex, reading: Reading) -> Iterator[_Part]:
    names = read_ids(table.cells[reading.columns.id], reading.columns.id, table.place, table.numbers)
    numbers = table.numbers
    codes, found = pd.factorize(names, sort=True)
    left_out = [name for name in reading.drop if name not in table.cells.columns]
    for name in left_out:
        if name not in found:
            raise DataError(f"{table.place}: no column or series {name!r} to drop, found {listed(list(found))}")
    order = np.argsort(codes, kind="stable")
    borders = np.searchsorted(codes[order], np.arange(len(found) + 1))
    target = table.cells[reading.columns.target]
    for index, name in enumerate(found):
        if name in left_out:
            continue
        rows = order[borders[index] : borders[index + 1]]
        what = f"series {name!r}, column {reading.columns.target!r}"
        values = _numbers(target.iloc[rows], what, table, numbers[rows], reading)
        yield _Part((str(name),), values[:, None], stamps[rows], numbers[rows], f"{table.place}, series {name!r}")


def read_ids(column: pd.Series, name: str, place: str, rows: np.ndarray) -> np.ndarray:
    """Ids as text, exactly as they are written: ``NA``, ``007`` and ``1.0`` are names of their own.

    Raises:
        DataError: an empty id; two ids of one text, such as 1 and "1"; whole numbers that float64 does not tell apart.
    """
    cells = column.astype(object).to_numpy()
    texts = np.empty(len(cells), dtype=object)
    kinds: dict[Any, type] = {}  # of each text, and of each number: 1, 1.0 and True are one
    for index, cell in enumerate(cells):
        row = f"{at(place, rows[index])}, column {name!r}"
        if (pd.api.types.is_scalar(cell) and pd.isna(cell)) or not str(cell).strip():
            raise DataError(f"{row}: found no id, expected the name of the series")
        if isinstance(cell, float | np.floating) and not abs(cell) < _EXACT:
            raise DataError(
                f"{row}: found {cell!r}, a number that stands for several ids above 2**53, expected text: read the "
                "column as text"
            )
        text, kind = str(cell), str if isinstance(cell, str) else type(cell)
        same = [text] if isinstance(cell, str) or not isinstance(cell, Hashable) else [text, (cell,)]
        other = next((kinds[key] for key in same if kinds.setdefault(key, kind) is not kind), None)
        if other is not None:
            raise DataError(
                f"{row}: found {text} as {kind.__name__} and as {other.__name__}, expected one of them: write all ids "
                "as text"
            )
        texts[index] = text
    return texts


def _time_column(table: Table, asked: str | None) -> str:
    names = list(table.cells.columns)
    if asked is not None:
        if asked not in names:
            raise DataError(f"{table.place}: no time column {asked!r}, found {listed(names)}: name it with --time")
        return asked
    if table.time is not None:
        return table.time
    for name in names:
        if name.strip().lower() in TIME_NAMES:
            return name
    for name in names:
        if pd.api.types.is_datetime64_any_dtype(table.cells[name]) or isinstance(
            table.cells[name].dtype, pd.PeriodDtype
        ):
            return name
    raise DataError(
        f"{table.place}: no time column ({', '.join(TIME_NAMES)}), found {listed(names)}: name it with --time"
    )


def _numbers(column: pd.Series, where: str, table: Table, rows: np.ndarray, reading: Reading) -> np.ndarray:
    place = table.place
    dtype = column.dtype
    if (
        pd.api.types.is_datetime64_any_dtype(dtype)
        or pd.api.types.is_timedelta64_dtype(dtype)
        or pd.api.types.is_complex_dtype(dtype)
        or isinstance(dtype, pd.PeriodDtype)
    ):
        found = f"{column.iloc[0]} ({dtype})"
        raise DataError(f"{place}, {where}: found {found}, expected numbers: drop the column (--drop {column.name})")
    try:
        if isinstance(dtype, pd.CategoricalDtype):
            column = column.astype(object)
        if column.dtype == object:
            kinds = column.map(lambda cell: isinstance(cell, str | Real | Decimal) or cell is None or cell is pd.NA)
            odd = np.flatnonzero(~kinds.to_numpy(bool))
            if len(odd):
                found = repr(column.iloc[odd[0]])[:40]
                raise DataError(
                    f"{at(place, rows[odd[0]])}, {where}: found {found}, expected a number: correct it or drop it"
                )
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    except DataError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{place}, {where}: found cells that are no numbers ({error}): correct or drop them") from error
    given = column.notna().to_numpy() & (column.astype(str).str.strip() != "").to_numpy()
    text = np.flatnonzero(np.isnan(numbers) & given)
    if len(text):
        found = column.iloc[text[0]]
        raise DataError(
            f"{at(place, rows[text[0]])}, {where}: found {found!r}, expected a number: correct it or drop it"
        )
    if reading.missing is not None:
        numbers = np.where(numbers == reading.missing, np.nan, numbers)
    wrong = np.flatnonzero(np.isinf(numbers) | (np.isnan(numbers) & (reading.fill is None)))
    if len(wrong):
        what = "no value" if np.isnan(numbers[wrong[0]]) else "an infinite value"
        raise DataError(
            f"{at(place, rows[wrong[0]])}, {where}: found {what} ({len(wrong)} in all), expected a number: fill "
            "it in, or interpolate (--fill interpolate)"
        )
    if np.isnan(numbers).all():
        raise DataError(f"{place}, {where} has no values at all: drop it")
    return numbers


def _on_calendar(parts: list[_Part], place: str, reading: Reading, usual: str | None) -> Iterator[_Series]:
    """Each part on its own grid; a part too short to show its frequency takes the most common one of the table."""
    for part in parts:
        _check_order(part, place)
    grids: list[Grid | None] = [
        find_grid(part.stamps) if reading.freq is None else Grid.spanning(part.stamps, reading.freq) for part in parts
    ]
    common = Counter(grid.freq for grid in grids if grid is not None).most_common(1)
    usual = common[0][0] if common else usual
    for part, found in zip(parts, grids, strict=True):
        grid = found
        if grid is None and len(part.stamps) < 3:
            if usual is None:
                raise DataError(
                    f"{part.where} has {len(part.stamps)} rows: at least 3 are needed to know the frequency"
                )
            grid = Grid.spanning(part.stamps, usual)
        elif grid is None:
            grid = Grid.spanning(part.stamps, usual_step(part.stamps))
        yield from _regular(part, grid, place, reading)


def _check_order(part: _Part, place: str) -> None:
    late = np.flatnonzero(np.diff(part.stamps.asi8) <= 0)
    if len(late):
        index = late[0] + 1
        again = part.stamps[index] == part.stamps[index - 1]
        found = "the stamp of the row before again" if again else "a stamp before the last one"
        fix = "keep one of the two rows" if again else "sort the table by time"
        where = at(place, part.rows[index]) + part.where.removeprefix(place)
        raise DataError(f"{where}: found {found} ({part.stamps[index]}), expected rising stamps: {fix}")


def _regular(part: _Part, grid: Grid, place: str, reading: Reading) -> Iterator[_Series]:
    complete = grid.stamps.equals(part.stamps)
    if not complete and not (reading.fill and grid.holds(part.stamps)):
        expected = pd.date_range(part.stamps[0], periods=len(part.stamps), freq=grid.freq)
        wrong = int(np.flatnonzero(part.stamps != expected)[0])
        where = at(place, part.rows[wrong]) + part.where.removeprefix(place)
        raise DataError(
            f"{where}: found {part.stamps[wrong]}, expected {expected[wrong]} at "
            f"frequency {grid.freq}: add the missing rows (--fill interpolate), correct the stamp, or name the "
            "frequency (--freq)"
        )
    frame = pd.DataFrame(part.values, index=part.stamps, columns=list(part.names))
    filled = len(grid.stamps) - len(frame)
    notes: tuple[str, ...] = ()
    if filled:
        first = grid.stamps[~grid.stamps.isin(part.stamps)][0]
        notes = (
            f"{part.where}: {filled} of {len(grid.stamps)} rows at frequency {grid.freq} were missing and are "
            f"interpolated, the first {first}",
        )
        frame = frame.reindex(grid.stamps)
    empty = int(np.isnan(part.values).sum())
    if empty:
        notes += (f"{part.where}: {empty} cells without a value are interpolated",)
    if reading.fill:
        frame = frame.interpolate(limit_direction="both")
    for index, name in enumerate(part.names):
        values = frame.iloc[:, index].to_numpy(np.float64)
        yield _Series(name, values, grid.stamps, notes if index == 0 else ())


def _unused_columns(table: Table, time: str, reading: Reading, *, long: bool) -> Iterator[str]:
    """What happens to columns that may have been meant as something else."""
    columns = reading.columns
    empty = [name for name in table.cells.columns if not long and table.cells[name].isna().all()]
    if empty:
        yield f"{table.place}: columns without any value are left out: {listed(empty)}"
    others = [name for name in table.cells.columns if name not in (time, columns.target, columns.id)]
    if long and others:
        yield f"{table.place}: further columns are not used: {listed(others)}"
    elif columns.target in table.cells.columns and others:
        yield (
            f"{table.place}: {listed(others)} are forecast as series of their own, beside {columns.target!r}: drop "
            "them (--drop) if they explain it"
        )


def _grouped(series: list[_Series], place: str, reading: Reading, notes: tuple[str, ...]) -> list[Panel]:
    groups: dict[tuple[Any, ...], list[_Series]] = {}
    for one in series:
        groups.setdefault((one.stamps[0], one.stamps[-1], len(one.stamps), one.stamps.freqstr), []).append(one)
    name = Path(place).name.split(".")[0] if place != IN_MEMORY else "series"
    panels = []
    for members in groups.values():
        stamps = members[0].stamps
        freq = stamps.freqstr
        season = reading.season if reading.season is not None else season_of(freq)
        held = [(one.name, int((one.values == SENTINEL).sum())) for one in members]
        own = [note for one in members for note in one.notes]
        own += [
            f"{place}, column {column!r} holds {SENTINEL:g} in {count} rows, often a sign for 'missing': if it is one, "
            f"--missing {SENTINEL:g} --fill interpolate"
            for column, count in held
            if count
        ]
        values = np.stack([one.values for one in members], axis=1)
        names = tuple(one.name for one in members)
        panels.append(Panel(values, names, stamps, season, name=name, notes=(*notes, *own)))
        notes = ()  # of the table: said once
    return panels
