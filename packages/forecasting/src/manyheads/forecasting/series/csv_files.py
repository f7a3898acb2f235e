"""Read a CSV of any separator, decimal mark and encoding: ids and stamps as text, values as numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.forecasting.series.stamps import reads_as_dates

TIME_NAMES = ("ds", "date", "time", "timestamp", "datetime")
# the words that pandas reads as a missing number
MISSING = ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A")
MISSING += ("NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null")
_SEPARATORS = ("\t", ";", "|", ",")  # the first wins a tie: a comma may also be part of a cell
_COMMA = r"[+-]?\d[\d.]*,\d+([eE][+-]?\d+)?"
_GROUPED = r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?"
_UNCLEAR = r"[+-]?[1-9]\d{0,2}[.,]\d{3}"


def read_csv(
    raw: bytes, place: str, *, id_name: str, time_name: str | None, target: str
) -> tuple[pd.DataFrame, np.ndarray, tuple[str, ...]]:
    """The cells, the line number of each row, and notes. Raises :class:`DataError` for anything but a CSV."""
    text, notes = _text(raw, place)
    body = text.lstrip("\r\n")
    first = 2 + text[: len(text) - len(body)].count("\n")
    # a first line such as "sep=;" is the hint for Excel
    hint = re.match(r"sep=([,;|\t])\r?\n", body)
    if hint:
        body, first = body[hint.end() :], first + 1
    separator = hint[1] if hint else _separator(body)
    try:
        header = _parsed(body, separator, header=None, nrows=1, dtype=str).iloc[0]
        names = [str(name).strip() for name in header]
        check_unique([name for name in names if name], place)
        written = [
            n for n, name in enumerate(names) if not name or name in (id_name, time_name) or name.lower() in TIME_NAMES
        ]
        frame = _parsed(
            body,
            separator,
            header=0,
            names=range(len(names)),
            dtype=dict.fromkeys(written, str),
            na_values={n: list(MISSING) for n in range(len(names)) if n not in written},
            low_memory=False,
        )
        if not isinstance(frame.index, pd.RangeIndex):
            raise DataError(
                f"{place} is not a CSV file: found {len(names) + frame.index.nlevels} cells in the second line and "
                f"{len(names)} names in the header, expected as many: give each column a name"
            )
        if separator != ",":
            values = [n for n, name in enumerate(names) if n not in written]
            if id_name in names and target in names:
                values = [names.index(target)]
            texts = _parsed(body, separator, header=0, names=range(len(names)), dtype=str) if values else frame
            _decimal_commas(frame, texts, {n: names[n] for n in values}, place)
    except (ValueError, OverflowError, pd.errors.ParserError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{place} is not a CSV file: {one_line(error)}: give a table with commas") from error
    blank = np.logical_and.reduce([(column.isna() | (column == "")).to_numpy() for _, column in frame.items()])
    kept = frame[~blank].reset_index(drop=True)
    named, more = _without_nameless(kept, names, place)
    return named, np.flatnonzero(~blank) + first, notes + more


def check_unique(names: Sequence[str], place: str) -> None:
    """Raise :class:`DataError` for a duplicate name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{place}: column {twice!r} is there twice, expected once: rename or drop one of them")


def one_line(error: BaseException) -> str:
    """The message of a library's error in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _text(raw: bytes, place: str) -> tuple[str, tuple[str, ...]]:
    """Decode UTF-8, UTF-16 with a byte order mark, or else Latin-1, with a note."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            text, notes = raw.decode("utf-16"), ()
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: begins as UTF-16 and is none ({error.reason}): save it as UTF-8") from error
    elif b"\x00" in raw:
        raise DataError(f"{place} is not a CSV file (it holds binary data): give a text table with commas")
    else:
        try:
            text, notes = raw.decode("utf-8-sig"), ()
        except UnicodeDecodeError:
            text, notes = raw.decode("latin-1"), (f"{place} is no UTF-8: its text is read as Latin-1",)
    if not text.strip():
        raise DataError(f"{place} is empty: give a CSV file with a header and rows")
    return text, notes


def _separator(body: str) -> str:
    """The separator that gives the header and the first rows the same, and the largest, number of cells."""
    lines = [line for line in body[: 1 << 20].splitlines() if line.strip()][:20]
    best, most = ",", (False, 1)
    for separator in _SEPARATORS:
        try:
            counts = [len(row) for row in csv.reader(lines, delimiter=separator)]
        except csv.Error:
            continue
        found = (len(set(counts)) == 1, counts[0])
        if counts[0] > 1 and found > most:
            best, most = separator, found
    return best


def _parsed(body: str, separator: str, **options: Any) -> pd.DataFrame:
    # blank lines are kept, so that row numbers are line numbers
    return pd.read_csv(io.StringIO(body), sep=separator, keep_default_na=False, skip_blank_lines=False, **options)


def _decimal_commas(frame: pd.DataFrame, texts: pd.DataFrame, values: dict[int, str], place: str) -> None:
    """Convert numbers such as 1,5 and 1.234,5 in place, in a file whose separator is not a comma.

    A decimal comma in one column of values decides for all of them. Raises :class:`DataError` if a comma or a point may
    be a decimal mark or a thousands separator.
    """
    stripped = {n: texts[n].fillna("").str.strip() for n in values}
    if not any(
        column.str.fullmatch(_COMMA).any() for n, column in stripped.items() if frame[n].dtype.kind not in "fiu"
    ):
        return
    for n, column in stripped.items():
        given = column[~column.isin(MISSING)]
        commas, points = given[given.str.contains(",")], given[given.str.contains(".", regex=False)]
        marked = commas if len(commas) else points
        if not len(marked) or not given.str.fullmatch(_GROUPED).all():
            # read already, or the first cell that is not a number raises later
            continue
        if marked.str.fullmatch(_UNCLEAR).all():
            sign = "comma" if len(commas) else "point"
            raise DataError(
                f"{place}, column {values[n]!r}: {marked.iloc[0]} may be a decimal {sign} or group the thousands: "
                "write decimals with a point, and thousands as they are"
            )
        if len(commas) or points.str.count(r"\.").max() > 1:
            plain = given.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
            frame[n] = pd.to_numeric(plain).reindex(frame.index)


def _without_nameless(frame: pd.DataFrame, names: list[str], place: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Resolve columns without a name: drop empty ones and row numbers, take stamps as the time column."""
    kept, notes = list(names), []
    for number in [n for n, name in enumerate(names) if not name]:
        column = frame[number].fillna("")
        if (column == "").all():
            pass
        elif list(column) == [str(row) for row in range(len(column))]:
            notes.append(f"{place}: column {number + 1} has no name and counts the rows: it is not read")
        elif number == 0 and not any(name.lower() in TIME_NAMES for name in names) and reads_as_dates(column):
            kept[number] = "ds"
            continue
        else:
            raise DataError(f"{place}: column {number + 1} has no name in the header, expected one: give it one")
        frame = frame.drop(columns=number)
    return frame.set_axis([kept[number] for number in frame.columns], axis=1), tuple(notes)
