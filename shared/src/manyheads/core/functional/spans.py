"""Spans of tokens summarised as one key and one value (Combiner, 2107.05768).

    q_span = max_j q_j,   k_span = max_j k_j,   v_span = sum_j softmax_j(q_span . k_j / sqrt(E)) v_j

Shapes: T or S tokens, E head width; any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manyheads.core.functional.attention import attention


def pool_span(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(…, S, E)`` -> key and value ``(…, E)`` of the span. ``real (…, S)``: which tokens there are; a span without
    any has key and value 0."""
    if real is None:
        return k.max(-2).values, span_value(q.max(-2).values, k, v)
    gap, none = ~real.unsqueeze(-1), ~real.any(-1, keepdim=True)
    top, key = (part.masked_fill(gap, float("-inf")).amax(-2).masked_fill(none, 0.0) for part in (q, k))
    return key, span_value(top, k, v, real)


def span_value(top: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None) -> Tensor:
    """The value ``(…, E)`` of a span with the query ``top (…, E)``; 0 without real tokens.

    Half precision is computed in float32, as the scores of its maxima need not fit.
    """
    if k.shape[-2] == 1 and real is None:
        return v.squeeze(-2)
    dtype = v.dtype
    top, k, v = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (top, k, v))
    # many matrices of few rows cost more in calls than in sums
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


def prefix_spans(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(B, H, T, E)`` -> keys and values ``(B, H, T, E)``: at ``t`` the span ``[0, t)``, 0 where it is empty, and
    ``(…, T)`` whether it has tokens. ``real (…, T)`` broadcasts: which tokens there are. Time ``O(T^2)``."""
    some = real.cumsum(-1) > 0
    gap, none = ~real.unsqueeze(-1), ~some.unsqueeze(-1)
    top, key = (part.masked_fill(gap, float("-inf")).cummax(-2).values.masked_fill(none, 0.0) for part in (q, k))
    earlier = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
    value = attention(top, k, v, allowed=earlier & real.unsqueeze(-2))
    return shift(key), shift(value), shift(some.unsqueeze(-1)).squeeze(-1)


def shift(x: Tensor) -> Tensor:
    """One place later along the tokens of ``(…, T, E)``; 0 comes first."""
    return torch.cat([torch.zeros_like(x[..., :1, :]), x[..., :-1, :]], -2)
