"""Training from parquet files that are larger than memory: row groups in drawn order, through a shuffle buffer.

Memory is that of one row group, the buffer and the vocabularies, whatever the size of the file. A row group is read
alone, encoded, and mixed into the buffer, from which batches are drawn; the seed of an epoch decides its order, so that
a broken run goes on to the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.install import missing
from manyheads.lab.training.experiment import Splits
from manyheads.recsys.datasets.splits import encode, facts
from manyheads.recsys.features.encoder import Encoder
from manyheads.recsys.features.frames import check_frame, from_arrow
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.features.layout import Batch, Rows
from manyheads.recsys.features.spec import FeatureSpec, infer_spec

SAMPLE = 100_000  # rows of the first group that a spec is inferred from


@dataclass(frozen=True)
class ParquetFile:
    """One parquet file, read a piece at a time."""

    path: Path

    @cached_property
    def _open(self) -> Any:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise missing("pyarrow", "manyheads-recsys", "parquet", place=str(self.path)) from error
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        try:
            return parquet.ParquetFile(self.path)
        except (arrow.ArrowInvalid, OSError) as error:
            said = " ".join(str(error).split())[:160]
            raise DataError(f"{self.path}: cannot be read as parquet ({said}): check the file") from error

    @property
    def rows(self) -> int:
        return self._open.metadata.num_rows

    @property
    def groups(self) -> int:
        return self._open.num_row_groups

    @property
    def columns(self) -> list[str]:
        return self._open.schema_arrow.names

    def check(self, columns: list[str]) -> None:
        """Raises :class:`DataError` for a file without rows or without one of ``columns``."""
        if self.rows == 0:
            raise DataError(f"{self.path}: found no rows, expected at least one: give a table with rows")
        check_frame(pd.DataFrame({name: [0] for name in self.columns}), columns, str(self.path))

    def pieces(self, columns: list[str], size: int, groups: list[int] | None = None) -> Iterator[pd.DataFrame]:
        """At most ``size`` rows at a time, of the row groups in the order in which they are asked for."""
        for group in range(self.groups) if groups is None else groups:
            for piece in self._open.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
                if piece.num_rows:
                    yield from_arrow(piece)


@dataclass(frozen=True)
class StreamedRows:
    """The train part of an experiment: ``len`` and ``epoch``, no access by index."""

    file: ParquetFile
    encoder: Encoder
    labels: Labels
    buffer: int

    def __len__(self) -> int:
        return self.file.rows

    def epoch(self, size: int, skip: int, seed: int) -> Iterator[Batch]:
        """Whole batches of ``size`` rows from batch ``skip`` on, each row in at most one of them."""
        if self.buffer < size:
            raise ArgumentError(f"buffer: found {self.buffer}, expected at least a batch of {size} rows")
        draw = torch.Generator().manual_seed(seed)
        groups = torch.randperm(self.file.groups, generator=draw).tolist()
        columns = [*self.encoder.spec.columns, *self.labels.tasks]
        held: list[Tensor] | None = None
        number = 0
        pieces = self.file.pieces(columns, max(size, self.buffer // 8), groups)
        for piece, last in _with_last(pieces):
            rows = encode(piece, self.encoder, self.labels)
            new = [rows.ids, rows.numbers, rows.labels]
            held = new if held is None else [torch.cat(pair) for pair in zip(held, new, strict=True)]
            count = len(held[0])
            if count < self.buffer and not last:
                continue
            order = torch.randperm(count, generator=draw)
            # what leaves the buffer: all but half of it, so that every row meets others of other row groups
            leaving = (count if last else count - self.buffer // 2) // size * size
            for start in range(0, leaving, size):
                if number >= skip:
                    chosen = order[start : start + size]
                    yield Batch(held[0][chosen].long(), held[1][chosen], held[2][chosen])
                number += 1
            kept = order[leaving:]
            held = [part[kept] for part in held]


@dataclass(frozen=True)
class StreamedTable:
    """A parquet file to train on that need not fit into memory, and files to choose weights and to measure by that do.

    The encoder is fitted in one pass over the training file. Several tasks: each label column is one.
    """

    train: str
    validation: str
    test: str
    label: tuple[str, ...]
    spec: str | None = None
    """A feature spec; without one it is inferred from the first rows."""
    group: str | None = None
    """The column of the metrics by group."""
    buffer: int = 200_000
    """Rows of the shuffle buffer."""

    def open(self) -> Splits:
        file = ParquetFile(Path(self.train))
        file.check(list(self.label))
        if self.spec is None:
            every = [n for n in file.columns if n not in self.label]
            spec = infer_spec(next(file.pieces(every, SAMPLE)))
        else:
            spec = FeatureSpec.load(self.spec)
        file.check(spec.columns)
        size = min(self.buffer, SAMPLE)
        encoder = Encoder.fit_chunks(file.pieces(spec.columns, size), spec)
        labels = _labels(file, self.label, size)
        train = StreamedRows(file, encoder, labels, self.buffer)
        validation, test = (self._part(path, encoder, labels) for path in (self.validation, self.test))
        return Splits(train, validation, test, facts(encoder, labels))  # ty: ignore[invalid-argument-type]

    def _part(self, path: str, encoder: Encoder, labels: Labels) -> Rows:
        from manyheads.recsys.features.tables import read_table

        return encode(read_table(path), encoder, labels, self.group)


def _labels(file: ParquetFile, tasks: tuple[str, ...], size: int) -> Labels:
    """The classes of each task over the whole file, a piece at a time."""
    found: dict[str, pd.Series] = {}
    for piece in file.pieces(list(tasks), size):
        for task in tasks:
            values = pd.Series(piece[task].dropna().unique())
            known = pd.concat([found[task], values]).drop_duplicates() if task in found else values
            found[task] = known.head(10)  # more than two are an error already
    frame = pd.DataFrame({task: values.reset_index(drop=True) for task, values in found.items()})
    return Labels.of(frame.convert_dtypes() if frame.isna().any().any() else frame, tasks)


def _with_last(pieces: Iterator[pd.DataFrame]) -> Iterator[tuple[pd.DataFrame, bool]]:
    before = None
    for piece in pieces:
        if before is not None:
            yield before, False
        before = piece
    if before is not None:
        yield before, True
