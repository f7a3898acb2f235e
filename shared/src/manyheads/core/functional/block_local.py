"""Softmax attention inside blocks of neighbours: time ``O(T W)`` with blocks of W tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.functional.attention import attention
from manyheads.core.functional.windowed_attention import windowed_attention


def block_local_attention(
    q: Tensor, k: Tensor, v: Tensor, *, block: int, causal: bool, real: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Each block of queries over its own block and the one before, and the one after unless ``causal``.

    ``q``, ``k`` and ``v`` are ``(B, H, T, E)``; any T, the last block may be short. ``real (B, T)`` is True for the
    first tokens of each row (padding on the right only); what comes out at other tokens means nothing.
    """
    batch, heads, tokens, _ = q.shape
    block = min(block, tokens)
    count = -(-tokens // block)
    extra = count * block - tokens

    def blocks(part: Tensor) -> Tensor:
        padded = functional.pad(part, (0, 0, 0, extra)) if extra else part
        return padded.reshape(batch * heads, count, block, -1)

    def with_neighbours(part: Tensor) -> Tensor:
        padded = functional.pad(part, (0, 0, block, extra if causal else extra + block))
        shifted = (padded.narrow(2, at * block, count * block) for at in range(2 if causal else 3))
        return torch.cat([one.reshape(batch * heads, count, block, -1) for one in shifted], 2)

    queries, keys, values = blocks(q), with_neighbours(k), with_neighbours(v)
    if causal:
        # One mask for all blocks but the first, which has none before it, is much cheaper than one a block.
        own = slice(block, None)
        head = attention(queries[:, :1], keys[:, :1, own], values[:, :1, own], causal=True, scale=scale)
        band = torch.ones(block, 2 * block, dtype=torch.bool, device=q.device).tril(block)
        tail = attention(queries[:, 1:], keys[:, 1:], values[:, 1:], allowed=band, scale=scale)
        out = torch.cat([head, tail], 1)
    else:
        key = torch.arange(-block, 2 * block, device=q.device) + block * torch.arange(count, device=q.device).view(
            -1, 1
        )
        lengths = torch.full((1,), tokens, device=q.device)
        if real is not None:
            lengths = real.sum(1).repeat_interleave(heads, output_size=batch * heads)
        allowed = (key >= 0) & (key < lengths.view(-1, 1, 1))
        out = attention(queries, keys, values, allowed=allowed.unsqueeze(2), scale=scale)
    return out.reshape(batch, heads, count * block, -1)[:, :, :tokens]


def block_local_stream(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    held: tuple[Tensor, Tensor, Tensor],
    *,
    real: Tensor,
    segment: Tensor,
    last: Tensor,
    aligned: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Causal :func:`block_local_attention` of a stream; and what is held after it.

    ``held`` are the keys and values of the ``2 W - 1`` tokens before, ``(B, H, 2 W - 1, E)`` at the right end, and each
    row's position ``(B,)``. ``real (B, T)`` is True for the first tokens of each row, ``segment (B, T)`` numbers the
    episodes (what is held belongs to 0), ``last (B, 1)`` is the number of the one that goes on. ``aligned`` says that
    all rows are at the start of their only episode: then blocks are cut alike in all rows, which is cheaper.
    """
    (batch, tokens), slots, device = real.shape, held[0].shape[2], q.device
    block, position = (slots + 1) // 2, held[2]
    index, slot = torch.arange(tokens, device=device), torch.arange(slots, device=device)
    before = torch.cat([torch.zeros_like(last), segment[:, :-1]], 1)
    start = torch.where(segment != before, index, 0).cummax(1).values
    place = torch.where(segment == 0, position.unsqueeze(1) + index, index - start)
    keys, values, usable, segments = k, v, real, segment
    if not aligned:
        usable = torch.cat([slot >= slots - position.unsqueeze(1), real], 1)
        segments = torch.cat([torch.zeros(batch, slots, dtype=torch.int64, device=device), segment], 1)
        keys, values = torch.cat([held[0], k], 2), torch.cat([held[1], v], 2)
    if not q.shape[1]:
        out = q
    elif aligned:
        out = block_local_attention(q, k, v, block=block, causal=True)
    else:
        sees = torch.minimum(place, place % block + block) + 1
        out = windowed_attention(q, keys, values, window=slots + 1, usable=usable, segments=segments, sees=sees)
    # Real tokens are on the left, so these are the latest.
    source = real.sum(1, keepdim=True) + slot - (slots if aligned else 0)
    kept = (source >= 0) & (usable & (segments == last)).gather(1, source.clamp(min=0))
    kept, source = kept[:, None, :, None], source.clamp(min=0)
    rows = source[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])
    new_keys, new_values = (torch.where(kept, part.gather(2, rows), 0.0) for part in (keys, values))
    reached = (real & (segment == last)).sum(1) + torch.where(last.squeeze(1) == 0, position, 0)
    return out, (new_keys, new_values, reached)
