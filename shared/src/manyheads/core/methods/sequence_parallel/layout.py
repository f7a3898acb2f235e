"""Which tokens lie where when a sequence is cut over P ranks.

The T tokens are padded at the end and cut into chunks. In plain order rank r holds chunk r of P; balanced, it holds
chunks r and 2P - 1 - r of 2P, so that every rank has as many causal pairs as every other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """Rows of the local queries that look at rows of another rank's keys; ``diagonal`` where only up to their own."""

    queries: slice
    keys: slice
    diagonal: bool

    @property
    def scores(self) -> int:
        rows, columns = self.queries.stop - self.queries.start, self.keys.stop - self.keys.start
        return rows * (rows + 1) // 2 if self.diagonal else rows * columns


class Layout(NamedTuple):
    """T tokens over P ranks."""

    tokens: int
    ranks: int
    balanced: bool = False

    @property
    def chunk(self) -> int:
        """Tokens of a chunk, padding included."""
        return -(-self.tokens // (self.ranks * (1 + self.balanced)))

    @property
    def shard(self) -> int:
        """Tokens of a rank, padding included."""
        return self.chunk * (1 + self.balanced)

    def chunks(self, rank: int) -> tuple[int, ...]:
        return (rank, 2 * self.ranks - 1 - rank) if self.balanced else (rank,)

    def real(self, chunk: int) -> int:
        """Tokens of a chunk that are not padding."""
        return max(0, min(self.chunk, self.tokens - chunk * self.chunk))

    def positions(self, rank: int, device: torch.device | None = None) -> Tensor:
        """``(shard,)``: where each token of a rank stands in the sequence; T and more is padding."""
        within = torch.arange(self.chunk, device=device)
        return torch.cat([within + chunk * self.chunk for chunk in self.chunks(rank)])

    def order(self, device: torch.device | None = None) -> Tensor:
        """The positions of all ranks, one after another."""
        return torch.cat([self.positions(rank, device) for rank in range(self.ranks)])

    def pairs(self, rank: int, source: int, causal: bool) -> list[Pair]:
        """What the queries of ``rank`` see of the keys of ``source``; nothing of padding, nothing that is masked."""
        seen = []
        for i, own in enumerate(self.chunks(rank)):
            for j, other in enumerate(self.chunks(source)):
                rows, columns = self.real(own), self.real(other)
                if rows and columns and not (causal and other > own):
                    queries = slice(i * self.chunk, i * self.chunk + rows)
                    keys = slice(j * self.chunk, j * self.chunk + columns)
                    seen.append(Pair(queries, keys, causal and own == other))
        return seen
