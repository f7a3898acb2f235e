"""Binary labels: the two values of each task, saved with the model; the second one is the positive class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import CheckpointError, DataError
from manyheads.lab.data.storage import load_document, packed_document
from manyheads.recsys.features.cells import Family, shown
from manyheads.recsys.features.columns import family_of, read
from manyheads.recsys.features.frames import as_frame, check_frame, first_row

KIND = "recommender's labels"
FILE = "labels.json"


@dataclass(frozen=True)
class Labels:
    """The tasks and the two values of each; the second is positive."""

    tasks: tuple[str, ...]
    classes: tuple[tuple[Any, Any], ...]

    @classmethod
    def of(cls, frame: pd.DataFrame, tasks: Sequence[str]) -> Labels:
        """Find the two values of each label in sorted order: 1 after 0, True after False, ``>50K`` after ``<=50K``.

        Raises :class:`DataError` for a missing label, one that is not binary, and one with a single class.
        """
        frame = as_frame(frame)
        check_frame(frame, list(tasks), "table")
        return cls(tuple(tasks), tuple(_classes(frame[task]) for task in tasks))

    def files(self) -> dict[str, bytes]:
        """Return the file to save beside a model, name -> content."""
        return {FILE: packed_document({"tasks": self.tasks, "classes": self.classes}, kind=KIND)}

    @classmethod
    def load(cls, folder: str | Path) -> Labels:
        """Read the labels of a folder. Raises :class:`CheckpointError` for a missing or damaged file."""
        path = Path(folder) / FILE
        stored = load_document(path, kind=KIND, fix="train again")
        try:
            return cls(tuple(stored["tasks"]), tuple((a, b) for a, b in stored["classes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged ({type(error).__name__}): train again") from error

    def encode(self, frame: pd.DataFrame) -> np.ndarray:
        """Return ``(N, K)`` float32 of 0 and 1; NaN for a missing label if there are several tasks.

        Raises :class:`DataError` for a value that was not seen at fitting, and for a missing label of the only task.
        """
        frame = as_frame(frame)
        check_frame(frame, list(self.tasks), "table")
        columns = []
        for task, (negative, positive) in zip(self.tasks, self.classes, strict=True):
            column = frame[task]
            values, missing, bad = read(column, _FAMILIES[type(positive)])
            unknown = ~missing & (bad | ~((values == negative) | (values == positive)))
            if unknown.any():
                row, found = first_row(frame.index, unknown), column.iloc[int(np.argmax(unknown))]
                raise DataError(
                    f"label {task!r}, row {row}: found {shown(found)}, expected {negative!r} or {positive!r} as at "
                    "fitting: clean it, or fit again"
                )
            if missing.any() and len(self.tasks) == 1:
                row = first_row(frame.index, missing)
                raise DataError(f"label {task!r}, row {row}: found no value, expected one: drop rows without a label")
            columns.append(np.where(missing, np.nan, (values == positive).astype(np.float32)))
        return np.stack(columns, 1).astype(np.float32)


_FAMILIES: dict[type, Family] = {str: "text", bool: "boolean", int: "integer", float: "number"}


def _classes(column: pd.Series) -> tuple[Any, Any]:
    if column.isna().all():
        raise DataError(f"label {column.name!r}: every value is missing, expected two values: name another label")
    family = family_of(column)
    if family not in _FAMILIES.values():
        raise DataError(f"label {column.name!r}: found a {family} in each row, expected two values: name another label")
    values, missing, bad = read(column, family)
    if bad.any():
        row, cell = first_row(column.index, bad), column.iloc[int(np.argmax(bad))]
        raise DataError(f"label {column.name!r}, row {row}: found {shown(cell)}, expected two values: clean it")
    found = sorted(set(values[~missing].tolist()))
    if family == "boolean":
        found = [bool(value) for value in found]
    if len(found) == 2:
        return found[0], found[1]
    said = ", ".join(shown(value) for value in found[:5]) + (" …" if len(found) > 5 else "")
    if len(found) < 2:
        raise DataError(f"label {column.name!r}: found one class only ({said}), expected two: add the other")
    what = "continuous values" if any(isinstance(v, float) and v != round(v) for v in found) else "values"
    raise DataError(
        f"label {column.name!r}: found {len(found)} {what} ({said}), expected two. Only binary classification is "
        "supported: choose what counts as 1"
    )
