"""Read any user's table into panels: long (``unique_id, ds, y``) or wide (a time column, one column a channel).

Every table takes the same steps: cells as written, ids as text, time stamps, each series on its own regular time axis,
panels of the series with the same axis. Bad input never yields a number. Each fault raises :class:`DataError` with the
file, the line (as in an editor; the header is line 1) or the row, what was found, and how to fix it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.forecasting.series.cells import IN_MEMORY, Cells, Columns, listed, read_cells
from manyheads.forecasting.series.columns import id_texts, numbers
from manyheads.forecasting.series.frequencies import axis, is_complete, offset_of, recognise, season_of
from manyheads.forecasting.series.panels import SENTINEL, Panel
from manyheads.forecasting.series.stamps import read_stamps

Table = Any
"""Input of :func:`read_panels`: a path, a pandas frame or series, or another table with the Arrow interface."""


@dataclass(frozen=True)
class Reading:
    """Options for reading a table."""

    columns: Columns = field(default_factory=Columns)
    freq: str | None = None
    """Frequency as a pandas alias (h, 15min, D, W, MS); recognised from the stamps by default."""
    season: int | None = None
    """Rows in one season (24 for hourly data); from the frequency by default."""
    missing: float | None = None
    """Number that stands for a missing value, such as -9999."""
    fill: Literal["interpolate"] | None = None
    """Fill missing values and missing stamps; by default they are an error."""
    drop: tuple[str, ...] = ()
    """Columns, or series of a long table, to leave out."""
    zone: str | None = None
    """Time zone, such as Europe/Berlin, for stamps written with an offset from UTC."""


@dataclass(frozen=True)
class Observed:
    """One series as in the table; NaN is a missing value."""

    name: str
    what: str  # name of the series in errors
    stamps: pd.DatetimeIndex
    values: np.ndarray
    rows: np.ndarray  # row numbers in the table


@dataclass(frozen=True)
class Regular:
    """One series on its regular time axis, without gaps."""

    name: str
    freq: str
    stamps: pd.DatetimeIndex
    values: np.ndarray
    rows_filled: int
    first_filled: pd.Timestamp | None
    values_filled: int


def read_panels(source: Table, reading: Reading | None = None, *, usual_freq: str | None = None) -> list[Panel]:
    """Read a table into panels: series with the same time stamps share one panel, others get their own.

    Args:
        source: path of a CSV (also .gz, .xz, .bz2, .zip) or parquet file, DataFrame, Series, polars or pyarrow table.
        reading: options for reading it.
        usual_freq: frequency for the series that fit it, also if they are too short to show a frequency.

    Raises:
        DataError: any fault of the table, with its place and the fix.
        MissingPackageError: pyarrow is needed and not installed.
    """
    reading = reading or Reading()
    cells = read_cells(source, reading.columns)
    if cells.frame.empty:
        raise DataError(f"{cells.place} has no rows below its header: give at least two seasons of data")
    found, notes = _observed(cells, reading)
    kept = [series for series in found if not np.isnan(series.values).all()]
    if not found:
        raise DataError(f"{cells.place}: every series is dropped, expected one at least: drop fewer")
    if not kept:
        raise DataError(f"{cells.place}, {found[0].what} has no values at all: give some")
    empty = [series.name for series in found if np.isnan(series.values).all()]
    if empty:
        notes += (f"{cells.place}: series and columns without any value are left out: {listed(empty)}",)
    regular = _on_axes(kept, cells, reading, usual_freq)
    return _panels(regular, cells.place, reading, notes)


def _observed(cells: Cells, reading: Reading) -> tuple[list[Observed], tuple[str, ...]]:
    """The series of a table, in the order of their ids or columns, and notes."""
    columns, place = reading.columns, cells.place
    if columns.id in cells.frame and columns.target not in cells.frame:
        raise DataError(
            f"{place}: found {columns.id!r} but no {columns.target!r}: a long table needs the columns {columns.id}, "
            f"{cells.time}, {columns.target}"
        )
    long = columns.id in cells.frame
    ids = id_texts(cells, columns.id) if long else None
    found = list(cells.frame.columns) if ids is None else sorted(set(ids))
    for name in reading.drop:
        if name not in found and name not in cells.frame:
            kind = "column or series" if long else "column"
            raise DataError(f"{place}: no {kind} {name!r} to drop, found {listed(found)}")
    if long and columns.target in reading.drop:
        raise DataError(
            f"{place}: drop: found {columns.target!r}, the column of the values, expected another: leave it out"
        )
    cells = cells.without([name for name in reading.drop if name in cells.frame and name != cells.time])
    stamps, notes = read_stamps(cells.frame[cells.time], cells.time, cells.at, reading.zone)
    notes = cells.notes + notes
    if ids is None:
        others = [name for name in cells.frame if name != cells.time]
        if not others:
            raise DataError(
                f"{place}: only the time column {cells.time!r} was found: add at least one column of values"
            )
        if columns.target in others and len(others) > 1:
            listing = listed([name for name in others if name != columns.target])
            notes += (
                f"{place}: {listing} are forecast as series of their own, beside {columns.target!r}: drop them "
                "(--drop) if they explain it",
            )
        rows = np.arange(len(cells.frame))
        whats = {name: f"column {name!r}" for name in others}
        values = {name: numbers(cells, name, lambda row, n=name: whats[n], reading.missing) for name in others}
        return [Observed(name, whats[name], stamps, values[name], rows) for name in others], notes
    ignored = [name for name in cells.frame if name not in (columns.id, cells.time, columns.target)]
    if ignored:
        notes += (f"{place}: further columns are not used: {listed(ignored)}",)
    what = f"series {{!r}}, column {columns.target!r}"
    values = numbers(cells, columns.target, lambda row: what.format(ids[row]), reading.missing)
    order = pd.Series(np.arange(len(ids))).groupby(ids, sort=True).indices
    return [
        Observed(str(name), what.format(name), stamps[rows], values[rows], rows)
        for name, rows in order.items()
        if name not in reading.drop
    ], notes


def _on_axes(kept: list[Observed], cells: Cells, reading: Reading, usual: str | None) -> list[Regular]:
    """Put every series on a regular axis of its own stamps.

    Short series take the most usual frequency of the others if their stamps fit it.
    """
    for series in kept:
        _check_rising(series, cells)
    freqs: dict[bytes, str | None] = {}
    for series in kept:
        key = series.stamps.asi8.tobytes()
        if key not in freqs:
            freqs[key] = reading.freq or recognise(series.stamps)
    own = [freqs[series.stamps.asi8.tobytes()] for series in kept]
    counts = Counter[str]()
    for series, freq in zip(kept, own, strict=True):
        counts[freq or ""] += len(series.stamps) if freq else 0
    common = usual or max(counts, key=lambda freq: counts[freq]) or None
    axes: dict[tuple[bytes, str], tuple[str, pd.DatetimeIndex]] = {}
    made = []
    for series, freq in zip(kept, own, strict=True):
        key = (series.stamps.asi8.tobytes(), freq or "")
        if key not in axes:
            axes[key] = _axis(series, freq, common, cells, reading)
        made.append(_filled(series, *axes[key], cells, reading))
    return made


def _check_rising(series: Observed, cells: Cells) -> None:
    unsorted = np.flatnonzero(np.diff(series.stamps.asi8) <= 0)
    if len(unsorted):
        at = unsorted[0] + 1
        again = series.stamps[at] == series.stamps[at - 1]
        found = "the stamp of the row before again" if again else "a stamp before the last one"
        fix = "keep one of the two rows" if again else "sort the table by time"
        raise DataError(
            f"{_where(series, at, cells)}: found {found} ({series.stamps[at]}), expected rising stamps: {fix}"
        )


def _fits_better(stamps: pd.DatetimeIndex, common: str, own: str) -> bool:
    """Return whether the frequency of the other series describes the stamps better than their own.

    It does if all stamps are on its grid, and either leave no gap there or leave gaps on their own grid.
    """
    if is_complete(stamps, common):
        return True
    return not is_complete(stamps, own) and bool(stamps.isin(axis(common, stamps[0], stamps[-1])).all())


def _where(series: Observed, row: int, cells: Cells) -> str:
    """The place of a stamp for errors, with the series in a long table."""
    own = f", series {series.name!r}" if series.what.startswith("series") else ""
    return f"{cells.at(int(series.rows[row]))}{own}"


def _axis(
    series: Observed, freq: str | None, common: str | None, cells: Cells, reading: Reading
) -> tuple[str, pd.DatetimeIndex]:
    """The frequency and the regular axis of one series; raises :class:`DataError` for stamps that do not fit."""
    stamps = series.stamps
    if common is not None and common != freq and (freq is None or _fits_better(stamps, common, freq)):
        freq = common
    if freq is None:
        raise DataError(
            f"{cells.place}, {series.what} has {len(stamps)} rows: at least 3 are needed to know the frequency (--freq)"
        )
    offset_of(freq)
    expected = axis(freq, stamps[0], periods=len(stamps))
    wrong = np.flatnonzero(stamps != expected)
    if not len(wrong):
        return freq, expected
    grid = axis(freq, stamps[0], stamps[-1])
    off_grid = np.flatnonzero(~stamps.isin(grid))
    at = int(off_grid[0] if len(off_grid) else wrong[0])
    row = _where(series, at, cells)
    if reading.freq is None and 2 * len(off_grid) > len(stamps):
        fix = "date each row by the first day of its month"
        if len(set(stamps.day)) > 1:
            fix = "resample them, or name the frequency (--freq)"
        raise DataError(
            f"{row}: found {len(off_grid)} of {len(stamps)} stamps apart from {freq}, the most usual step, expected "
            f"rows at one frequency: {fix}"
        )
    if len(off_grid):
        nearest = grid[min(grid.searchsorted(stamps[at]), len(grid) - 1)] if len(grid) else expected[at]
        correct = expected[at] if at == wrong[0] else nearest
        raise DataError(
            f"{row}: found {stamps[at]}, expected {correct} at frequency {freq}: add the missing rows (--fill "
            "interpolate), correct the stamp, or name the frequency (--freq)"
        )
    if reading.fill is None:
        raise DataError(
            f"{row}: found {stamps[at]}, expected {expected[at]} at frequency {freq}: add the missing rows "
            "(--fill interpolate), or name the frequency (--freq)"
        )
    if reading.freq is None and len(grid) > 2 * len(stamps):
        raise DataError(
            f"{row}: found {stamps[at]}, expected {expected[at]}: {len(grid) - len(stamps)} of {len(grid)} rows at "
            f"frequency {freq} are missing: name the frequency (--freq), or add rows"
        )
    return freq, grid


def _filled(series: Observed, freq: str, stamps: pd.DatetimeIndex, cells: Cells, reading: Reading) -> Regular:
    """Interpolate missing rows and values linearly if ``fill`` is set; else a missing value raises."""
    known = ~np.isnan(series.values)
    if reading.fill is None and not known.all():
        row = int(np.argmin(known))
        raise DataError(
            f"{cells.at(series.rows[row])}, {series.what}: found no value ({int((~known).sum())} in all), expected a "
            "number: fill it in, or interpolate (--fill interpolate)"
        )
    places = np.arange(len(stamps)) if len(stamps) == len(known) else stamps.get_indexer(series.stamps)
    values = np.interp(np.arange(len(stamps)), places[known], series.values[known])
    filled = len(stamps) - len(known)
    first = stamps[np.argmin(np.isin(np.arange(len(stamps)), places))] if filled else None
    return Regular(series.name, freq, stamps, values, filled, first, int((~known).sum()))


def _panels(regular: list[Regular], place: str, reading: Reading, notes: tuple[str, ...]) -> list[Panel]:
    """Join the series with the same axis into one panel."""
    groups: dict[tuple[str, pd.Timestamp, int], list[Regular]] = {}
    for series in regular:
        groups.setdefault((series.freq, series.stamps[0], len(series.stamps)), []).append(series)
    name = Path(place).name.split(".")[0] if place != IN_MEMORY else "series"
    panels = []
    for (freq, _, _), members in groups.items():
        season = reading.season if reading.season is not None else season_of(freq)
        if season < 1 or season != int(season):
            raise DataError(f"season: found {season}, expected 1 or more rows")
        values = np.stack([series.values for series in members], axis=1)
        sentinels = [note for series in members if (note := _sentinel_note(series, place))]
        panels.append(
            Panel(
                values,
                tuple(series.name for series in members),
                members[0].stamps,
                season,
                name=name,
                notes=(*_fill_notes(members, place), *sentinels),
                freq=freq,
            )
        )
    return [replace(panels[0], notes=notes + panels[0].notes), *panels[1:]]


def _fill_notes(members: list[Regular], place: str) -> tuple[str, ...]:
    """Notes on filled rows and cells; channels with the same missing rows share one note."""
    notes = []
    rows = {(one.rows_filled, one.first_filled): [] for one in members if one.rows_filled}
    for one in members:
        if one.rows_filled:
            rows[one.rows_filled, one.first_filled].append(one.name)
    for (filled, first), names in rows.items():
        notes.append(
            f"{place}, {listed(names)}: {filled} of {len(members[0].stamps)} rows at frequency {members[0].freq} were "
            f"missing and are interpolated, the first {first}"
        )
    cells = [f"{one.name} {one.values_filled}" for one in members if one.values_filled]
    if cells:
        notes.append(f"{place}: cells without a value are interpolated: {listed(cells)}")
    return tuple(notes)


def _sentinel_note(series: Regular, place: str) -> str | None:
    hits = int((series.values == SENTINEL).sum())
    if not hits:
        return None
    return (
        f"{place}, column {series.name!r} holds {SENTINEL:g} in {hits} rows, often a sign for 'missing': if it is one, "
        f"--missing {SENTINEL:g} --fill interpolate"
    )
