"""Layout of encoded rows: id columns, embedding tables, numeric fields, tasks; batches and rows in memory.

Shapes: N rows, C id columns, F numeric fields, K tasks. A categorical field has one id column. A multi-valued field has
``max_values`` id columns, filled up with -1 (padding). A time field has one id column per part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

# serving encodes rows without torch
if TYPE_CHECKING:
    from torch import Tensor

# ids of every table: missing value, out-of-vocabulary value, then the vocabulary
MISSING, UNSEEN, FIRST = 0, 1, 2
PADDING = -1


@dataclass(frozen=True)
class Layout:
    """The embedded fields with the sizes of their tables, the numeric fields and the tasks."""

    names: tuple[str, ...]
    rows: tuple[int, ...]  # rows of the embedding table of each field
    widths: tuple[int, ...]  # id columns of each field
    numeric: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("label",)

    @property
    def tokens(self) -> int:
        """T: one token per embedded field and per numeric field."""
        return len(self.names) + len(self.numeric)

    def columns_of(self, name: str) -> slice:
        """Return the id columns of one embedded field."""
        index = self.names.index(name)
        start = sum(self.widths[:index])
        return slice(start, start + self.widths[index])


class Batch(NamedTuple):
    """A batch of rows, the input of models and objectives."""

    ids: Tensor  # (N, C) int64
    numbers: Tensor  # (N, F) float32, NaN where missing
    labels: Tensor  # (N, K) float32, NaN where a task has no label


@dataclass(frozen=True)
class Rows:
    """Encoded rows in memory; batches are gathered by index."""

    ids: Tensor  # (N, C) int32
    numbers: Tensor  # (N, F) float32
    labels: Tensor  # (N, K) float32
    groups: Tensor | None = None  # (N,) float64, for GAUC and NDCG; NaN for a row without a group

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Tensor) -> Batch:
        return Batch(self.ids[indices].long(), self.numbers[indices], self.labels[indices])

    def whole(self, size: int = 16384):
        """Yield all rows in order, in batches of ``size``."""
        import torch

        for start in range(0, len(self), size):
            yield self.batch(torch.arange(start, min(start + size, len(self))))


@dataclass(frozen=True)
class Passes:
    """``times`` passes over the same rows as one epoch, in one random order.

    It makes validation happen every so many steps instead of after each pass.
    """

    rows: Rows
    times: int

    def __len__(self) -> int:
        return self.times * len(self.rows)

    def batch(self, indices: Tensor) -> Batch:
        return self.rows.batch(indices % len(self.rows))
