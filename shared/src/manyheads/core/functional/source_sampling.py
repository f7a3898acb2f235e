"""Which source tokens attention may use while it is trained on a part of them, and attention over those (2306.01705).

Shapes: B batch, H heads, T queries, S sources, E head width; R rows (B, or 1 for a choice that all rows share),
G blocks of queries, K = ceil(ratio S) kept sources. ``usable (R, S)`` is False for sources that are not there; each
row keeps ceil(ratio n) of its n usable ones. The draws are torch's: ``torch.manual_seed`` sets them, and activation
checkpointing repeats them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.functional.attention import attention

TOLERANCE = 1e-9  # a product that is a whole number but for rounding counts as one


def kept_sources(total: int, ratio: float) -> int:
    """``ceil(ratio total)``."""
    return math.ceil(ratio * total - TOLERANCE)


def uniform_sources(usable: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Each usable source with the same chance, without repetition: positions ``(R, 1, K)`` and which are kept."""
    noise = torch.rand(usable.shape, device=usable.device)
    order = noise.masked_fill(~usable, 2.0).argsort(1)
    width = kept_sources(usable.shape[1], ratio)
    kept = torch.arange(width, device=usable.device) < _kept(usable, ratio)
    return order[:, None, :width], kept.unsqueeze(1)


def local_sources(
    usable: Tensor,
    first: Tensor,
    last: Tensor,
    ratio: float,
    spread: float,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """A window in a noisy order of the sources for each block of queries: near ones are likely, far ones possible.

    The order sorts ``i + spread K e_i`` with normal ``e_i`` over the usable sources. Block g, whose queries are the
    usable sources number ``first (R, G)`` to ``last (R, G)``, takes the window of K around its middle, or, ``causal``,
    the one that ends with it. Gives positions ``(R, G, K)`` and which are kept.
    """
    count, kept = usable.sum(1, keepdim=True), _kept(usable, ratio)
    noise = torch.randn(usable.shape, device=usable.device, dtype=torch.float64)
    place = usable.cumsum(1) + spread * kept * noise
    order = place.masked_fill(~usable, float("inf")).argsort(1)
    start = last + 1 - kept if causal else (first + last + 1 - kept) // 2
    start = torch.minimum(start, count - kept).clamp(min=0)
    slot = torch.arange(kept_sources(usable.shape[1], ratio), device=usable.device)
    index = (start.unsqueeze(-1) + slot).clamp(max=usable.shape[1] - 1)
    chosen = order.gather(1, index.flatten(1)).view_as(index)
    return chosen, (slot < kept.unsqueeze(-1)).expand_as(chosen)


def _kept(usable: Tensor, ratio: float) -> Tensor:
    return torch.ceil(usable.sum(1, keepdim=True) * float(ratio) - TOLERANCE).to(torch.int64)


def sampled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sources: Tensor,
    kept: Tensor,
    *,
    offset: int = 0,
    allowed: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention over chosen sources and, always, each query's own token.

    ``q (B, H, T, E)``; ``k`` and ``v`` ``(B, H, S, E)``, where query t is source ``offset + t``. ``sources`` and
    ``kept`` are ``(R, G, K)``: the G blocks of ceil(T / G) queries have K sources each. ``allowed``, broadcasting to
    ``(B, G, ceil(T / G), K)``, is True where a query may look; None says that all sources are kept and seen.

    The own key is another one for each query. It runs through the fused kernel as one more source, whose score is put
    into an extra width of the queries and whose value marks how much weight it got: no ``(T, K)`` scores are stored.
    float16, which that score need not fit, is computed in float32.
    """
    if q.dtype == torch.float16:
        wide = (part.float() for part in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            return sampled_attention(*wide, sources, kept, offset=offset, allowed=allowed, scale=scale).to(q.dtype)
    batch, heads, tokens, width = q.shape
    _, blocks, count = sources.shape
    scale = width**-0.5 if scale is None else scale
    size = -(-tokens // blocks)
    own_k, own_v = k[:, :, offset:], v[:, :, offset:]
    own = functional.pad(torch.arange(tokens, device=q.device) + offset, (0, blocks * size - tokens))
    chosen = torch.zeros(*sources.shape[:2], k.shape[2], dtype=torch.bool, device=q.device).scatter(2, sources, kept)
    twice = chosen.gather(2, own.view(1, blocks, size).expand(len(chosen), -1, -1))
    twice = twice.flatten(1)[:, None, :tokens, None]
    # Finite and far below any score: a source that gets no weight, and no gradient.
    score = (q * own_k).sum(-1, keepdim=True).masked_fill(twice, torch.finfo(q.dtype).min / 4)

    def blocks_of(part: Tensor) -> Tensor:
        padded = functional.pad(part, (0, 0, 0, blocks * size - tokens))
        return padded.unflatten(2, (blocks, size)).transpose(1, 2).flatten(0, 1)

    rows = k.shape[2] * torch.arange(batch, device=q.device).view(-1, 1, 1) + sources

    def chosen_of(part: Tensor, mark: float) -> Tensor:
        flat = part.transpose(1, 2).reshape(batch * k.shape[2], heads * width)
        taken = flat.index_select(0, rows.flatten()).view(batch * blocks, count, heads, width).transpose(1, 2)
        extra = taken.new_zeros(width + 1)
        extra[-1] = mark
        last = extra.expand(batch * blocks, heads, 1, -1)
        return torch.cat([functional.pad(taken, (0, 1)), last], 2)

    if allowed is not None:
        allowed = functional.pad(allowed.expand(batch, -1, -1, -1).flatten(0, 1), (0, 1), value=True).unsqueeze(1)
    queries = blocks_of(torch.cat([q, score], -1))
    out = attention(queries, chosen_of(k, 1.0), chosen_of(v, 1.0), allowed=allowed, scale=scale)
    out = out.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]
    return out[..., :width] + out[..., width:] * own_v
