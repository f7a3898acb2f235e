"""Attention of local queries over the keys of all ranks, block by block: by a ring, or after one all-gather.

Axes: b batch, h query heads, k heads of keys and values, t tokens of a rank, e key width, f value width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manyheads.core.functional.attention import fused_attention_backward, fused_attention_with_lse
from manyheads.core.functional.merge import Partial, finish, merge
from manyheads.core.functional.own_backward import once_differentiable
from manyheads.core.methods.sequence_parallel.exchange import Ranks
from manyheads.core.methods.sequence_parallel.layout import Layout

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


class BlockAttention(torch.autograd.Function):
    """Attention over the blocks of all ranks, with its own backward pass.

    The forward pass merges one partial result for each block, in float32 at least. The backward pass visits the blocks
    again and sends each rank's share of the gradients of k and v to their owner: memory between the two does not grow
    with T.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b k t e"],
        v: Float[Tensor, "b k t f"],
        ranks: Ranks,
        layout: Layout,
        causal: bool,
        scale: float,
        ring: bool,
    ) -> Float[Tensor, "b h t f"]:
        """Merge the blocks."""
        visit = _ring_blocks if ring else _gathered_blocks
        out, lse = merge_blocks(q, visit(ranks, k, v, backward=False), ranks, layout, causal, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.run = ranks, layout, causal, scale, ring
        return out

    @staticmethod
    @once_differentiable("attention_over")
    def backward(ctx: Any, *gradients: Shaped[Tensor, "..."]):
        """Gradients of q, k and v."""
        q, k, v, out, lse = ctx.saved_tensors
        ranks, layout, causal, scale, ring = ctx.run
        gradient = gradients[0].contiguous()
        dq = torch.zeros_like(q, dtype=lse.dtype)

        def share(source: int, k: Tensor, v: Tensor) -> Tensor:
            """Add to dq; this rank's part of the gradients of one block, packed."""
            dk, dv = (torch.zeros_like(part, dtype=lse.dtype) for part in (k, v))
            for rows, keys, diagonal in layout.pairs(ranks.rank, source, causal):
                local = [part[:, :, rows] for part in (gradient, q, out, lse)]
                shared = q.shape[1] // k.shape[1]
                blocks = [part[:, :, keys].repeat_interleave(shared, 1) for part in (k, v)]
                found = fused_attention_backward(
                    local[0], local[1], *blocks, local[2], local[3], causal=diagonal, scale=scale
                )
                dq[:, :, rows] += found[0]
                for total, part in zip((dk, dv), found[1:], strict=True):
                    total[:, :, keys] += part.to(total.dtype).unflatten(1, (-1, shared)).sum(2)
            return _pack(dk, dv)

        home = (_ring_home if ring else _gathered_home)(ranks, k, v, share)
        dk, dv = _unpack(home, k, v)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None, None


def merge_blocks(
    q: Float[Tensor, "b h t e"],
    blocks: Iterator[tuple[int, Float[Tensor, "b k t e"], Float[Tensor, "b k t f"]]],
    ranks: Ranks,
    layout: Layout,
    causal: bool,
    scale: float,
) -> tuple[Float[Tensor, "b h t f"], Float[Tensor, "b h t"]]:
    """Attention and log-sum-exp over blocks ``(rank, k, v)`` in any order."""
    merged: dict[int, Partial] = {}
    wide = torch.promote_types(q.dtype, torch.float32)
    width = 0
    for source, k, v in blocks:
        shared, width = q.shape[1] // k.shape[1], v.shape[-1]
        for pair in layout.pairs(ranks.rank, source, causal):
            rows, keys, diagonal = pair
            part = [block[:, :, keys].repeat_interleave(shared, 1) for block in (k, v)]
            out, lse = fused_attention_with_lse(q[:, :, rows], *part, causal=diagonal, scale=scale)
            found = Partial(lse.to(wide), torch.ones_like(lse, dtype=wide), out.to(wide))
            before = merged.get(rows.start)
            merged[rows.start] = found if before is None else merge(before, found)
            ranks.traffic.computed(q.shape[0] * q.shape[1] * pair.scores)
    out = q.new_zeros(*q.shape[:3], width)
    lse = torch.full(q.shape[:3], float("-inf"), dtype=wide, device=q.device)
    for start, partial in merged.items():
        rows = slice(start, start + partial.m.shape[-1])
        total, lse[:, :, rows] = finish(partial)
        out[:, :, rows] = total.to(out.dtype)
    return out, lse


def _ring_blocks(ranks: Ranks, k: Tensor, v: Tensor, *, backward: bool) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The blocks in the order of the ring; the next one is sent while this one is computed."""
    packed = _pack(k, v)
    for step in range(ranks.size):
        arriving = ranks.pass_on(packed, backward=backward) if step < ranks.size - 1 else None
        yield (ranks.rank - step) % ranks.size, *_unpack(packed, k, v)
        if arriving is not None:
            packed = arriving()


def _gathered_blocks(ranks: Ranks, k: Tensor, v: Tensor, *, backward: bool) -> Iterator[tuple[int, Tensor, Tensor]]:
    for source, packed in enumerate(ranks.all_gather(_pack(k, v), backward=backward)):
        yield source, *_unpack(packed, k, v)


Share = Callable[[int, Tensor, Tensor], Tensor]


def _ring_home(ranks: Ranks, k: Tensor, v: Tensor, share: Share) -> Tensor:
    """The gradients of this rank's block: they start at the next rank, follow the block, and end at its owner."""
    own, arriving = None, None
    for step, (source, block_k, block_v) in enumerate(_ring_blocks(ranks, k, v, backward=True)):
        found = share(source, block_k, block_v)
        if step == 0:
            own = found
        else:
            travelled = found if arriving is None else found + arriving()
            arriving = ranks.pass_on(travelled, backward=True, tag=1)
    assert own is not None
    return own if arriving is None else own + arriving()


def _gathered_home(ranks: Ranks, k: Tensor, v: Tensor, share: Share) -> Tensor:
    found = [share(*block) for block in _gathered_blocks(ranks, k, v, backward=True)]
    return torch.stack(ranks.all_to_all(found, backward=True)).sum(0)


def _pack(k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([k.reshape(-1), v.reshape(-1)])


def _unpack(packed: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    first, second = packed.split([k.numel(), v.numel()])
    return first.view(k.shape), second.view(v.shape)
