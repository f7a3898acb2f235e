"""The benchmark sets as panels, with the splits, seasons and standardisation of 2205.13504.

- ETTh: train rows [0, 8640), validation [8640, 11520), test [11520, 14400): 12, 4 and 4 months of 30 days. The rest of
  the file is not used. ETTm: four times as many rows.
- All others: the first 70 % of the rows (rounded down) train, the last 20 % (rounded down) test, the rows between them
  validation.

Channels are standardised by the mean and the population standard deviation of the train rows. All errors of the
benchmark are on standardised values.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.forecasting.datasets.catalogue import datasets
from manyheads.forecasting.series.panels import SENTINEL, History, Panel, Scaler, Split
from manyheads.lab.data.registry import find, read

SEASONS = {
    "ETTh1": 24,
    "ETTh2": 24,
    "ETTm1": 96,
    "ETTm2": 96,
    "weather": 144,
    "exchange_rate": 5,
    "national_illness": 52,
}
SEASONS |= {"electricity": 24, "traffic": 24}
SHAPES = {"electricity": (26304, 321), "traffic": (17544, 862)}
_MONTH = 30 * 24  # rows of hourly data
_DATE_FORMATS = {"exchange_rate": "%Y/%m/%d %H:%M"}


def load_set(name: str, *, clean: bool = False) -> Panel:
    """Load the benchmark set ``name`` in its original units, with its split.

    Faults of the data are reported in ``Panel.notes`` and kept, because the published figures include them.
    ``clean=True`` repairs them: sentinels and missing stamps are interpolated, duplicate stamps dropped.

    Raises:
        UnknownNameError: an unknown set.
        DataError: a set that is not here, or a file that is not the published one.
    """
    dataset = find(name, datasets)
    text = read(dataset).decode("utf-8", errors="replace")
    try:
        frame = pd.read_csv(io.StringIO(text))
        stamps = pd.to_datetime(frame.iloc[:, 0], format=_DATE_FORMATS.get(dataset.name, "%Y-%m-%d %H:%M:%S"))
        values = frame.iloc[:, 1:].to_numpy(dtype=np.float64)
    except (ValueError, IndexError, pd.errors.ParserError) as error:
        raise DataError(f"data set {dataset.name!r} is not the CSV that was expected: {error}") from error
    expected = SHAPES.get(dataset.name)
    if expected and values.shape != expected:
        raise DataError(
            f"data set {dataset.name!r} has shape {values.shape}, expected {expected}: take the published file"
        )
    panel = Panel(
        values=values,
        channels=tuple(str(column) for column in frame.columns[1:]),
        stamps=pd.DatetimeIndex(stamps),
        season=SEASONS[dataset.name],
        name=dataset.name,
    )
    panel = replace(panel, notes=oddities(panel))
    if clean:
        panel = cleaned(panel)
    return replace(panel, split=benchmark_split(dataset.name, panel.rows))


def benchmark_split(name: str, rows: int) -> Split:
    """The split of the paper for the set ``name``; 70 / 10 / 20 % for any set that is not ETT."""
    if name.startswith("ETT"):
        month = _MONTH * (4 if name.startswith("ETTm") else 1)
        return Split(12 * month, 16 * month, 20 * month)
    train, test = int(rows * 0.7), int(rows * 0.2)
    return Split(train, rows - test, rows)


def standardise(panel: Panel) -> tuple[np.ndarray, Scaler]:
    """Values ``(T, C)`` standardised by the train rows, and the scaler that undoes it."""
    if panel.split is None:
        raise DataError(f"{panel.name} has no split into train, validation and test: give it one")
    scaler = Scaler.fit(panel.values[: panel.split.train_end])
    return scaler.transform(panel.values), scaler


def history(panel: Panel) -> History:
    """The rows before the test part, standardised: all that a model may use."""
    values, _ = standardise(panel)
    assert panel.split is not None
    return History(values[: panel.split.validation_end], panel.split.train_end, panel.season)


def oddities(panel: Panel) -> tuple[str, ...]:
    """Notes on faults of the data: sentinels, duplicate and missing time stamps, an unknown encoding."""
    notes = []
    hits = (panel.values == SENTINEL).sum(axis=0)
    for channel, count in zip(panel.channels, hits, strict=True):
        if count:
            notes.append(f"column {channel!r} holds the sentinel {SENTINEL:g} in {count} rows")
    duplicates = int(panel.stamps.duplicated().sum())
    if duplicates:
        notes.append(f"{duplicates} duplicate time stamps, first {panel.stamps[panel.stamps.duplicated()][0]}")
    step = pd.Series(panel.stamps).diff().median()
    missing = len(pd.date_range(panel.stamps[0], panel.stamps[-1], freq=step)) - panel.stamps.nunique()
    if missing > 0:
        notes.append(f"{missing} missing time stamps")
    if any("\ufffd" in channel for channel in panel.channels):
        notes.append("the header holds characters in an unknown encoding")
    return tuple(notes)


def cleaned(panel: Panel) -> Panel:
    """The panel with sentinels and missing stamps interpolated and duplicate stamps dropped."""
    frame = pd.DataFrame(panel.values, index=panel.stamps, columns=list(panel.channels)).replace(SENTINEL, np.nan)
    frame = frame[~frame.index.duplicated()]
    step = pd.Series(panel.stamps).diff().median()
    frame = frame.reindex(pd.date_range(frame.index[0], frame.index[-1], freq=step)).interpolate(limit_direction="both")
    notes = (*panel.notes, "cleaned: sentinels and gaps interpolated, duplicates dropped") if panel.notes else ()
    return replace(panel, values=frame.to_numpy(), stamps=pd.DatetimeIndex(frame.index), notes=notes)
