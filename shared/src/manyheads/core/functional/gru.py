"""The gated recurrent unit (GRU) as one scan with its own backward pass.

    r = sigma(a_r + U_r h),   z = sigma(a_z + U_z h),   n = tanh(a_n + r o (U_n h + b_n)),   h' = (1 - z) o n + z o h

with ``a = W x + b`` computed before the scan, for all tokens. Axes: t tokens, r independent scans (the two directions),
b batch, u units, g = 3 u gates.

The gates are not stored: the backward pass recomputes them, one block of tokens at a time. The backward scan is then
linear in the gradient of h with known coefficients, so that a token costs two small kernels. torch's own unit on the
CPU records some ten nodes for each token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manyheads.core.functional.own_backward import must_be_plain, plain_gradients

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

# Numbers of h in a block of the backward pass: the dozen arrays of that size then stay in the cache.
_CACHED = 1 << 15


def gru_scan(
    gates: Float[Tensor, "t r b g"],
    start: Float[Tensor, "r b u"],
    weight: Float[Tensor, "r u g"],
    bias: Float[Tensor, "r u"],
    fresh: Bool[Tensor, "t #r b"] | None = None,
) -> Float[Tensor, "t r b u"]:
    """The state h after every token.

    Args:
        gates: ``a`` of r, z and n, in this order.
        start: h before the first token.
        weight: the transposed ``U`` of r, z and n, in this order.
        bias: ``b_n``.
        fresh: True if h is 0 before that token.
    """
    keep = None if fresh is None else (~fresh).to(gates.dtype).unsqueeze(-1)
    start, weight, bias = (part.to(gates.dtype) for part in (start, weight, bias))
    if must_be_plain():
        return _plain(gates, start, weight, bias, keep)
    with torch.autocast(gates.device.type, enabled=False):
        return _Scan.apply(gates, start, weight, bias, keep)


def _plain(gates: Tensor, start: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None) -> Tensor:
    """The states of :class:`_Scan` by operations that torch differentiates."""
    h, states = start, []
    with torch.autocast(gates.device.type, enabled=False):
        for t, gate in enumerate(gates.unbind()):
            h = h if keep is None else h * keep[t]
            a_r, a_z, a_n = gate.chunk(3, -1)
            u_r, u_z, u_n = (h @ weight).chunk(3, -1)
            z = torch.sigmoid(a_z + u_z)
            n = torch.tanh(a_n + torch.sigmoid(a_r + u_r) * (u_n + bias.unsqueeze(1)))
            h = torch.lerp(n, h, z)
            states.append(h)
    return torch.stack(states)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, start: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None) -> Tensor:
        units = start.shape[-1]
        a_rz, a_n = gates.split([2 * units, units], -1)
        offsets = torch.cat([a_rz, bias.unsqueeze(1).expand_as(a_n)], -1)
        states, inner = torch.empty_like(a_n, memory_format=torch.contiguous_format), torch.empty_like(gates[0])
        r, z, u_n = inner.split(units, -1)
        opened, candidate = inner[..., : 2 * units], torch.empty_like(start)
        h, kept = start, ([None] * len(gates) if keep is None else keep.unbind())
        for offset, new, out, k in zip(offsets.unbind(), a_n.unbind(), states.unbind(), kept, strict=True):
            h = h if k is None else h * k
            torch.baddbmm(offset, h, weight, out=inner)
            opened.sigmoid_()
            torch.addcmul(new, r, u_n, out=candidate).tanh_()
            h = torch.lerp(candidate, h, z, out=out)
        ctx.save_for_backward(gates, start, weight, bias, states, *(() if keep is None else (keep,)))
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        gates, start, weight, bias, states, *rest = ctx.saved_tensors
        (above,), keep = gradients, (rest[0] if rest else None)
        if torch.is_grad_enabled():
            return plain_gradients(_plain, (gates, start, weight, bias, keep), above)
        units = start.shape[-1]
        one = torch.eye(units, dtype=weight.dtype, device=weight.device).expand(len(weight), -1, -1)
        back = torch.cat([weight.mT, one], 1)
        d_gates, carry = torch.empty_like(gates), torch.zeros_like(start)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        block = max(16, _CACHED // start.numel())
        for low in reversed(range(0, len(gates), block)):
            cut = slice(low, low + block)
            first = states[low - 1] if low else start
            before = torch.cat([first.unsqueeze(0), states[low : low + block - 1]])[: len(gates[cut])]
            before = before if keep is None else before * keep[cut]
            a_r, a_z, a_n = gates[cut].split(units, -1)
            scans = before.transpose(0, 1).flatten(1, 2)  # (R, T B, U): one product a scan
            u_r, u_z, u_n = (scans @ weight).unflatten(1, (len(before), -1)).transpose(0, 1).split(units, -1)
            u_n = u_n + bias.unsqueeze(1)
            r, z = torch.sigmoid(a_r + u_r), torch.sigmoid(a_z + u_z)
            n = torch.tanh(a_n + r * u_n)
            # Derivatives of h' by U_r h, U_z h, U_n h and by h itself, on an axis of their own. Their product with
            # [U_r; U_z; U_n; 1] and the gradient of h' is the gradient of h.
            by_n = (1 - z) * (1 - n * n)
            by_r = by_n * u_n * r * (1 - r)
            factor = torch.stack([by_r, (before - n) * z * (1 - z), by_n * r, z], -2)
            sent = factor if keep is None else factor * keep[cut].unsqueeze(-1)
            total = torch.empty_like(before)
            torch.add(above[cut][-1], carry, out=total[-1])
            product, wide = torch.empty_like(sent[0]), total.unsqueeze(-2)
            flat = product.flatten(-2)
            steps = (above[cut][:-1].unbind(), sent[1:].unbind(), total[:-1].unbind(), wide[1:].unbind())
            for g, c, d_before, d in zip(*(reversed(step) for step in steps), strict=True):
                torch.mul(c, d, out=product)
                torch.baddbmm(g, flat, back, out=d_before)
            carry = torch.bmm((sent[0] * wide[0]).flatten(-2), back)
            through = (factor[..., :3, :] * wide).flatten(-2)
            d_gates[cut] = through
            torch.mul(by_n, total, out=d_gates[cut][..., 2 * units :])
            d_weight += scans.mT @ through.transpose(0, 1).flatten(1, 2)
            d_bias += through[..., 2 * units :].sum((0, 2))
        return d_gates, carry, d_weight, d_bias, None
