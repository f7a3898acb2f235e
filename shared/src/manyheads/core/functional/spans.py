"""Summaries of spans of tokens: one key and one value for each span (Combiner, 2107.05768).

    q_span = max_j q_j,   k_span = max_j k_j,   v_span = sum_j softmax_j(q_span . k_j / sqrt(E)) v_j

Axes: t or s tokens, e head width; any leading axes. ``real`` is False for padding and broadcasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.functional.attention import attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped


def pool_span(
    q: Float[Tensor, "*rows s e"],
    k: Float[Tensor, "*rows s e"],
    v: Float[Tensor, "*rows s e"],
    real: Bool[Tensor, "*#rows s"] | None = None,
) -> tuple[Float[Tensor, "*rows e"], Float[Tensor, "*rows e"]]:
    """Key and value of a span; 0 for a span without real tokens."""
    if real is None:
        return k.max(-2).values, span_value(q.max(-2).values, k, v)
    gap, none = ~real.unsqueeze(-1), ~real.any(-1, keepdim=True)
    top, key = (part.masked_fill(gap, float("-inf")).amax(-2).masked_fill(none, 0.0) for part in (q, k))
    return key, span_value(top, k, v, real)


def span_value(
    top: Float[Tensor, "*rows e"],
    k: Float[Tensor, "*rows s e"],
    v: Float[Tensor, "*rows s e"],
    real: Bool[Tensor, "*#rows s"] | None = None,
) -> Float[Tensor, "*rows e"]:
    """The value of a span whose query is ``top``; 0 for a span without real tokens.

    Half precision is computed in float32, because the scores of maxima can overflow it.
    """
    if k.shape[-2] == 1 and real is None:
        return v.squeeze(-2)
    dtype = v.dtype
    top, k, v = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (top, k, v))
    # Many matrix products of few rows cost more in calls than as sums.
    few = k.shape[-2] < 16
    with torch.autocast(k.device.type, enabled=False):
        scores = (k * top.unsqueeze(-2)).sum(-1) if few else (k @ top.unsqueeze(-1)).squeeze(-1)
        scores = scores * k.shape[-1] ** -0.5
        if real is None:
            weights = scores.softmax(-1)
        else:
            none = ~real.any(-1, keepdim=True)
            weights = scores.masked_fill(~(real | none), float("-inf")).softmax(-1).masked_fill(~real, 0.0)
        mixed = (weights.unsqueeze(-1) * v).sum(-2) if few else (weights.unsqueeze(-2) @ v).squeeze(-2)
    return mixed.to(dtype)


def prefix_spans(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t e"],
    real: Bool[Tensor, "#b #h t"],
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t e"], Bool[Tensor, "#b #h t"]]:
    """Keys and values of the spans ``[0, t)``, 0 for an empty span, and whether the span has real tokens.

    Time ``O(T^2)``.
    """
    some = real.cumsum(-1) > 0
    gap, none = ~real.unsqueeze(-1), ~some.unsqueeze(-1)
    top, key = (part.masked_fill(gap, float("-inf")).cummax(-2).values.masked_fill(none, 0.0) for part in (q, k))
    earlier = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
    value = attention(top, k, v, allowed=earlier & real.unsqueeze(-2))
    return shift(key), shift(value), shift(some.unsqueeze(-1)).squeeze(-1)


def shift(x: Shaped[Tensor, "*rows t e"]) -> Shaped[Tensor, "*rows t e"]:
    """Shift by one token to the right; 0 comes first."""
    return torch.cat([torch.zeros_like(x[..., :1, :]), x[..., :-1, :]], -2)
