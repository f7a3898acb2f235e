"""Encode rows from JSON without a table: one row takes a small part of the time of a DataFrame.

They are read and encoded by the functions that read tables: the same rows are taken and refused, with the same scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from manyheads.core.errors import DataError
from manyheads.recsys.features.cells import complaint, objects, read_cells
from manyheads.recsys.features.encoder import Arrays, Encoder, plain, reads_as
from manyheads.recsys.features.spec import Field

Row = Mapping[str, Any]


def encode_rows(encoder: Encoder, rows: Sequence[Row], place: str = "row") -> Arrays:
    """Return what ``encoder.arrays`` returns for a table of these rows; keys that are not fields are ignored.

    Raises :class:`DataError` naming row and field, what was found and what was expected.
    """
    if not rows:
        raise DataError(f"{place}s: found none, expected at least one")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"{place} {number}: found {_kind(row)}, expected an object of fields and values")
        for one in encoder.spec.fields:
            if one.name not in row:
                held = ", ".join(str(name)[:40] for name in list(row)[:8]) + (" …" if len(row) > 8 else "")
                raise DataError(
                    f"{place} {number}: field {one.name!r} is missing, expected a value, or null where not known; "
                    f"found {held or 'no field'}"
                )

    def named(row: int, one: Field) -> str:
        return f"{place} {row}, field {one.name!r}"

    cells = {}
    for one in encoder.spec.fields:
        column = objects([row[one.name] for row in rows])
        found = read_cells(column, reads_as(one), one.missing, one.unit)
        if found.bad.any():
            row = int(np.argmax(found.bad))
            raise DataError(complaint(named(row, one), column[row], reads_as(one), one.unit))
        cells[one.name] = plain(found, one)
    return encoder.encode(cells, len(rows), named)


def _kind(cell: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(cell), "a number" if isinstance(cell, int | float) else type(cell).__name__)
