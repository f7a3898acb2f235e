"""Episodes within a row: their numbers, and attention masks that keep them apart.

A reset starts a new episode, or segment. Axes: b batch, t tokens or queries, s keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def segment_ids(reset: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """The number of resets up to and including each token; the state before the chunk belongs to segment 0."""
    return reset.to(torch.int64).cumsum(1)


def same_segment(queries: Int[Tensor, "b t"], keys: Int[Tensor, "b s"]) -> Bool[Tensor, "b t s"]:
    """True if query and key are in the same segment."""
    return queries.unsqueeze(-1) == keys.unsqueeze(-2)


def segment_starts(reset: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Index of the first token of each token's segment, 0 before any reset."""
    index = torch.arange(reset.shape[1], device=reset.device).expand(reset.shape)
    return torch.where(reset, index, 0).cummax(1).values


def positions(
    real: Bool[Tensor, "b t"], reset: Bool[Tensor, "b t"] | None, held: Int[Tensor, "b"]
) -> Int[Tensor, "b t"]:
    """The number of real tokens of the same episode before each token; ``held`` of them came before the chunk."""
    before = real.to(torch.int64).cumsum(1) - real.to(torch.int64)
    if reset is None:
        return held.unsqueeze(1) + before
    first = segment_ids(reset) == 0
    earlier = before.gather(1, segment_starts(reset))
    return torch.where(first, held.unsqueeze(1) + before, before - earlier)


def segment_cumsum(
    x: Float[Tensor, "b t *rest"], reset: Bool[Tensor, "b t"] | None, start: Float[Tensor, "b *rest"]
) -> Float[Tensor, "b t *rest"]:
    """Cumulative sums that begin at ``start`` and, after each reset, at 0.

    With resets the sum up to the start of the episode is subtracted: rounding errors are those of the whole row.
    """
    if reset is None:
        return _running_sum(x, start)
    total = _running_sum(x, torch.zeros_like(start))
    axes = [1] * (x.dim() - 2)
    index = segment_starts(reset).view(*reset.shape, *axes).expand_as(x)
    first = (segment_ids(reset) == 0).view(*reset.shape, *axes)
    return total + torch.where(first, start.unsqueeze(1), (x - total).gather(1, index))


def _running_sum(x: Tensor, start: Tensor, block: int = 64) -> Tensor:
    """Cumulative sums within blocks, then over blocks: torch walks one column at a time, which overflows the cache."""
    tokens = x.shape[1]
    if tokens <= block:
        return start.unsqueeze(1) + x.cumsum(1)
    missing = -tokens % block
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)
    inside = x.unflatten(1, (-1, block)).cumsum(2)
    ends = torch.cat([start.unsqueeze(1), inside[:, :-1, -1]], 1)
    return (inside + ends.cumsum(1).unsqueeze(2)).flatten(1, 2)[:, :tokens]


def visible(
    real_queries: Bool[Tensor, "b t"],
    query_segments: Int[Tensor, "b t"],
    usable_keys: Bool[Tensor, "b s"],
    key_segments: Int[Tensor, "b s"],
    offset: int,
    *,
    causal: bool,
    window: int | None,
) -> Bool[Tensor, "b t s"]:
    """Attention mask, True if the query may attend to the key.

    Args:
        real_queries: False for padding.
        query_segments: the segment of each query.
        usable_keys: False for padding and empty slots of the state.
        key_segments: the segment of each key.
        offset: query t is key ``offset + t``.
        causal: no key after the query.
        window: only the latest ``window`` usable keys, the query's own included; without ``causal`` as many keys after
            the query.
    """
    allowed = same_segment(query_segments, key_segments) & usable_keys.unsqueeze(1) & real_queries.unsqueeze(2)
    tokens, device = real_queries.shape[1], real_queries.device
    own = torch.arange(tokens, device=device).unsqueeze(1) + offset
    key = torch.arange(usable_keys.shape[1], device=device)
    if causal:
        allowed = allowed & (key <= own)
    if window is not None:
        rank = usable_keys.cumsum(1)
        distance = (rank[:, offset:].unsqueeze(2) - rank.unsqueeze(1)).abs()
        allowed = allowed & (distance < window)
    return allowed
