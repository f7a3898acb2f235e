"""Softmax attention without parameters.

    out[b, h, t] = sum_s softmax_s(scale * q[b, h, t] . k[b, h, s] + mask) v[b, h, s]

Axes: b batch, h heads, t queries, s keys, e key width, f value width. A query without an allowed key gives 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from manyheads.core.errors import ArgumentError
from manyheads.core.functional.own_backward import differentiated_twice, must_be_plain, plain_gradients

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

# Private to torch: named here only, and every use has a fallback.
_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_CPU_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
# Queries whose scores are materialised at once if there is no fused kernel.
_ROWS = 512


def attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s f"],
    *,
    allowed: Bool[Tensor, "... #t #s"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "b h t f"]:
    """Softmax attention by torch's fused kernel.

    Args:
        allowed: mask that broadcasts to ``(B, H, T, S)``, True if the query may attend to the key.
        causal: query t attends to keys 0 to t; needs ``T == S`` and no ``allowed``.
        scale: of the scores, ``E ** -0.5`` by default.

    Keys or values are padded to the same width, because the fused kernel takes only equal widths.

    The fused kernels have a first derivative only. A backward pass under ``create_graph`` computes its gradients with
    torch's math kernel instead, which has every derivative and materialises the ``(T, S)`` scores.
    """
    width = v.shape[-1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if width < q.shape[-1]:
        v = functional.pad(v, (0, q.shape[-1] - width))
    elif width > q.shape[-1]:
        q, k = (functional.pad(part, (0, width - part.shape[-1])) for part in (q, k))
    if differentiated_twice():
        out = _by_math(q, k, v, allowed, causal, scale)
    else:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, scale=scale)
    if not must_be_plain() and out.grad_fn is not None and out.grad_fn.name().startswith("ScaledDotProduct"):
        out = _Again.apply(out, q, k, v, allowed, causal, scale)
    return out[..., :width]


def _by_math(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool, scale: float) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, scale=scale)


class _Again(torch.autograd.Function):
    """Identity on the fused kernel's output, with every derivative.

    The gradient goes to the fused kernel. Under ``create_graph`` it goes past it, by the math kernel to ``q``, ``k``
    and ``v``.
    """

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, allowed)
        ctx.causal, ctx.scale = causal, scale
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return *gradients, None, None, None, None, None, None
        inputs = (*ctx.saved_tensors, ctx.causal, ctx.scale)
        return None, *plain_gradients(_by_math, inputs, *gradients)


def attention_with_lse(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s f"],
    *,
    allowed: Bool[Tensor, "... #t #s"] | None = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t f"], Float[Tensor, "b h t"]]:
    """Softmax attention and the log-sum-exp of its scores; both are differentiable.

    A query without an allowed key has log-sum-exp minus infinity. Materialises the ``(T, S)`` scores.
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


def fused_attention_with_lse(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s f"],
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t f"], Float[Tensor, "b h t"]]:
    """Softmax attention and log-sum-exp without the ``(T, S)`` scores in memory.

    The result is not differentiable: :func:`fused_attention_backward` computes the gradients, and
    :func:`attention_with_lse` is differentiable. The CPU runs torch's fused kernel. On other devices, without keys, or
    if torch has no such kernel, 512 rows of scores at a time are materialised. ``causal`` aligns the first query with
    the first key. The log-sum-exp is float32 for half precision.

    Raises:
        ArgumentError: gradients are recorded and an input requires them; ``k`` or ``v`` with other heads than ``q``
            (the kernel would read out of bounds).
    """
    if torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v)):
        raise ArgumentError(
            "fused_attention_with_lse: found an input that requires gradients, expected torch.no_grad() or "
            "attention_with_lse: the fused kernel has no gradient of the log-sum-exp"
        )
    if not q.shape[:2] == k.shape[:2] == v.shape[:2] or k.shape[2] != v.shape[2] or q.shape[3] != k.shape[3]:
        raise ArgumentError(
            f"fused_attention_with_lse: found q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, "
            "expected (B, H, T, E), (B, H, S, E), (B, H, S, F)"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if _CPU is None or not _fits(q, k):
        return _by_rows(q, k, v, causal, scale)
    width = v.shape[-1]
    q, k, v = _same_width(q, k, v)
    out, lse = _CPU(q, k, v, 0.0, causal, scale=scale)
    return out[..., :width], lse


def fused_attention_backward(
    gradient: Float[Tensor, "b h t f"],
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s f"],
    out: Float[Tensor, "b h t f"],
    lse: Float[Tensor, "b h t"],
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h s e"], Float[Tensor, "b h s f"]]:
    """Gradients of ``q``, ``k`` and ``v`` from the gradient of the attention ``out``.

    ``k`` and ``v`` may be a part of the keys that ``out`` and ``lse`` were computed from: the result is then the share
    of that part in the gradients. With ``p = exp(scale q k' - lse)`` and ``c = g . out``,

        dv = p' g,   ds = p (g v' - c),   dq = scale ds k,   dk = scale ds' q.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if _CPU_BACKWARD is None or not _fits(q, k):
        return _backward_by_rows(gradient, q, k, v, out, lse, causal, scale)
    widths = q.shape[-1], v.shape[-1]
    out, gradient = (functional.pad(part, (0, max(widths) - widths[1])) for part in (out, gradient))
    q, k, v = _same_width(q, k, v)
    dq, dk, dv = _CPU_BACKWARD(gradient, q, k, v, out, lse, 0.0, causal, scale=scale)
    return dq[..., : widths[0]], dk[..., : widths[0]], dv[..., : widths[1]]


def _fits(q: Tensor, k: Tensor) -> bool:
    return q.device.type == "cpu" and q.numel() > 0 and k.numel() > 0


def _same_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    missing = v.shape[-1] - q.shape[-1]
    if missing > 0:
        return functional.pad(q, (0, missing)), functional.pad(k, (0, missing)), v
    return q, k, functional.pad(v, (0, -missing)) if missing else v


def _scores(q: Tensor, k: Tensor, first: int, causal: bool, scale: float) -> Tensor:
    """Scores of the queries ``first … first + T``, in float32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if causal:
        row = torch.arange(first, first + q.shape[2], device=q.device).unsqueeze(1)
        scores = scores.masked_fill(torch.arange(k.shape[2], device=q.device) > row, float("-inf"))
    return scores


def _by_rows(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    parts = []
    for first in range(0, max(q.shape[2], 1), _ROWS):
        scores = _scores(q[:, :, first : first + _ROWS], k, first, causal, scale)
        lse = scores.logsumexp(-1)
        weights = torch.exp(scores - torch.where(lse.isinf(), 0.0, lse).unsqueeze(-1))
        parts.append(((weights @ v.to(scores.dtype)).to(v.dtype), lse))
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _backward_by_rows(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = lse.dtype
    dq, dk, dv = (torch.zeros_like(part, dtype=wide) for part in (q, k, v))
    for first in range(0, q.shape[2], _ROWS):
        rows = (slice(None), slice(None), slice(first, first + _ROWS))
        g = gradient[rows].to(wide)
        base = lse[rows].unsqueeze(-1)
        p = torch.exp(_scores(q[rows], k, first, causal, scale) - torch.where(base.isinf(), 0.0, base))
        ds = p * (g @ v.to(wide).transpose(-1, -2) - (g * out[rows].to(wide)).sum(-1, keepdim=True)) * scale
        dq[rows] = ds @ k.to(wide)
        dk += ds.transpose(-1, -2) @ q[rows].to(wide)
        dv += p.transpose(-1, -2) @ g
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)
