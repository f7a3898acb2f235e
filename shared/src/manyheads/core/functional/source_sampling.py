"""Source subsampling: draw a part of the source tokens for training, and attend to these (2306.01705).

Axes: b batch, h heads, t queries, s sources, e head width; r rows (B, or 1 if all rows share the sample), g blocks of
queries, k = ceil(ratio S) kept sources. ``usable`` is False for padding; a row with n usable sources keeps
ceil(ratio n) of them. The samples come from torch's generator: ``torch.manual_seed`` sets them, and activation
checkpointing repeats them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.functional.attention import attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# A product that differs from a whole number by rounding counts as that number.
TOLERANCE = 1e-9


def kept_sources(total: int, ratio: float) -> int:
    """The number of kept sources, ``ceil(ratio total)``."""
    return math.ceil(ratio * total - TOLERANCE)


def uniform_sources(usable: Bool[Tensor, "r s"], ratio: float) -> tuple[Int[Tensor, "r 1 k"], Bool[Tensor, "r 1 k"]]:
    """Draw usable sources uniformly without replacement: their positions, and False for places left empty."""
    noise = torch.rand(usable.shape, device=usable.device)
    order = noise.masked_fill(~usable, 2.0).argsort(1)
    width = kept_sources(usable.shape[1], ratio)
    kept = torch.arange(width, device=usable.device) < _kept(usable, ratio)
    return order[:, None, :width], kept.unsqueeze(1)


def local_sources(
    usable: Bool[Tensor, "r s"],
    first: Int[Tensor, "r g"],
    last: Int[Tensor, "r g"],
    ratio: float,
    spread: float,
    *,
    causal: bool,
) -> tuple[Int[Tensor, "r g k"], Bool[Tensor, "r g k"]]:
    """Draw sources for each block of queries, near ones more often: their positions, and False for places left empty.

    The usable sources are sorted by ``i + spread K e_i`` with normal ``e_i``. A block takes a window of K sources in
    this order, around its middle or, with ``causal``, up to its end.

    Args:
        usable: False for padding.
        first: the first query of each block, as a number among the usable sources.
        last: the last one.
        ratio: the share of kept sources.
        spread: the standard deviation of the noise in units of K.
        causal: whether the window ends with the block.
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
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s e"],
    sources: Int[Tensor, "r g n"],
    kept: Bool[Tensor, "r g n"],
    *,
    offset: int = 0,
    allowed: Bool[Tensor, "#b #g #size #n"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    """Softmax attention over chosen sources and, always, the query's own token.

    Args:
        sources: n sources of each of the G blocks of ceil(T / G) queries.
        kept: False for places left empty.
        offset: query t is source ``offset + t``.
        allowed: mask that broadcasts to ``(B, G, ceil(T / G), n)``, True if the query may attend to the source; None if
            all sources are kept and allowed.
        scale: of the scores, ``E ** -0.5`` by default.

    Every query has another own key. It goes through the fused kernel as one more source: an extra width of the queries
    holds its score, and an extra width of the values measures its weight, so that no ``(T, n)`` scores are stored.
    float16 is computed in float32, because that score can overflow it.
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
    # An own token that is among the sources gets a score that is finite and far below any other: no weight, no
    # gradient.
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
