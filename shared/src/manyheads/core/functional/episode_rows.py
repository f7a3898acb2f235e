"""Padding and resets become rows: each episode a row of its own, its real tokens on the left.

What is left for a layer to handle is the length of each row. Every episode is padded to the longest, so that the cost
is (rows) x (longest episode).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.functional.packing import keep_first
from manyheads.core.functional.segments import segment_ids
from manyheads.core.state import State

Run = Callable[[Any, "Tensor | None", Any], tuple[Tensor, State]]


class Episodes(NamedTuple):
    """Where the tokens of a ``(B, T)`` batch lie in ``(R, L)`` rows, one for each episode, empty ones among them."""

    source: Tensor  # (R,) int64: the batch row of each episode
    first: Tensor  # (R,) bool: what a state holds from before belongs to this episode
    last: Tensor  # (B,) int64: the episode that each batch row ends in
    lengths: Tensor  # (R,) int64: real tokens
    index: Tensor  # (R, L) int64 into B T; any token beyond the length
    place: Tensor  # (B, T) int64 into R L; any place where padding is
    real: Tensor  # (B, T) bool

    def take(self, x: Tensor) -> Tensor:
        """``(B, T, …)`` -> ``(R, L, …)``, 0 beyond the lengths."""
        return keep_first(x.flatten(0, 1)[self.index], self.lengths)

    def put(self, y: Tensor) -> Tensor:
        """``(R, L, …)`` -> ``(B, T, …)``, 0 at the padding."""
        back = y.flatten(0, 1)[self.place]
        return torch.where(self.real.view(*self.real.shape, *[1] * (y.dim() - 2)), back, 0.0)


def split_episodes(real: Tensor, reset: Tensor | None) -> Episodes:
    """``real (B, T)`` bool, True for a real token; ``reset (B, T)`` bool. ``L`` is ``T`` without resets."""
    batch, tokens = real.shape
    rows = torch.arange(batch, device=real.device)
    rank = real.cumsum(1) - 1
    if reset is None:
        source, row, first, last = (
            rows,
            rows.unsqueeze(1).expand_as(real),
            torch.ones_like(rows, dtype=torch.bool),
            rows,
        )
        longest = tokens
    else:
        episode = segment_ids(reset)
        count = episode[:, -1] + 1
        start = count.cumsum(0) - count
        row, last = episode + start.unsqueeze(1), start + count - 1
        source = rows.repeat_interleave(count)
        first = torch.zeros_like(source, dtype=torch.bool).index_fill(0, start, True)
        rank = rank - torch.where(reset, real.cumsum(1) - real.long(), 0).cummax(1).values
        longest = max(int(torch.where(real, rank + 1, 0).max()), 1)
    lengths = torch.zeros_like(source).index_add(0, row.flatten(), real.flatten().long())
    place = torch.where(real, row * longest + rank, 0)
    spare = source.numel() * longest
    target = torch.where(real, place, spare).flatten()
    token = torch.arange(batch * tokens, device=real.device)
    index = torch.zeros(spare + 1, dtype=torch.int64, device=real.device).scatter(0, target, token)
    return Episodes(source, first, last, lengths, index[:-1].view(-1, longest), place, real)


def by_episode(
    run: Run,
    tokens: Any,
    state: State,
    fresh: Callable[..., State],
    padding: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, State]:
    """``run(tokens (R, L, …), lengths (R,), state)`` on every episode of ``tokens``, a tensor or a tuple of tensors
    ``(B, T, …)``. The first of a batch row goes on from ``state``, the others from ``fresh(rows)``, which is a layer's
    ``init_state``. Without padding and reset it is run as it is, with None for the lengths."""
    if padding is None and reset is None:
        return run(tokens, None, state)
    some = trees.leaves(tokens)[0]
    real = torch.ones(some.shape[:2], dtype=torch.bool, device=some.device) if padding is None else padding
    episodes = split_episodes(real, reset)
    rows = trees.select(state, episodes.source)
    if reset is not None:
        rows = trees.where(episodes.first, rows, fresh(episodes.source.numel(), device=some.device, dtype=some.dtype))
    mixed, ends = run(trees.tree_map(episodes.take, tokens), episodes.lengths, rows)
    return episodes.put(mixed), trees.select(ends, episodes.last)
