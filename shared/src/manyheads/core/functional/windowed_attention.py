"""Causal softmax attention in a sliding window, in blocks: time and memory ``O(T W)``, never ``O(T^2)``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.functional.attention import attention

SHORTEST_BLOCK = 64  # below this the fused kernel's overhead a block outweighs what a smaller block saves


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    usable: Tensor,
    segments: Tensor,
    sees: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Each of T queries over the latest W tokens, itself among them.

    ``q (B, H, T, E)``; ``k (B, H, W - 1 + T, E)`` and ``v (B, H, W - 1 + T, F)`` start with the W - 1 tokens before
    the first query, or with as many of them as there are. ``usable (B, W - 1 + T)`` is False for keys that do not
    exist, ``segments`` (same shape, int64) tells which episode a token belongs to: others are not seen. ``sees (B, T)``
    int64, where given, makes a query's window shorter than W. Gives ``(B, H, T, F)``, 0 where nothing is seen.

    A block of b queries sees b + W - 1 keys, so that blocks are a batch of small dense problems.
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
        # Each block and what reaches over from the next: much cheaper than unfold, whose backward is slow.
        padded = functional.pad(part, (0, 0, front, extra + block - window + 1)).unflatten(2, (count + 1, block))
        joined = torch.cat([padded[:, :, :-1], padded[:, :, 1:, : window - 1]], 3)
        return joined.transpose(1, 2).reshape(batch * count, heads, seen, -1)

    def flag_blocks(part: Tensor) -> Tensor:
        return functional.pad(part, (front, extra)).unfold(1, seen, block)  # (B, count, seen)

    q_blocks = functional.pad(q, (0, 0, 0, extra)).unflatten(2, (count, block)).transpose(1, 2).flatten(0, 1)
    row = torch.arange(block, device=q.device).unsqueeze(1)
    column = torch.arange(seen, device=q.device)
    band = (column >= row) & (column < row + window)
    key_segments = flag_blocks(segments.to(torch.int32))  # compared by the million
    same = key_segments[..., window - 1 :].unsqueeze(-1) == key_segments.unsqueeze(-2)
    allowed = band & same & flag_blocks(usable).unsqueeze(-2)
    if sees is not None:
        own = functional.pad(sees, (0, extra)).unflatten(1, (count, block)).unsqueeze(-1)
        allowed = allowed & (column >= row + window - own)
    out = attention(q_blocks, key_blocks(k), key_blocks(v), allowed=allowed.flatten(0, 1).unsqueeze(1), scale=scale)
    return out.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)[:, :, :tokens]
