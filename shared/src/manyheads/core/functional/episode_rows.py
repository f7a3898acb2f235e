"""Split a batch into episodes: one row for each episode, its real tokens on the left.

A layer then handles only the length of each row, instead of padding and resets. Every episode is padded to the longest
one, so that the cost is (rows) x (longest episode).

Axes: b batch, t tokens, r episodes, l tokens of the longest episode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.functional.packing import keep_first
from manyheads.core.functional.segments import segment_ids
from manyheads.core.state import State

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

Run = Callable[[Any, "Tensor | None", Any], tuple[Tensor, State]]


class Episodes(NamedTuple):
    """The place of each token of a ``(B, T)`` batch in ``(R, L)`` rows, one for each episode, empty ones included."""

    source: Int[Tensor, "r"]
    """The batch row of each episode."""
    first: Bool[Tensor, "r"]
    """The state before the chunk belongs to this episode."""
    last: Int[Tensor, "b"]
    """The last episode of each batch row."""
    lengths: Int[Tensor, "r"]
    """Real tokens of each episode."""
    index: Int[Tensor, "r l"]
    """The token at each place, an index into the flattened ``(B, T)``; an arbitrary token beyond the length."""
    place: Int[Tensor, "b t"]
    """The place of each token, an index into the flattened ``(R, L)``; an arbitrary place for padding."""
    real: Bool[Tensor, "b t"]
    """False for padding."""

    def take(self, x: Shaped[Tensor, "b t *rest"]) -> Shaped[Tensor, "r l *rest"]:
        """The tokens by episode, 0 beyond the lengths."""
        return keep_first(x.flatten(0, 1)[self.index], self.lengths)

    def put(self, y: Shaped[Tensor, "r l *rest"]) -> Shaped[Tensor, "b t *rest"]:
        """The inverse of :meth:`take`, 0 at the padding."""
        back = y.flatten(0, 1)[self.place]
        return torch.where(self.real.view(*self.real.shape, *[1] * (y.dim() - 2)), back, 0.0)


def split_episodes(real: Bool[Tensor, "b t"], reset: Bool[Tensor, "b t"] | None) -> Episodes:
    """The episodes of a batch. ``L`` is ``T`` without resets.

    Args:
        real: False for padding.
        reset: True at the first token of an episode.
    """
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
    padding: Bool[Tensor, "b t"] | None,
    reset: Bool[Tensor, "b t"] | None,
) -> tuple[Float[Tensor, "b t *rest"], State]:
    """Run a function on every episode of a batch; its output and the states after the last episodes.

    Args:
        run: ``run(tokens (R, L, …), lengths (R,), state)``. Without padding and reset it gets the batch itself, and
            None for the lengths.
        tokens: a tensor ``(B, T, …)`` or a tuple of such tensors.
        state: the state before the first episode of each batch row.
        fresh: ``fresh(rows)`` makes the state before every other episode: a layer's ``init_state``.
        padding: True for a real token.
        reset: True at the first token of an episode.
    """
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
