"""Train from parquet files larger than memory: row groups in random order, through a shuffle buffer.

Memory holds one row group, the buffer and the vocabularies, whatever the size of the file. Each row group is read,
encoded and mixed into the buffer, from which batches are sampled. The seed of an epoch determines the order, so that an
interrupted run resumes to the same weights.
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
from manyheads.lab.data.files import digest_of
from manyheads.lab.install import missing
from manyheads.lab.training.experiment import Splits
from manyheads.recsys.datasets.splits import encode, facts
from manyheads.recsys.features.encoder import Encoder
from manyheads.recsys.features.frames import check_frame, from_arrow
from manyheads.recsys.features.labels import Labels
from manyheads.recsys.features.layout import Batch, Rows
from manyheads.recsys.features.spec import FeatureSpec, infer_spec

# maximum number of rows, of the first row group, to infer a spec from
SAMPLE = 100_000


@dataclass(frozen=True)
class ParquetFile:
    """A parquet file, read in chunks."""

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
        """Raise :class:`DataError` for a file without rows or without one of ``columns``."""
        if self.rows == 0:
            raise DataError(f"{self.path}: found no rows, expected at least one: give a table with rows")
        check_frame(pd.DataFrame({name: [0] for name in self.columns}), columns, str(self.path))

    def pieces(self, columns: list[str], size: int, groups: list[int] | None = None) -> Iterator[pd.DataFrame]:
        """Yield chunks of at most ``size`` rows, row group by row group in the order of ``groups``."""
        for group in range(self.groups) if groups is None else groups:
            for piece in self._open.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
                if piece.num_rows:
                    yield from_arrow(piece)


@dataclass(frozen=True)
class StreamedRows:
    """Training part of an experiment as a stream: ``len`` and ``epoch``, no access by index."""

    file: ParquetFile
    encoder: Encoder
    labels: Labels
    buffer: int

    def __len__(self) -> int:
        return self.file.rows

    def epoch(self, size: int, skip: int, seed: int) -> Iterator[Batch]:
        """Yield full batches of ``size`` rows from batch ``skip`` on; each row is in at most one of them.

        Raises :class:`ArgumentError` if the buffer is smaller than a batch.
        """
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
            # keep half a buffer, so that rows are mixed with those of other row groups
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
    """A training parquet file that need not fit into memory; validation and test files that do.

    The encoder is fitted in one pass over the training file. Each label column is a task.
    """

    train: str
    validation: str
    test: str
    label: tuple[str, ...]
    spec: str | None = None
    """Path of a feature spec; inferred from the first rows if None."""
    group: str | None = None
    """The column of groups for GAUC and NDCG, such as the user."""
    buffer: int = 200_000
    """Size of the shuffle buffer in rows."""

    def content(self) -> str | None:
        """Return the digest of the three files and the spec; None if there is none."""
        return digest_of(self.train, self.validation, self.test, self.spec)

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
    """Find the classes of each task in the whole file, chunk by chunk."""
    found: dict[str, pd.Series] = {}
    for piece in file.pieces(list(tasks), size):
        for task in tasks:
            values = pd.Series(piece[task].dropna().unique())
            known = pd.concat([found[task], values]).drop_duplicates() if task in found else values
            # more than two values are an error: ten are enough for its message
            found[task] = known.head(10)
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
