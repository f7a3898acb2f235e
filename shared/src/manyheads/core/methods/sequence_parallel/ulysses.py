"""Ulysses: shards of tokens become shards of heads, each rank attends over all tokens for its heads, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from manyheads.core.functional.attention import attention
from manyheads.core.functional.own_backward import once_differentiable
from manyheads.core.methods.sequence_parallel.exchange import Ranks
from manyheads.core.methods.sequence_parallel.layout import Layout


class TokensToHeads(torch.autograd.Function):
    """``(B, H, t, E)`` of all heads -> ``(B, H / P, P t, E)`` of all tokens, rank after rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return to_heads(x, ranks, backward=False)

    @staticmethod
    @once_differentiable("attention_over")
    def backward(ctx: Any, *gradients: Tensor):
        return to_tokens(gradients[0], ctx.ranks, backward=True), None


class HeadsToTokens(torch.autograd.Function):
    """The way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return to_tokens(x, ranks, backward=False)

    @staticmethod
    @once_differentiable("attention_over")
    def backward(ctx: Any, *gradients: Tensor):
        return to_heads(gradients[0], ctx.ranks, backward=True), None


def to_heads(x: Tensor, ranks: Ranks, *, backward: bool) -> Tensor:
    return torch.cat(ranks.all_to_all(x.chunk(ranks.size, 1), backward=backward), 2)


def to_tokens(x: Tensor, ranks: Ranks, *, backward: bool) -> Tensor:
    return torch.cat(ranks.all_to_all(x.chunk(ranks.size, 2), backward=backward), 1)


def head_attention(q: Tensor, k: Tensor, v: Tensor, ranks: Ranks, layout: Layout, causal: bool, scale: float) -> Tensor:
    """``q (B, H, t, E)``, ``k (B, K, t, E)``, ``v (B, K, t, F)`` -> ``(B, H, t, F)``; P divides H and K."""
    order = layout.order(q.device)
    back = order.argsort()[: layout.tokens]
    q, k, v = (TokensToHeads.apply(part, ranks).index_select(2, back) for part in (q, k, v))
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    out = attention(q, k, v, causal=causal, scale=scale)
    pairs = layout.tokens * (layout.tokens + 1) // 2 if causal else layout.tokens**2
    ranks.traffic.computed(q.shape[0] * q.shape[1] * pairs)
    padding = len(order) - layout.tokens
    return HeadsToTokens.apply(torch.nn.functional.pad(out, (0, 0, 0, padding)).index_select(2, order), ranks)
