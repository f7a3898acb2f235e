"""Softmax attention within given clusters of tokens, as in the Routing Transformer (2003.05997) and its relatives.

Axes: b batch, h heads, t tokens, c clusters, w tokens of a cluster, m = w - 1 of them in the state, e width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.functional.attention import attention
from manyheads.core.functional.windowed_attention import windowed_attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def clustered_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t e"],
    queries: Int[Tensor, "b h c w"],
    keys: Int[Tensor, "b h c w"] | None = None,
    *,
    causal: bool = False,
    real: Bool[Tensor, "b h c w"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    """Attention within each cluster, averaged over the clusters of a token; 0 for a token without a cluster.

    Args:
        queries: the members of each cluster, positions in ascending order.
        keys: the members that serve as keys; ``queries`` by default.
        causal: a token attends to members at its own position and before.
        real: False for keys that are padding.
        scale: of the scores, ``E ** -0.5`` by default.
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
    x: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t e"],
    cluster: Int[Tensor, "b h t"],
    held: tuple[Float[Tensor, "b h c m e"], Float[Tensor, "b h c m e"], Int[Tensor, "b h c"]],
    *,
    real: Bool[Tensor, "b t"],
    segment: Int[Tensor, "b t"],
    last: Int[Tensor, "b 1"],
    fresh: bool = False,
) -> tuple[
    Float[Tensor, "b h t e"],
    tuple[Float[Tensor, "b h c m e"], Float[Tensor, "b h c m e"], Int[Tensor, "b h c"]],
]:
    """Attention of each token over the latest w tokens of its cluster and episode, itself included; and the new state.

    Tokens are sorted by episode and cluster, those of the state first; windowed attention runs in that order.

    Args:
        x: queries and keys.
        v: values.
        cluster: the cluster of each token.
        held: the state: keys and values of the previous tokens of each cluster, aligned to the right, and how many
            there are.
        real: True for the first tokens of each row (padding on the right only).
        segment: the number of each token's episode; the state belongs to episode 0.
        last: the number of the episode that continues after the chunk.
        fresh: the state holds no token.
    """
    batch, heads, tokens, width = x.shape
    clusters, slots = held[0].shape[2:4]
    window, device, fold = slots + 1, x.device, batch * heads
    own = torch.arange(clusters, device=device)
    # Sorts after all episodes.
    beyond = clusters * (tokens + 1)
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
    # A few tokens gather their own windows: most of the sorted tokens are those of the state.
    if tokens * 4 <= before:
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
    """Rows ``index (N, M)`` of ``x (N, L, …)``, ``(N, M, …)``."""
    offset = x.shape[1] * torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    return x.flatten(0, 1).index_select(0, (index + offset).flatten()).unflatten(0, index.shape)
