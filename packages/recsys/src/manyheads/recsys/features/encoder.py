"""Encode raw rows as ids and numbers; fitted once, saved as JSON and safetensors.

    encoder = Encoder.fit(frame, spec)
    encoded = encoder.transform(new_rows)      # ids, numbers, counts of unseen and missing values

``Encoder.fit_chunks`` fits on chunks of a table; its memory is that of the vocabularies.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from manyheads.core.errors import CheckpointError, DataError, ManyheadsError, ManyheadsWarning
from manyheads.lab.data.files import write_atomically
from manyheads.lab.data.storage import check_beside, load_arrays, load_document, packed, packed_document, sha256
from manyheads.recsys.features.cells import EXACT, Family, Read, objects
from manyheads.recsys.features.columns import as_family
from manyheads.recsys.features.frames import as_frame, check_frame
from manyheads.recsys.features.layout import FIRST, MISSING, PADDING, UNSEEN, Layout
from manyheads.recsys.features.spec import PART_SIZES, FeatureSpec, Field, part_of
from manyheads.recsys.features.vocabulary import Buckets, Counter, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

KIND = "recommender's encoder"
FORMAT = 1
FILES = ("encoder.json", "encoder.safetensors")
# scaled numbers are clipped to this, by ``scale`` of the field
LARGEST = {"standard": 1e4, "log": 1e4, "none": 1e15}
# scaled numbers above this are refused, as float32 cannot hold their square
REFUSED = 1e15
# minimum number of rows for a note on a column that is mostly out of vocabulary
NOTED = 10
# raw numbers are clipped to this, so that the sum of their squares does not overflow
_LARGEST_RAW = 1e140


class TableWarning(ManyheadsWarning):
    """A value in a table that is accepted, but is probably a mistake."""


class Arrays(NamedTuple):
    """Encoded rows as arrays, for serving without torch."""

    ids: np.ndarray  # (N, C) int32
    numbers: np.ndarray  # (N, F) float32, NaN where missing
    unseen: dict[str, int]
    missing: dict[str, int]


@dataclass(frozen=True)
class Encoded:
    """Encoded rows as tensors, with the counts of unseen and missing values."""

    ids: Tensor  # (N, C) int32
    numbers: Tensor  # (N, F) float32, NaN where missing
    unseen: dict[str, int]  # out-of-vocabulary values by field
    missing: dict[str, int]  # missing cells by field


@dataclass
class Moments:
    """Count, mean and sum of squared deviations over chunks, by a numerically stable update."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, values: np.ndarray) -> None:
        if len(values) == 0:
            return
        # M2 = M2_a + M2_b + gap^2 n_a n_b / n (Chan, Golub and LeVeque 1979)
        mean, count = float(values.mean()), len(values)
        total, gap = self.count + count, mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def deviation(self) -> float:
        """Standard deviation; 1 for a constant column."""
        found = math.sqrt(self.squares / self.count) if self.count else 0.0
        return found if found > 1e-12 * abs(self.mean) else 1.0


@dataclass
class Encoder:
    """Vocabulary, hash buckets, scale or seen parts of each field of ``spec``."""

    spec: FeatureSpec
    tables: dict[str, Vocabulary | Buckets] = field(default_factory=dict)
    # mean and deviation of each numeric field
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)
    # sorted values of each part of each time field
    seen: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    @classmethod
    def fit(cls, frame: pd.DataFrame, spec: FeatureSpec) -> Encoder:
        """Fit on a table. Raises :class:`DataError` with column, found value, expected value and fix."""
        return cls.fit_chunks([frame], spec)

    @classmethod
    def fit_chunks(cls, frames: Iterable[pd.DataFrame], spec: FeatureSpec) -> Encoder:
        """The same as :meth:`fit`, on chunks of a table that need not fit into memory."""
        made = cls(spec)
        counters = {f.name: Counter() for f in spec.fields if f.kind in ("categorical", "multi")}
        moments = {f.name: Moments() for f in spec.fields if f.kind == "numeric"}
        seen = {f.name: {part: set() for part in f.parts} for f in spec.fields if f.kind == "time"}
        filled: set[str] = set()
        for table in frames:
            frame = as_frame(table)
            check_frame(frame, spec.columns, "table")
            # read all columns before any is counted: an error must not leave half a chunk counted
            cells = {one.name: read_column(frame[one.name], one) for one in spec.fields}
            for one in spec.fields:
                values, missing = cells[one.name]
                filled |= set() if missing.all() else {one.name}
                if one.kind == "numeric":
                    moments[one.name].update(_scaled(values[~missing], one))
                elif one.kind == "time":
                    for part, met in seen[one.name].items():
                        met |= set(part_of(values[~missing], part).tolist())
                elif one.kind == "categorical":
                    counters[one.name].update(values[~missing])
                else:
                    counters[one.name].update(_array([part for cell in values[~missing] for part in cell]))
        made.seen = {name: {part: sorted(met) for part, met in parts.items()} for name, parts in seen.items()}
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
                found = moments[one.name]
                made.scales[one.name] = (0.0, 1.0) if one.scale == "none" else (found.mean, found.deviation)
        return made

    def layout(self, tasks: tuple[str, ...] = ("label",)) -> Layout:
        """Return the layout that a model is built for."""
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
        """Return the encoder of a subset of the fields, in the order of the spec."""
        kept = set(names)
        fields = tuple(one for one in self.spec.fields if one.name in kept)
        return Encoder(FeatureSpec(fields), self.tables, self.scales, self.seen)

    def arrays(self, frame: pd.DataFrame) -> Arrays:
        """Encode a table; each row independently of the others. Columns that are no features are ignored.

        Raises :class:`DataError` for a missing column, another family of values than at fitting, an infinite number,
        and a missing number if the field does not accept it.
        """
        frame = as_frame(frame)
        check_frame(frame, self.spec.columns, "table")
        cells = {one.name: read_column(frame[one.name], one) for one in self.spec.fields}
        return self.encode(cells, len(frame), lambda row, one: f"column {one.name!r}, row {frame.index[row]}")

    def notes(self, encoded: Arrays | Encoded, rows: int) -> list[str]:
        """Return one line per categorical or time column with mostly unseen values."""
        found = []
        for one in self.spec.fields:
            new, known = encoded.unseen.get(one.name, 0), rows - encoded.missing.get(one.name, 0)
            if one.kind in ("categorical", "time") and rows >= NOTED and 2 * new > known:
                scored = "as the nearest that were" if one.kind == "time" else "all alike"
                found.append(
                    f"column {one.name!r}: {new} of {known} values were never seen at fitting and are scored {scored}: "
                    "fit again with newer rows, or without it"
                )
        return found

    def encode(
        self, cells: dict[str, tuple[np.ndarray, np.ndarray]], count: int, place: Callable[[int, Field], str]
    ) -> Arrays:
        """Encode ``count`` rows from values and missing flags of each field; ``place`` names a cell in errors."""
        ids, numbers, unseen, missing_counts = [], [], {}, {}
        for one in self.spec.fields:
            values, missing = cells[one.name]
            missing_counts[one.name] = int(missing.sum())
            if one.kind == "numeric":
                numbers.append(self._scale(values, missing, one, place))
            elif one.kind == "time":
                found, new = self._time_ids(values, missing, one)
                if new:
                    unseen[one.name] = new
                ids += found
            elif one.kind == "categorical":
                found = np.where(missing, MISSING, self.tables[one.name].lookup(values))
                unseen[one.name] = int((found == UNSEEN).sum())
                ids.append(found[:, None])
            else:
                found = self._multi_ids(values, missing, one)
                unseen[one.name] = int((found == UNSEEN).sum())
                ids.append(found)
        id_table = np.concatenate(ids, 1).astype(np.int32) if ids else np.zeros((count, 0), np.int32)
        number_table = np.stack(numbers, 1).astype(np.float32) if numbers else np.zeros((count, 0), np.float32)
        return Arrays(id_table, number_table, unseen, missing_counts)

    def report(self) -> list[dict[str, Any]]:
        """Return one entry per field: kind, table size, rare values, collision rate of hashing, mean and deviation."""
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
        """Write ``encoder.json`` and ``encoder.safetensors``, each atomically."""
        for name, content in self.files().items():
            write_atomically(Path(folder) / name, content)

    def files(self) -> dict[str, bytes]:
        """Return the two files, name -> content."""
        learned: dict[str, Any] = {
            name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in self.scales.items()
        }
        arrays: dict[str, np.ndarray] = {}
        learned |= {name: {"seen": parts} for name, parts in self.seen.items()}
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
            stored: Any = learned[one.name]
            own = {key.split(".", 1)[1]: value for key, value in arrays.items() if key.split(".", 1)[0] == str(index)}
            if one.kind == "numeric":
                self.scales[one.name] = (float(stored["mean"]), float(stored["deviation"]))
            elif one.kind == "time":
                given = {str(part): sorted(stored["seen"][part]) for part in one.parts}
                if not all(type(v) is int and 0 <= v < PART_SIZES[part] for part, met in given.items() for v in met):
                    raise ValueError
                self.seen[one.name] = given
            elif one.buckets is not None:
                self.tables[one.name] = Buckets(**stored)
            else:
                self.tables[one.name] = Vocabulary.from_arrays(own, stored["rare"])

    def _scale(
        self, values: np.ndarray, missing: np.ndarray, one: Field, place: Callable[[int, Field], str]
    ) -> np.ndarray:
        """Return scaled and clipped numbers, NaN if missing."""
        if missing.any() and not one.allow_missing:
            raise DataError(
                f"{place(int(np.argmax(missing)), one)}: found a missing number, expected none as at "
                "fitting: fill it, or fit again with allow_missing in the feature spec"
            )
        mean, deviation = self.scales[one.name]
        most = LARGEST[one.scale]
        with np.errstate(over="ignore"):
            found = (_scaled(np.where(missing, 0, values), one) - mean) / deviation
        far = (np.abs(found) > REFUSED) & ~missing
        if far.any():
            row = int(np.argmax(far))
            raise DataError(
                f"{place(row, one)}: found {values[row]}, expected a number near those that were fitted, of mean "
                f"{mean:.6g} and deviation {deviation:.6g}: clean it, or leave the cell empty"
            )
        return np.where(missing, np.nan, np.clip(found, -most, most))

    def _time_ids(self, stamps: np.ndarray, missing: np.ndarray, one: Field) -> tuple[list[np.ndarray], int]:
        """Return the ids of each part, and the number of rows with an unseen part."""
        new = np.zeros(len(stamps), bool)
        found = []
        for part in one.parts:
            size, met = PART_SIZES[part], self.seen[one.name][part]
            values = part_of(np.where(missing, 0, stamps), part)
            new |= ~np.isin(values, met)
            found.append(np.where(missing, MISSING, _nearest(met, size)[values] + FIRST)[:, None])
        return found, int((new & ~missing).sum())

    def _multi_ids(self, values: np.ndarray, missing: np.ndarray, one: Field) -> np.ndarray:
        found = np.full((len(values), one.max_values), PADDING, np.int64)
        kept = [
            part[: one.max_values] if not is_missing else [] for part, is_missing in zip(values, missing, strict=True)
        ]
        counts = np.array([len(part) for part in kept])
        filled = np.arange(one.max_values) < counts[:, None]
        if filled.any():
            found[filled] = self.tables[one.name].lookup(_array([part for several in kept for part in several]))
        found[counts == 0, 0] = MISSING
        return found


def read_column(column: pd.Series, one: Field) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a column in the plain form of a field, and which are missing.

    Raises :class:`DataError` for the first cell that cannot be read.
    """
    found = as_family(column, reads_as(one), one.missing, one.unit)
    if one.kind == "categorical" and one.family == "integer" and pd.api.types.is_float_dtype(column.dtype):
        merged = int((np.abs(np.where(found.missing, 0, found.values)) >= EXACT).sum())
        if merged:
            warnings.warn(
                f"column {one.name!r}: found {merged} whole numbers from 2**53 on in a column of floats, which holds "
                "only every other one: several ids may have become one; read the column as Int64 or as text",
                TableWarning,
                stacklevel=2,
            )
    return plain(found, one)


def reads_as(one: Field) -> Family:
    """Return the family to read the cells of a field as: numeric fields accept any number, whatever was fitted."""
    return "time" if one.kind == "time" else "number" if one.kind == "numeric" else one.family


def plain(found: Read, one: Field) -> tuple[np.ndarray, np.ndarray]:
    """Return values as the vocabularies store them: categorical numbers as text, multi-valued texts as lists."""
    values, missing = found.values, found.missing
    if one.kind == "categorical" and one.family == "number":
        # -0.0 + 0.0 is 0.0: both zeros are one category
        codes, distinct = pd.factorize(values + 0.0)
        values = _array([repr(value) for value in distinct.tolist()])[codes]
    elif one.kind == "multi":
        if one.family == "text":
            values = objects([[p for part in text.split(one.separator) if (p := part.strip())] for text in values])
        missing = missing | np.fromiter((len(cell) == 0 for cell in values), bool, len(values))
    return values, missing


def _nearest(met: Sequence[int], size: int) -> np.ndarray:
    """Return, for each value of a cycle, the nearest value in ``met``; the earlier of two at the same distance."""
    if len(met) == 0:
        return np.arange(size)
    # steps back from each value to each met value
    gap = (np.arange(size)[:, None] - np.asarray(met)) % size
    distance = 2 * np.minimum(gap, size - gap) + (gap > size - gap)
    return np.asarray(met)[distance.argmin(1)]


def _array(values: list[str]) -> np.ndarray:
    return np.array(values, object)


def _scaled(values: np.ndarray, one: Field) -> np.ndarray:
    values = values.astype(np.float64)
    if one.scale == "log":
        return np.sign(values) * np.log1p(np.abs(values))
    return np.clip(values, -_LARGEST_RAW, _LARGEST_RAW)
