"""Attention among the tokens of one cluster, for clusters that are given (2003.05997 and what is near it).

Shapes: B batch, H heads, T tokens, C clusters, w tokens a cluster, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manyheads.core.functional.attention import attention
from manyheads.core.functional.windowed_attention import windowed_attention


def clustered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    causal: bool = False,
    real: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention inside given clusters, and the mean over the clusters of each token; 0 for a token in none.

    ``q``, ``k``, ``v`` are ``(B, H, T, E)``; ``queries`` and ``keys`` (the same if None) are the members
    ``(B, H, C, w)``, positions in ascending order; ``real (B, H, C, w)`` is False for key members that do not count.
    """
    batch, heads, tokens, width = q.shape
    clusters, size = queries.shape[2:]
    offset = tokens * torch.arange(batch * heads, device=q.device).view(batch, heads, 1, 1)
    rows = (queries + offset).flatten()
    key_rows = rows if keys is None else (keys + offset).flatten()

    def gather(part: Tensor, index: Tensor) -> Tensor:
        return part.reshape(-1, width).index_select(0, index).view(batch * heads, clusters, size, width)

    allowed = None
    if causal and (keys is not None or real is not None):
        allowed = (queries if keys is None else keys).unsqueeze(-2) <= queries.unsqueeze(-1)
    if real is not None:
        allowed = real.unsqueeze(-2) if allowed is None else allowed & real.unsqueeze(-2)
    flat = None if allowed is None else allowed.flatten(0, 1)
    out = attention(
        gather(q, rows),
        gather(k, key_rows),
        gather(v, key_rows),
        allowed=flat,
        causal=causal and allowed is None,
        scale=scale,
    )
    seen = out.new_ones(rows.shape) if allowed is None else allowed.any(-1).expand(queries.shape).flatten().to(q.dtype)
    total = q.new_zeros(batch * heads * tokens, width).index_add(0, rows, out.view(-1, width))
    count = q.new_zeros(batch * heads * tokens).index_add(0, rows, seen)
    return (total / count.clamp(min=1).unsqueeze(-1)).view(batch, heads, tokens, width)


def latest_in_cluster(
    x: Tensor,
    v: Tensor,
    cluster: Tensor,
    held: tuple[Tensor, Tensor, Tensor],
    *,
    real: Tensor,
    segment: Tensor,
    last: Tensor,
    fresh: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Each token over the latest w of its own cluster and episode, itself among them; and what is held after it.

    ``x (B, H, T, E)`` are queries and keys, ``v`` values, ``cluster (B, H, T)`` int64. ``held`` are keys and values
    ``(B, H, C, w - 1, E)`` at the right end of their slots, and how many slots are in use, ``(B, H, C)``; ``fresh``
    says that none is. ``real (B, T)`` is True for the first tokens of each row, ``segment (B, T)`` numbers the
    episodes (what is held belongs to 0), ``last (B, 1)`` is the number of the one that goes on.

    Tokens are sorted by episode and cluster, those held first; a window in that order does the rest.
    """
    batch, heads, tokens, width = x.shape
    clusters, slots = held[0].shape[2:4]
    window, device, fold = slots + 1, x.device, batch * heads
    own = torch.arange(clusters, device=device)
    beyond = clusters * (tokens + 1)  # after all episodes
    group = torch.where(real.unsqueeze(1), segment.unsqueeze(1) * clusters + cluster, beyond)
    keys, values, before = x, v, 0
    if slots and not fresh:
        before = clusters * slots
        keys, values = torch.cat([held[0].flatten(2, 3), x], 2), torch.cat([held[1].flatten(2, 3), v], 2)
        empty = torch.arange(slots, device=device) < slots - held[2].unsqueeze(-1)
        group = torch.cat([torch.where(empty, beyond, own.unsqueeze(-1)).flatten(2), group], 2)
    group, order = group.reshape(fold, -1).sort(dim=1, stable=True)
    index = torch.arange(before + tokens, device=device).expand(fold, -1).contiguous()
    place = torch.empty_like(order).scatter(1, order, index)[:, before:]
    keys, values = keys.reshape(fold, -1, width), values.reshape(fold, -1, width)
    if tokens * 4 <= before:  # a few tokens gather their own windows; the sorted whole is mostly what is held
        steps = place.unsqueeze(-1) + torch.arange(-slots, 1, device=device)
        reached = steps.clamp(min=0)
        same = (steps >= 0) & (_rows(group, reached.flatten(1)).view_as(steps) == _rows(group, place).unsqueeze(-1))
        rows = order.gather(1, reached.flatten(1))
        near = (_rows(part, rows).view(fold, tokens, window, width) for part in (keys, values))
        out = attention(x.reshape(fold, tokens, 1, width), *near, allowed=same.unsqueeze(2)).squeeze(2)
    else:
        sorted_keys, sorted_values = (_rows(part, order).unsqueeze(1) for part in (keys, values))
        out = windowed_attention(
            sorted_keys, sorted_keys, sorted_values, window=window, usable=group < beyond, segments=group
        )
        out = _rows(out.squeeze(1), place)
    wanted = (last * clusters + own).repeat_interleave(heads, 0, output_size=fold)
    first, end = torch.searchsorted(group, wanted), torch.searchsorted(group, wanted, right=True)
    source = end.unsqueeze(-1) - slots + torch.arange(slots, device=device)
    kept, rows = (source >= first.unsqueeze(-1)).unsqueeze(-1), order.gather(1, source.clamp(min=0).flatten(1))
    new_keys, new_values = (
        torch.where(kept, _rows(part, rows).view(fold, clusters, slots, width), 0.0).unflatten(0, (batch, heads))
        for part in (keys, values)
    )
    used = (end - first).clamp(max=slots).view(batch, heads, clusters)
    return out.view(batch, heads, tokens, width), (new_keys, new_values, used)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """``x (N, L, …)`` and ``index (N, M)`` -> ``(N, M, …)``."""
    offset = x.shape[1] * torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return x.flatten(0, 1).index_select(0, (index + offset).flatten()).unflatten(0, index.shape)
