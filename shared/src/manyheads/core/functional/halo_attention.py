"""Softmax attention of the blocks of a grid over windows around them, without parameters (HaloNet, 2103.12731).

    out_i = sum_j softmax_j(q_i . k_j / sqrt(E) + q_i . a_{y_j - y_i} + q_i . c_{x_j - x_i}) v_j,   j in the window of i

The window of a block of b x b cells is the block and h cells around it, the halo.

Axes: b batch, h and w the grid of keys, p and o that of queries, n heads, e key width, f value width, r and s offsets.

The relative terms need a gradient, and torch has no fused kernel for a bias with one. So the scores are one product,
``[q / sqrt(E), q . a, q . c] . [k, row of j, column of j]`` with one-hot rows and columns, and the fused kernel runs on
all blocks as a batch. Time ``O(H W (b + 2 h)^2 (E + F))``, memory ``O(H W (1 + 2 h / b)^2 (E + F))``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.functional.attention import attention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def halo_attention(
    q: Float[Tensor, "b p o n e"],
    k: Float[Tensor, "b h w n e"],
    v: Float[Tensor, "b h w n f"],
    rows: Float[Tensor, "r e"],
    columns: Float[Tensor, "s e"],
    *,
    block: int,
    halo: int,
    stride: int = 1,
    real: Bool[Tensor, "b h w"] | None = None,
    masked: bool = True,
) -> Float[Tensor, "b p o n f"]:
    """Attention of each block of queries over its window of keys. Any size of the grid: the last blocks may be short.

    Args:
        q: the queries of the cells ``(stride i, stride j)``.
        rows: the vectors a of the offsets ``-R`` to ``R`` between rows, ``R`` at least ``block + halo - 1``; the heads
            share them.
        columns: the vectors c of the offsets between columns.
        block: side b of a block, a multiple of the stride.
        halo: cells h around a block, 0 or more.
        stride: 2 for queries at every second cell of each axis.
        real: False for padding.
        masked: a window sees no cell outside the grid and no padding. Otherwise these are cells with key and value 0,
            which take their share of the softmax.
    """
    batch, heads = q.shape[0], q.shape[3]
    if real is not None and not masked:
        outside = ~real[..., None, None]
        k, v = k.masked_fill(outside, 0.0), v.masked_fill(outside, 0.0)
    down, right = (_axis(size, block, halo, stride, masked) for size in k.shape[1:3])
    queries = _query_blocks(q, down, right, stride)
    keys, values = (_windows(part, down, right).permute(0, 1, 2, 5, 3, 4, 6).flatten(4, 5) for part in (k, v))

    by_row = torch.einsum("...yxe,yce->...yxc", queries, rows[_offsets(down, stride, rows)])
    by_column = torch.einsum("...yxe,xce->...yxc", queries, columns[_offsets(right, stride, columns)])
    place = _one_hot(down.window, right.window, keys).expand(*keys.shape[:4], -1, -1)
    queries = torch.cat([queries * q.shape[-1] ** -0.5, by_row, by_column], -1).flatten(4, 5)
    keys = torch.cat([keys, place], -1)

    allowed = None
    exact = not (down.halo or right.halo) and (down.covered, right.covered) == tuple(k.shape[1:3])
    if masked and not (exact and real is None):
        inside = k.new_ones(1, *k.shape[1:3], dtype=torch.bool) if real is None else real
        seen = _windows(inside[..., None, None], down, right).flatten(3)
        allowed = seen.expand(batch, -1, -1, -1).flatten(0, 2)[:, None, None]
    queries, keys, values = (part.flatten(0, 2) for part in (queries, keys, values))
    out = attention(queries, keys, values, allowed=allowed, scale=1.0)

    out = out.view(batch, down.count, right.count, heads, down.block // stride, right.block // stride, -1)
    out = out.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
    return out[:, : q.shape[1], : q.shape[2]]


class _Axis(NamedTuple):
    """Blocks along one axis of a grid."""

    block: int
    halo: int
    count: int  # blocks
    covered: int  # cells of all blocks

    @property
    def window(self) -> int:
        return self.block + 2 * self.halo


def _axis(size: int, block: int, halo: int, stride: int, masked: bool) -> _Axis:
    """The blocks of ``size`` cells. A block or a halo beyond a masked border is cut off, as nothing is seen there."""
    if masked:
        block = min(block, -(-size // stride) * stride)
        halo = min(halo, size) if block < size else 0
    count = -(-size // block)
    return _Axis(block, halo, count, count * block)


def _query_blocks(q: Tensor, down: _Axis, right: _Axis, stride: int) -> Tensor:
    """``(B, P, O, H, E)`` -> ``(B, rows of blocks, blocks, H, b, b, E)``."""
    missing = (axis.covered // stride - size for axis, size in zip((down, right), q.shape[1:3], strict=True))
    below, beside = missing
    padded = functional.pad(q, (0, 0, 0, 0, 0, beside, 0, below))
    blocked = padded.unflatten(2, (right.count, -1)).unflatten(1, (down.count, -1))
    return blocked.permute(0, 1, 3, 5, 2, 4, 6)


def _windows(x: Tensor, down: _Axis, right: _Axis) -> Tensor:
    """``(B, H, W, n, e)`` -> ``(B, rows of blocks, blocks, b + 2 h, b + 2 h, n, e)``, 0 outside the grid."""
    below, beside = (axis.covered - size + axis.halo for axis, size in zip((down, right), x.shape[1:3], strict=True))
    padded = functional.pad(x, (0, 0, 0, 0, right.halo, beside, down.halo, below))
    windows = padded.unfold(1, down.window, down.block).unfold(2, right.window, right.block)
    return windows.permute(0, 1, 2, 5, 6, 3, 4)


def _offsets(axis: _Axis, stride: int, table: Tensor) -> Tensor:
    """The place in the table of the offset from each query of a block to each cell of its window."""
    query = torch.arange(0, axis.block, stride, device=table.device)
    cell = torch.arange(axis.window, device=table.device) - axis.halo
    return cell - query.unsqueeze(1) + table.shape[0] // 2


def _one_hot(rows: int, columns: int, like: Tensor) -> Tensor:
    """``(rows columns, rows + columns)``: row and column of each cell of a window."""
    row, column = (torch.eye(size, device=like.device, dtype=like.dtype) for size in (rows, columns))
    return torch.cat([row.repeat_interleave(columns, 0), column.repeat(rows, 1)], 1)
