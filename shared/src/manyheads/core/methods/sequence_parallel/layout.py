"""The places of the tokens of a sequence that is cut over P ranks.

The T tokens are padded at the end and cut into chunks. In plain order rank r holds chunk r of P; balanced, it holds
chunks r and 2P - 1 - r of 2P, so that all ranks have the same number of causal pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int


class Pair(NamedTuple):
    """Rows of the local queries and the rows of a rank's keys that they see.

    With ``diagonal`` a query sees the keys up to its own row only.
    """

    queries: slice
    keys: slice
    diagonal: bool

    @property
    def scores(self) -> int:
        """The number of pairs of a query and a key."""
        rows, columns = self.queries.stop - self.queries.start, self.keys.stop - self.keys.start
        return rows * (rows + 1) // 2 if self.diagonal else rows * columns


class Layout(NamedTuple):
    """The layout of T tokens over P ranks."""

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
        """The chunks of a rank."""
        return (rank, 2 * self.ranks - 1 - rank) if self.balanced else (rank,)

    def real(self, chunk: int) -> int:
        """Tokens of a chunk that are not padding."""
        return max(0, min(self.chunk, self.tokens - chunk * self.chunk))

    def positions(self, rank: int, device: torch.device | None = None) -> Int[Tensor, "t"]:
        """The position of each token of a rank in the sequence; positions from T on are padding."""
        within = torch.arange(self.chunk, device=device)
        return torch.cat([within + chunk * self.chunk for chunk in self.chunks(rank)])

    def order(self, device: torch.device | None = None) -> Int[Tensor, "n"]:
        """The positions of all ranks, one after another."""
        return torch.cat([self.positions(rank, device) for rank in range(self.ranks)])

    def pairs(self, rank: int, source: int, causal: bool) -> list[Pair]:
        """The keys of ``source`` that the queries of ``rank`` see, without padding and masked keys."""
        seen = []
        for i, own in enumerate(self.chunks(rank)):
            for j, other in enumerate(self.chunks(source)):
                rows, columns = self.real(own), self.real(other)
                if rows and columns and not (causal and other > own):
                    queries = slice(i * self.chunk, i * self.chunk + rows)
                    keys = slice(j * self.chunk, j * self.chunk + columns)
                    seen.append(Pair(queries, keys, causal and own == other))
        return seen
