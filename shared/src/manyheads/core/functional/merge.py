"""Merge softmax attention over parts of the keys.

Over a set of keys with scores ``s`` the partial softmax is ``m = max s``, ``l = sum exp(s - m)``,
``o = sum exp(s - m) v``. Two disjoint sets merge to

    m = max(m1, m2),   a_i = exp(m_i - m),   l = a1 l1 + a2 l2,   o = a1 o1 + a2 o2,

which is associative and commutative with the neutral element ``(-inf, 0, 0)``. Attention is ``o / l``, the log-sum-exp
``m + log l``. Tiled and distributed attention use it (2405.02803).

Axes: t queries, s keys, e key width, f value width; any leading axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class Partial(NamedTuple):
    """The partial softmax over a set of keys; see the module for the symbols."""

    m: Float[Tensor, "*rows t"]
    l: Float[Tensor, "*rows t"]  # noqa: E741 - the field's symbol
    o: Float[Tensor, "*rows t f"]


def partial_attention(
    q: Float[Tensor, "*rows t e"],
    k: Float[Tensor, "*rows s e"],
    v: Float[Tensor, "*rows s f"],
    *,
    allowed: Bool[Tensor, "... #t #s"] | None = None,
    scale: float | None = None,
) -> Partial:
    """The partial softmax of the queries over these keys, in float32 at least.

    Args:
        allowed: mask that broadcasts to the scores, True if the query may attend to the key.
        scale: of the scores, ``E ** -0.5`` by default.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (q, k, v))
    with torch.autocast(q.device.type, enabled=False):
        scores = (q @ k.transpose(-1, -2)) * scale
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        m = scores.detach().amax(-1)
        weights = torch.exp(scores - torch.where(m.isinf(), 0.0, m).unsqueeze(-1))
        return Partial(m, weights.sum(-1), weights @ v)


def empty_partial(like: Partial) -> Partial:
    """The neutral element of :func:`merge`, with the shapes of ``like``."""
    return Partial(torch.full_like(like.m, float("-inf")), torch.zeros_like(like.l), torch.zeros_like(like.o))


def merge(first: Partial, second: Partial) -> Partial:
    """The partial softmax over both sets of keys; differentiable in all six tensors."""
    return Partial(*_Merge.apply(*first, *second))


def finish(partial: Partial) -> tuple[Float[Tensor, "*rows t f"], Float[Tensor, "*rows t"]]:
    """Attention and log-sum-exp; 0 and minus infinity for a query without an allowed key."""
    some = partial.l > 0
    total = torch.where(some, partial.l, 1.0)
    lse = torch.where(some, partial.m + total.log(), float("-inf"))
    return partial.o / total.unsqueeze(-1), lse


class _Merge(torch.autograd.Function):
    """The merge of two partial results, with its own gradient.

    With ``c_i = a_i (g_l l_i + g_o . o_i)``, the gradient of ``m_i`` is ``c_i`` plus, if ``m_i`` is the maximum (half
    each at a tie), ``g_m - c_1 - c_2``. The gradient of ``l_i`` is ``a_i g_l``, that of ``o_i`` is ``a_i g_o``. An
    empty set has ``a_i = 0`` and no gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(m1: Tensor, l1: Tensor, o1: Tensor, m2: Tensor, l2: Tensor, o2: Tensor):
        m, a1, a2 = _factors(m1, m2)
        return m, a1 * l1 + a2 * l2, a1.unsqueeze(-1) * o1 + a2.unsqueeze(-1) * o2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        g_m, g_l, g_o = gradients
        m1, l1, o1, m2, l2, o2 = ctx.saved_tensors
        # Recomputed, because a saved tensor that is neither input nor output has no derivative.
        _, a1, a2 = _factors(m1, m2)
        c1 = a1 * (g_l * l1 + (g_o * o1).sum(-1))
        c2 = a2 * (g_l * l2 + (g_o * o2).sum(-1))
        share = torch.where(m1 == m2, 0.5, (m1 > m2).to(g_m.dtype))
        top = torch.where(torch.maximum(m1, m2).isinf(), 0.0, g_m - c1 - c2)
        w1, w2 = a1.unsqueeze(-1), a2.unsqueeze(-1)
        return c1 + share * top, a1 * g_l, w1 * g_o, c2 + (1 - share) * top, a2 * g_l, w2 * g_o


def _factors(m1: Tensor, m2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """m and the factors a_1, a_2."""
    m = torch.maximum(m1, m2)
    base = torch.where(m.isinf(), 0.0, m)
    return m, torch.exp(m1 - base), torch.exp(m2 - base)
