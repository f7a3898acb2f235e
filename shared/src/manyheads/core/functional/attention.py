"""Softmax attention without parameters.

    out[b, h, t] = sum_s softmax_s(scale * q[b, h, t] . k[b, h, s] + mask) v[b, h, s]

Shapes: B batch, H heads, T queries, S keys, E key width, F value width. A row that may attend to nothing gives 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, allowed: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """``q (B, H, T, E)``, ``k (B, H, S, E)``, ``v (B, H, S, F)`` -> ``(B, H, T, F)``.

    ``allowed`` is a boolean mask that broadcasts to ``(B, H, T, S)``, True where a query may look. ``causal`` needs
    ``T == S`` and no ``allowed``. Runs on torch's fused kernel; values of another width than the keys are padded to it
    so that the fused kernel stays in use.
    """
    width = v.shape[-1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if width < q.shape[-1]:
        v = functional.pad(v, (0, q.shape[-1] - width))
    elif width > q.shape[-1]:
        q, k = (functional.pad(part, (0, width - part.shape[-1])) for part in (q, k))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, scale=scale)
    return out[..., :width]


def attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, *, allowed: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores, ``(B, H, T, F)`` and ``(B, H, T)``; both are differentiable.

    A row that may attend to nothing has log-sum-exp minus infinity. Materialises the ``(T, S)`` scores.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = (q @ k.transpose(-1, -2)) * scale
    if allowed is None:
        lse = scores.logsumexp(-1)
        return torch.exp(scores - lse.unsqueeze(-1)) @ v, lse
    some = allowed.any(-1)
    open_scores = scores.masked_fill(~allowed, float("-inf")).masked_fill(~some.unsqueeze(-1), 0.0)
    lse = open_scores.logsumexp(-1)
    weights = torch.exp(open_scores - lse.unsqueeze(-1)).masked_fill(~allowed, 0.0)
    return weights @ v, lse.masked_fill(~some.expand(lse.shape), float("-inf"))
