"""Ulysses: exchange shards of tokens for shards of heads, attend over all tokens, exchange back.

Axes: b batch, h query heads, k heads of keys and values, t tokens of a rank, n = P t tokens, e key width, f value
width; c heads of a rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manyheads.core.functional.attention import attention
from manyheads.core.functional.own_backward import once_differentiable
from manyheads.core.methods.sequence_parallel.exchange import Ranks
from manyheads.core.methods.sequence_parallel.layout import Layout

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


class TokensToHeads(torch.autograd.Function):
    """:func:`to_heads`, with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "b h t e"], ranks: Ranks) -> Float[Tensor, "b c n e"]:
        """Exchange tokens for heads."""
        ctx.ranks = ranks
        return to_heads(x, ranks, backward=False)

    @staticmethod
    @once_differentiable("attention_over")
    def backward(ctx: Any, *gradients: Shaped[Tensor, "..."]):
        """Exchange the gradient back."""
        return to_tokens(gradients[0], ctx.ranks, backward=True), None


class HeadsToTokens(torch.autograd.Function):
    """:func:`to_tokens`, with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "b c n e"], ranks: Ranks) -> Float[Tensor, "b h t e"]:
        """Exchange heads for tokens."""
        ctx.ranks = ranks
        return to_tokens(x, ranks, backward=False)

    @staticmethod
    @once_differentiable("attention_over")
    def backward(ctx: Any, *gradients: Shaped[Tensor, "..."]):
        """Exchange the gradient back."""
        return to_heads(gradients[0], ctx.ranks, backward=True), None


def to_heads(x: Float[Tensor, "b h t e"], ranks: Ranks, *, backward: bool) -> Float[Tensor, "b c n e"]:
    """Exchange this rank's tokens of all heads for all tokens, rank after rank, of its H / P heads."""
    return torch.cat(ranks.all_to_all(x.chunk(ranks.size, 1), backward=backward), 2)


def to_tokens(x: Float[Tensor, "b c n e"], ranks: Ranks, *, backward: bool) -> Float[Tensor, "b h t e"]:
    """The inverse of :func:`to_heads`."""
    return torch.cat(ranks.all_to_all(x.chunk(ranks.size, 2), backward=backward), 1)


def head_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b k t e"],
    v: Float[Tensor, "b k t f"],
    ranks: Ranks,
    layout: Layout,
    causal: bool,
    scale: float,
) -> Float[Tensor, "b h t f"]:
    """Attention of the local queries over the keys of all ranks; P divides H and K."""
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
