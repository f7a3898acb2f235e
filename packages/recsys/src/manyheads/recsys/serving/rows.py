"""Rows as JSON gives them, encoded without a table: for one row a hundredth of the time that a DataFrame takes.

What is encoded is what ``Encoder.arrays`` gives for the same values. What is refused is more: every field must be there
(null where it is not known), no other may, and a value must be of the kind that the model was fitted with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError, UnknownNameError
from manyheads.recsys.columns import Family, as_family
from manyheads.recsys.encoder import Arrays, Encoder
from manyheads.recsys.features import Field, part_of
from manyheads.recsys.layout import FIRST, MISSING, PADDING, UNSEEN
from manyheads.recsys.vocabulary import Vocabulary, hashed

Row = Mapping[str, Any]
_DIRECT: dict[Family, set[type]] = {"text": {str, type(None)}, "integer": {int, type(None)}}
_WHOLE = 2**63  # what the encoder's integers hold


class RowEncoder:
    """Encodes rows that are mappings from the encoder's fields to values."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.fields = encoder.spec.fields
        self.columns = encoder.spec.columns
        self._known = frozenset(self.columns)
        self._lookups = {one.name: self._lookup(one) for one in self.fields if one.kind in ("categorical", "multi")}
        self._places = {one.name: found for one in self.fields if (found := self._direct(one)) is not None}

    def arrays(self, rows: Sequence[Row], place: str = "row") -> Arrays:
        """Raises :class:`DataError` naming row and field, what was found and what was expected, and
        :class:`UnknownNameError` for a field that the model does not have."""
        if not rows:
            raise DataError(f"{place}s: found none, expected at least one")
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise DataError(f"{place} {number}: found {_kind(row)}, expected an object of fields and values")
            if row.keys() != self._known:
                self._complain(row, f"{place} {number}")
        ids, numbers, unseen, missing = [], [], {}, {}
        for one in self.fields:
            cells = [row[one.name] for row in rows]
            if one.kind == "numeric":
                values, gone = self._checked(cells, one, place)
                table = np.array([0.0 if v is None else v for v in values], np.float64)
                numbers.append(self.encoder.scaled(table, gone, one))
            elif one.kind == "time":
                gone = self._times(cells, one, place, ids)
            else:
                found, gone = self._identify(cells, one, place)
                unseen[one.name] = int((found == UNSEEN).sum())
                ids.append(found)
            missing[one.name] = int(gone.sum())
        count = len(rows)
        id_table = np.concatenate(ids, 1).astype(np.int32) if ids else np.zeros((count, 0), np.int32)
        with np.errstate(over="ignore"):  # what is too large for the network is told from its score
            number_table = np.stack(numbers, 1).astype(np.float32) if numbers else np.zeros((count, 0), np.float32)
        return Arrays(id_table, number_table, unseen, missing)

    def _identify(self, cells: list[Any], one: Field, place: str) -> tuple[np.ndarray, np.ndarray]:
        places = self._places.get(one.name)
        if places is not None and set(map(type, cells)) <= _DIRECT[one.family]:
            quick = [places.get(cell, UNSEEN) for cell in cells]
            if one.family == "text" or UNSEEN not in quick:  # an integer may be too large to be one
                found = np.array(quick, np.int64)[:, None]
                return found, found[:, 0] == MISSING
        lookup = self._lookups[one.name]
        values, gone = self._checked(cells, one, place)
        if one.kind == "categorical":
            return np.array([[MISSING] if v is None else [lookup(v)] for v in values], np.int64), gone
        found = np.full((len(cells), one.max_values), PADDING, np.int64)
        for number, several in enumerate(values):
            kept = [lookup(v) for v in (several or ())[: one.max_values]]
            found[number, : len(kept)] = kept
        found[gone, 0] = MISSING
        return found, gone

    def _times(self, cells: list[Any], one: Field, place: str, ids: list[np.ndarray]) -> np.ndarray:
        for number, cell in enumerate(cells):
            if isinstance(cell, bool | list | dict | tuple) or (isinstance(cell, float) and not math.isfinite(cell)):
                _refuse(f"{place} {number}", one, cell, "a time such as 2024-01-31T18:00 or seconds since 1970")
        stamps, gone = as_family(pd.Series(cells, dtype=object, name=one.name), "time")
        times = pd.DatetimeIndex(np.where(gone, 0, stamps))
        ids += [np.where(gone, MISSING, part_of(times, part) + FIRST)[:, None] for part in one.parts]
        return gone

    def _checked(self, cells: list[Any], one: Field, place: str) -> tuple[list[Any], np.ndarray]:
        """In the encoder's plain form, None where there is no value."""
        convert = _several if one.kind == "multi" else _PLAIN[one.family]
        values: list[Any] = []
        for number, cell in enumerate(cells):
            try:
                values.append(None if cell is None else convert(cell, one))
            except (TypeError, ValueError, OverflowError):
                _refuse(f"{place} {number}", one, cell, _EXPECTED[one.family])
            if one.kind == "numeric" and values[-1] is None and not one.allow_missing:
                _refuse(f"{place} {number}", one, cell, "a number, as no row had gaps at fitting")
        if one.kind == "categorical" and one.family == "number":
            values = [None if v is None else str(v) for v in values]
        return values, np.array([v is None for v in values], bool)

    def _direct(self, one: Field) -> dict[Any, int] | None:
        """Rows by cell, where cells are what the vocabulary holds."""
        table = self.encoder.tables.get(one.name)
        if one.kind != "categorical" or one.family not in _DIRECT or not isinstance(table, Vocabulary):
            return None
        places: dict[Any, int] = {value: FIRST + n for n, value in enumerate(table.values.tolist())}
        absent = ("", *one.missing) if one.family == "text" else ()
        return {**places, **dict.fromkeys((None, *absent), MISSING)}

    def _lookup(self, one: Field) -> Callable[[Any], int]:
        table = self.encoder.tables[one.name]
        if isinstance(table, Vocabulary):
            places = {value: FIRST + n for n, value in enumerate(table.values.tolist())}
            return lambda value: places.get(value, UNSEEN)
        return lambda value: FIRST + int(hashed([value], table.buckets)[0])

    def _complain(self, row: Row, place: str) -> None:
        for name in row:
            if name not in self._known:
                raise UnknownNameError(f"field in {place}", str(name), self.columns)
        lacking = [name for name in self.columns if name not in row]
        if lacking:
            raise DataError(f"{place}: field {lacking[0]!r} is missing, expected a value, or null where not known")


def _text(cell: Any, one: Field) -> str | None:
    if not isinstance(cell, str):
        raise TypeError
    return None if cell == "" or cell in one.missing else cell


def _integer(cell: Any, one: Field) -> int:
    if not isinstance(cell, bool | int | float | np.number | np.bool_) or cell != int(cell) or abs(int(cell)) >= _WHOLE:
        raise TypeError
    return int(cell)


def _number(cell: Any, one: Field) -> float:
    if not isinstance(cell, bool | int | float | np.number | np.bool_) or not math.isfinite(cell):
        raise TypeError
    return float(cell)


def _boolean(cell: Any, one: Field) -> int:
    if not isinstance(cell, bool | np.bool_):
        raise TypeError
    return int(cell)


def _several(cell: Any, one: Field) -> list[str] | None:
    if one.family == "text":
        text = _text(cell, one)
        parts = [] if text is None else [part.strip() for part in text.split(one.separator)]
        return [part for part in parts if part] or None
    if not isinstance(cell, list | tuple) or any(isinstance(v, dict | list) or v is None for v in cell):
        raise TypeError
    return [str(v) for v in cell] or None


_PLAIN: dict[Family, Callable[[Any, Field], Any]] = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
}
_EXPECTED: dict[Family, str] = {
    "text": "text",
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "list": "a list of values",
}


def _refuse(place: str, one: Field, cell: Any, expected: str) -> None:
    shown = repr(cell)
    shown = shown if len(shown) <= 40 else f"{shown[:39]}…"
    raise DataError(f"{place}, field {one.name!r}: found {_kind(cell)} ({shown}), expected {expected}")


def _kind(cell: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(cell), "a number" if isinstance(cell, int | float) else type(cell).__name__)
