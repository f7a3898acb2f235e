"""Causal sliding-window softmax attention in blocks: time and memory ``O(T W)``, never ``O(T^2)``.

Axes: b batch, h heads, t queries, s keys, e key width, f value width; W tokens of the window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.functional.attention import attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# In a smaller block the overhead of the fused kernel outweighs the saved products.
SHORTEST_BLOCK = 64


def windowed_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s f"],
    *,
    window: int,
    usable: Bool[Tensor, "b s"],
    segments: Int[Tensor, "b s"],
    sees: Int[Tensor, "b t"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h t f"]:
    """Attention of each query over the latest W tokens of its episode, itself included; 0 without a usable key.

    A block of C queries sees C + W - 1 keys, so that blocks are a batch of small dense problems.

    Args:
        k: keys of the queries' own tokens, after those of the previous W - 1 tokens or as many as there are.
        v: values, in the same order.
        window: W.
        usable: False for padding and empty slots.
        segments: the number of each key's episode.
        sees: a shorter window than W for each query.
        scale: of the scores, ``E ** -0.5`` by default.
    """
    batch, heads, tokens, _ = q.shape
    block = min(tokens, max(window, SHORTEST_BLOCK))
    count = -(-tokens // block)
    extra = count * block - tokens
    front = window - 1 + tokens - k.shape[2]
    seen = block + window - 1

    def key_blocks(part: Tensor) -> Tensor:
        if count == 1:
            return functional.pad(part, (0, 0, front, 0)) if front else part
        # Join each block with the start of the next: much cheaper than unfold, whose backward is slow.
        padded = functional.pad(part, (0, 0, front, extra + block - window + 1)).unflatten(2, (count + 1, block))
        joined = torch.cat([padded[:, :, :-1], padded[:, :, 1:, : window - 1]], 3)
        return joined.transpose(1, 2).reshape(batch * count, heads, seen, -1)

    def flag_blocks(part: Tensor) -> Tensor:
        return functional.pad(part, (front, extra)).unfold(1, seen, block)  # (B, count, seen)

    q_blocks = functional.pad(q, (0, 0, 0, extra)).unflatten(2, (count, block)).transpose(1, 2).flatten(0, 1)
    row = torch.arange(block, device=q.device).unsqueeze(1)
    column = torch.arange(seen, device=q.device)
    band = (column >= row) & (column < row + window)
    # Millions of comparisons are faster in 32 bits.
    key_segments = flag_blocks(segments.to(torch.int32))
    same = key_segments[..., window - 1 :].unsqueeze(-1) == key_segments.unsqueeze(-2)
    allowed = band & same & flag_blocks(usable).unsqueeze(-2)
    if sees is not None:
        own = functional.pad(sees, (0, extra)).unflatten(1, (count, block)).unsqueeze(-1)
        allowed = allowed & (column >= row + window - own)
    out = attention(q_blocks, key_blocks(k), key_blocks(v), allowed=allowed.flatten(0, 1).unsqueeze(1), scale=scale)
    return out.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]
