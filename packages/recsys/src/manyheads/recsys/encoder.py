"""Raw rows to tensors, fitted once and saved as JSON and safetensors.

    encoder = Encoder.fit(frame, spec)
    encoded = encoder.transform(new_rows)      # ids, numbers, and how many values were unseen or missing

Fitting may go over chunks (``Encoder.fit_chunks``); its memory is that of the vocabularies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from manyheads.core.errors import CheckpointError, DataError, ManyheadsError
from manyheads.lab.files import write_atomically
from manyheads.lab.storage import check_beside, load_arrays, load_document, packed, packed_document, sha256
from manyheads.recsys.columns import as_family, check_frame, family_of, finite, first_row
from manyheads.recsys.features import PART_SIZES, FeatureSpec, Field, part_of
from manyheads.recsys.layout import FIRST, MISSING, PADDING, UNSEEN, Layout
from manyheads.recsys.vocabulary import Buckets, Counter, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

KIND = "recommender's encoder"
FORMAT = 1
FILES = ("encoder.json", "encoder.safetensors")


class Arrays(NamedTuple):
    """Rows as arrays: what is served needs no more."""

    ids: np.ndarray  # (N, C) int32
    numbers: np.ndarray  # (N, F) float32, NaN where missing
    unseen: dict[str, int]
    missing: dict[str, int]


@dataclass(frozen=True)
class Encoded:
    """Rows as tensors, and what had to be made up for."""

    ids: Tensor  # (N, C) int32
    numbers: Tensor  # (N, F) float32, NaN where missing
    unseen: dict[str, int]  # values by field that are not in its vocabulary
    missing: dict[str, int]  # cells by field without a value


@dataclass
class Moments:
    """Count, mean and sum of squared deviations, joined over chunks without loss of digits."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, values: np.ndarray) -> None:
        if len(values) == 0:
            return
        mean, count = float(values.mean()), len(values)
        total, gap = self.count + count, mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def deviation(self) -> float:
        """1 for a column that never changes."""
        found = math.sqrt(self.squares / self.count) if self.count else 0.0
        return found if found > 1e-12 * max(1.0, abs(self.mean)) else 1.0


@dataclass
class Encoder:
    """What was learned of each field of ``spec``."""

    spec: FeatureSpec
    tables: dict[str, Vocabulary | Buckets] = field(default_factory=dict)
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)  # mean and deviation

    @classmethod
    def fit(cls, frame: pd.DataFrame, spec: FeatureSpec) -> Encoder:
        """Raises :class:`DataError` naming column, what was found, what was expected and the mend."""
        return cls.fit_chunks([frame], spec)

    @classmethod
    def fit_chunks(cls, frames: Iterable[pd.DataFrame], spec: FeatureSpec) -> Encoder:
        """As :meth:`fit`, over the parts of a table that is not in memory as a whole."""
        made = cls(spec)
        counters = {f.name: Counter() for f in spec.fields if f.kind in ("categorical", "multi")}
        moments = {f.name: Moments() for f in spec.fields if f.kind == "numeric"}
        filled: set[str] = set()
        for frame in frames:
            check_frame(frame, spec.columns, "table")
            for one in spec.fields:
                values, missing = _plain(frame[one.name], one)
                filled |= set() if missing.all() else {one.name}
                if one.kind == "numeric":
                    moments[one.name].update(_scaled(values[~missing], one))
                elif one.kind == "categorical":
                    counters[one.name].update(values[~missing])
                elif one.kind == "multi":
                    counters[one.name].update(np.concatenate([*map(_array, values[~missing]), _array([])]))
        for one in spec.fields:
            if one.name not in filled:
                raise DataError(
                    f"column {one.name!r}: every value is missing, expected some: drop it, ignore it (--ignore) or "
                    "fill it"
                )
            if one.name in counters:
                counter = counters[one.name]
                made.tables[one.name] = (
                    Vocabulary.of(counter, one.min_count) if one.buckets is None else Buckets.of(counter, one.buckets)
                )
            elif one.name in moments:
                seen = moments[one.name]
                made.scales[one.name] = (0.0, 1.0) if one.scale == "none" else (seen.mean, seen.deviation)
        return made

    def layout(self, tasks: tuple[str, ...] = ("label",)) -> Layout:
        """What a model has to know."""
        names, rows, widths = [], [], []
        for one in self.spec.fields:
            if one.kind == "time":
                names += [f"{one.name}.{part}" for part in one.parts]
                rows += [FIRST + PART_SIZES[part] for part in one.parts]
                widths += [1] * len(one.parts)
            elif one.kind != "numeric":
                names.append(one.name)
                rows.append(self.tables[one.name].rows)
                widths.append(one.max_values if one.kind == "multi" else 1)
        numeric = tuple(one.name for one in self.spec.fields if one.kind == "numeric")
        return Layout(tuple(names), tuple(rows), tuple(widths), numeric, tasks)

    def transform(self, frame: pd.DataFrame) -> Encoded:
        """:meth:`arrays` as tensors."""
        import torch

        ids, numbers, unseen, missing = self.arrays(frame)
        return Encoded(torch.from_numpy(ids), torch.from_numpy(numbers), unseen, missing)

    def part(self, names: Iterable[str]) -> Encoder:
        """The encoder of some fields only, in the order of the spec."""
        kept = set(names)
        fields = tuple(one for one in self.spec.fields if one.name in kept)
        return Encoder(FeatureSpec(fields), self.tables, self.scales)

    def arrays(self, frame: pd.DataFrame) -> Arrays:
        """Encodes rows; columns that are no features are left alone.

        Raises :class:`DataError` for an absent column, another kind of value than at fitting, an infinity, and a
        missing number where the field takes none.
        """
        check_frame(frame, self.spec.columns, "table")
        ids, numbers, unseen, lacking = [], [], {}, {}
        for one in self.spec.fields:
            values, missing = _plain(frame[one.name], one)
            lacking[one.name] = int(missing.sum())
            if one.kind == "numeric":
                numbers.append(self.scaled(values, missing, one, frame.index))
            elif one.kind == "time":
                ids += _parts(values, missing, one)
            elif one.kind == "categorical":
                found = np.where(missing, MISSING, self.tables[one.name].lookup(values))
                unseen[one.name] = int((found == UNSEEN).sum())
                ids.append(found[:, None])
            else:
                found = self._several(values, missing, one)
                unseen[one.name] = int((found == UNSEEN).sum())
                ids.append(found)
        count = len(frame)
        id_table = np.concatenate(ids, 1).astype(np.int32) if ids else np.zeros((count, 0), np.int32)
        number_table = np.stack(numbers, 1).astype(np.float32) if numbers else np.zeros((count, 0), np.float32)
        return Arrays(id_table, number_table, unseen, lacking)

    def report(self) -> list[dict[str, Any]]:
        """One entry a field: its kind, the rows of its table, rare values, and what hashing costs."""
        entries = []
        for one in self.spec.fields:
            entry: dict[str, Any] = {"field": one.name, "kind": one.kind, "why": one.why}
            table = self.tables.get(one.name)
            if isinstance(table, Vocabulary):
                entry |= {"rows": table.rows, "values": len(table.values) + table.rare, "rare": table.rare}
            elif isinstance(table, Buckets):
                entry |= {"rows": table.rows, "values": table.values, "collision_rate": table.collision_rate}
            elif one.kind == "numeric":
                entry |= dict(zip(("mean", "deviation"), self.scales[one.name], strict=True))
            entries.append(entry)
        return entries

    def save(self, folder: str | Path) -> None:
        """Two files, ``encoder.json`` and ``encoder.safetensors``, each written atomically."""
        for name, content in self.files().items():
            write_atomically(Path(folder) / name, content)

    def files(self) -> dict[str, bytes]:
        """The two files: name -> content."""
        learned: dict[str, Any] = {
            name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in self.scales.items()
        }
        arrays: dict[str, np.ndarray] = {}
        for index, one in enumerate(self.spec.fields):
            table = self.tables.get(one.name)
            if isinstance(table, Buckets):
                learned[one.name] = {"buckets": table.buckets, "values": table.values, "shared": table.shared}
            elif table is not None:
                learned[one.name] = {"rare": table.rare}
                arrays |= {f"{index}.{key}": value for key, value in table.arrays().items()}
        tables = packed(arrays, {}, kind=KIND)
        header = {"format": FORMAT, "spec": self.spec.to_dict(), "learned": learned}
        header["beside"] = {FILES[1]: sha256(tables)}
        return {FILES[0]: packed_document(header, kind=KIND), FILES[1]: tables}

    @classmethod
    def load(cls, folder: str | Path) -> Encoder:
        """Read what :meth:`save` wrote. Raises :class:`CheckpointError` for any other folder."""
        folder, fix = Path(folder), "fit again"
        header = load_document(folder / FILES[0], kind=KIND, fix=fix)
        if header.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder / FILES[0]}: found format {header.get('format')}, this version reads {FORMAT}: {fix}"
            )
        try:
            check_beside(folder, header["beside"], fix=fix)
            arrays, _ = load_arrays(folder / FILES[1], kind=KIND, fix=fix)
            made = cls(FeatureSpec.from_dict(header["spec"], str(folder / FILES[0])))
            made._restore(header["learned"], arrays)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            if isinstance(error, ManyheadsError):
                raise
            raise CheckpointError(
                f"{folder / FILES[0]}: does not hold what was learned of every field ({type(error).__name__}): {fix}"
            ) from error
        return made

    def _restore(self, learned: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        for index, one in enumerate(self.spec.fields):
            stored: Any = None if one.kind == "time" else learned[one.name]
            own = {key.split(".", 1)[1]: value for key, value in arrays.items() if key.split(".", 1)[0] == str(index)}
            if one.kind == "numeric":
                self.scales[one.name] = (float(stored["mean"]), float(stored["deviation"]))
            elif one.kind != "time" and one.buckets is not None:
                self.tables[one.name] = Buckets(**stored)
            elif one.kind != "time":
                self.tables[one.name] = Vocabulary.from_arrays(own, stored["rare"])

    def scaled(self, values: np.ndarray, missing: np.ndarray, one: Field, index: pd.Index | None = None) -> np.ndarray:
        """Numbers as a model takes them, NaN where they are missing; ``index`` names the rows."""
        if missing.any() and not one.allow_missing:
            raise DataError(
                f"column {one.name!r}, row {first_row(index, missing)}: found a missing number, expected none as at "
                "fitting: fill it, or fit again with allow_missing in the feature spec"
            )
        mean, deviation = self.scales[one.name]
        return np.where(missing, np.nan, (_scaled(np.where(missing, 0, values), one) - mean) / deviation)

    def _several(self, values: np.ndarray, missing: np.ndarray, one: Field) -> np.ndarray:
        found = np.full((len(values), one.max_values), PADDING, np.int64)
        kept = [part[: one.max_values] if not gone else [] for part, gone in zip(values, missing, strict=True)]
        counts = np.array([len(part) for part in kept])
        filled = np.arange(one.max_values) < counts[:, None]
        if filled.any():
            found[filled] = self.tables[one.name].lookup(np.concatenate([_array(part) for part in kept if len(part)]))
        found[counts == 0, 0] = MISSING
        return found


def _plain(column: pd.Series, one: Field) -> tuple[np.ndarray, np.ndarray]:
    if one.kind == "time":
        return as_family(column, "time")
    if one.kind == "multi":
        return _lists(column, one)
    values, missing = as_family(column, one.family, one.missing)
    if one.kind == "numeric":
        finite(column, values, missing)
    if one.kind == "categorical" and one.family == "number":
        values = values.astype(str).astype(object)
    return values, missing


def _lists(column: pd.Series, one: Field) -> tuple[np.ndarray, np.ndarray]:
    """An array of lists of texts."""
    if one.family == "text":
        values, missing = as_family(column, "text", one.missing)
        split = [[p.strip() for p in text.split(one.separator) if p.strip()] for text in values]
    else:
        missing = column.isna().to_numpy()
        if not missing.all() and (found := family_of(column)) != "list":
            raise DataError(
                f"column {one.name!r}: found {found}, expected lists as at fitting: convert it, or fit again"
            )
        split = [[] if gone else [str(v) for v in cell] for cell, gone in zip(column, missing, strict=True)]
    lists = np.empty(len(split), object)
    lists[:] = split
    return lists, missing | np.array([len(part) == 0 for part in split])


def _array(values: list[str]) -> np.ndarray:
    return np.array(values, object)


def _scaled(values: np.ndarray, one: Field) -> np.ndarray:
    values = values.astype(np.float64)
    return np.sign(values) * np.log1p(np.abs(values)) if one.scale == "log" else values


def _parts(stamps: np.ndarray, missing: np.ndarray, one: Field) -> list[np.ndarray]:
    times = pd.DatetimeIndex(np.where(missing, 0, stamps))
    return [np.where(missing, MISSING, part_of(times, part) + FIRST)[:, None] for part in one.parts]
