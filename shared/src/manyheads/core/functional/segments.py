"""Episodes inside a batch: who may see whom when a reset starts a new one."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_ids(reset: Tensor) -> Tensor:
    """``(B, T)`` bool -> ``(B, T)`` int64: how many resets have come, this token's among them. What a state holds from
    before belongs to segment 0."""
    return reset.to(torch.int64).cumsum(1)


def same_segment(queries: Tensor, keys: Tensor) -> Tensor:
    """``(B, T)``, ``(B, S)`` -> ``(B, T, S)`` bool."""
    return queries.unsqueeze(-1) == keys.unsqueeze(-2)


def segment_starts(reset: Tensor) -> Tensor:
    """``(B, T)`` bool -> ``(B, T)`` int64: index of the first token of each token's segment, 0 before any reset."""
    index = torch.arange(reset.shape[1], device=reset.device).expand(reset.shape)
    return torch.where(reset, index, 0).cummax(1).values


def positions(real: Tensor, reset: Tensor | None, held: Tensor) -> Tensor:
    """``real (B, T)`` bool, ``reset (B, T)`` bool, ``held (B,)`` int64 -> ``(B, T)`` int64: how many real tokens of its
    own episode came before each token; ``held`` of them are known from before the chunk."""
    before = real.to(torch.int64).cumsum(1) - real.to(torch.int64)
    if reset is None:
        return held.unsqueeze(1) + before
    first = segment_ids(reset) == 0
    earlier = before.gather(1, segment_starts(reset))
    return torch.where(first, held.unsqueeze(1) + before, before - earlier)


def segment_cumsum(x: Tensor, reset: Tensor | None, start: Tensor) -> Tensor:
    """Running sums of ``x (B, T, …)`` that begin at ``start (B, …)`` and, from each reset on, at 0.

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
    """Sums inside blocks, then over blocks: torch walks a column at a time, and long ones do not stay in the cache."""
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
    real_queries: Tensor,
    query_segments: Tensor,
    usable_keys: Tensor,
    key_segments: Tensor,
    offset: int,
    *,
    causal: bool,
    window: int | None,
) -> Tensor:
    """``(B, T, S)``: which key each query may look at; the keys ``offset …`` are the queries' own tokens."""
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
