"""Block-local softmax attention in time ``O(T W)``, with blocks of W tokens.

Axes: b batch, h heads, t tokens, e width, m = 2 W - 1 tokens in the state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.functional.attention import attention
from manyheads.core.functional.windowed_attention import windowed_attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def block_local_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t e"],
    *,
    block: int,
    causal: bool,
    real: Bool[Tensor, "b t"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h t e"]:
    """Attention of each block of queries over its own block and the previous one, and the next one unless ``causal``.

    Any T; the last block may be short. ``real`` is True for the first tokens of each row (padding on the right only);
    the output at padded tokens is undefined.
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
        # The first block has no previous one. One mask for all others is much cheaper than a mask for each block.
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
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h t e"],
    v: Float[Tensor, "b h t e"],
    held: tuple[Float[Tensor, "b h m e"], Float[Tensor, "b h m e"], Int[Tensor, "b"]],
    *,
    real: Bool[Tensor, "b t"],
    segment: Int[Tensor, "b t"],
    last: Int[Tensor, "b 1"],
    aligned: bool = False,
) -> tuple[Float[Tensor, "b h t e"], tuple[Float[Tensor, "b h m e"], Float[Tensor, "b h m e"], Int[Tensor, "b"]]]:
    """Causal :func:`block_local_attention` of a chunk of a stream, and the state after it.

    Args:
        held: the state: keys and values of the previous ``2 W - 1`` tokens, aligned to the right, and the position of
            each row.
        real: True for the first tokens of each row (padding on the right only).
        segment: the number of each token's episode; the state belongs to episode 0.
        last: the number of the episode that continues after the chunk.
        aligned: all rows are at the start of their only episode; blocks then start at the same token in every row,
            which is cheaper.
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
