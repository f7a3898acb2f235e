"""What encoded rows look like, and what a model has to know of them.

Shapes: N rows, C id columns, F numeric fields, K tasks. A categorical field has one id column, a multi-valued one as
many as a cell may hold values (-1 where it holds fewer), a time one each of its parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # what is served encodes rows without torch
    from torch import Tensor

MISSING, UNSEEN, FIRST = 0, 1, 2  # ids of every table: not known, not in the vocabulary, then the vocabulary
PADDING = -1


@dataclass(frozen=True)
class Layout:
    """The embedded fields with their tables, the numeric fields and the tasks."""

    names: tuple[str, ...]
    rows: tuple[int, ...]  # of each field's table
    widths: tuple[int, ...]  # id columns of each field
    numeric: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("label",)

    @property
    def tokens(self) -> int:
        """T: one for each embedded and each numeric field."""
        return len(self.names) + len(self.numeric)

    def columns_of(self, name: str) -> slice:
        """The id columns of one embedded field."""
        index = self.names.index(name)
        start = sum(self.widths[:index])
        return slice(start, start + self.widths[index])


class Batch(NamedTuple):
    """Some rows: what models and objectives are given."""

    ids: Tensor  # (N, C) int64
    numbers: Tensor  # (N, F) float32, NaN where missing
    labels: Tensor  # (N, K) float32, NaN where a task has no label


@dataclass(frozen=True)
class Rows:
    """Encoded rows in memory, gathered by index."""

    ids: Tensor  # (N, C) int32
    numbers: Tensor  # (N, F) float32
    labels: Tensor  # (N, K) float32
    groups: Tensor | None = None  # (N,) float64, for the metrics by group; NaN for a row without one

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Tensor) -> Batch:
        return Batch(self.ids[indices].long(), self.numbers[indices], self.labels[indices])

    def whole(self, size: int = 16384):
        """All rows in order, ``size`` at a time."""
        import torch

        for start in range(0, len(self), size):
            yield self.batch(torch.arange(start, min(start + size, len(self))))


@dataclass(frozen=True)
class Passes:
    """Several passes over the same rows as one part, drawn in one order: for training that is judged every so many
    steps instead of after each pass."""

    rows: Rows
    times: int

    def __len__(self) -> int:
        return self.times * len(self.rows)

    def batch(self, indices: Tensor) -> Batch:
        return self.rows.batch(indices % len(self.rows))
