"""Halo attention that may down-sample, and the bottleneck of HaloNet (2103.12731) around it. Grids are channels last.

    StridedHaloAttention   u_i = sum_j softmax_j(q_i . k_j / sqrt(E) + q_i . a_{dy} + q_i . c_{dx}) v_j
    HaloBottleneck         y = act(N(W_2 act(N(u))) + shortcut(x)),   u the attention of act(N(W_1 x))

With stride s only the queries of the cells ``(s i, s j)`` are computed; keys, values and windows stay the same. N is
batch norm. The shortcut is x, or ``N(W_3 x)`` at the strided cells if the grid or the width changes.

Axes: b batch, h and w the grid, p and o the grid of the queries, d width, f value width, g width of the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked_constructor
from manyheads.core.blocks.batch_norm import SequenceBatchNorm
from manyheads.core.blocks.drop_path import DropPath
from manyheads.core.errors import ArgumentError
from manyheads.core.functional.halo_attention import halo_attention

if TYPE_CHECKING:
    from jaxtyping import Float


@checked_constructor
class StridedHaloAttention(nn.Module):
    """Halo attention without an output projection, ``(B, H, W, D)`` to ``(B, H / s, W / s, F)``, rounded up.

    Args:
        dim: D.
        values: F, the width of all values together.
        heads: divides D and F.
        block: side of a block in cells, a multiple of the stride.
        halo: cells around a block that it sees.
        stride: s.

    Raises:
        ArgumentError: widths, block or stride below 1, a halo below 0, heads or a stride that do not divide.
    """

    def __init__(self, dim: int, values: int, *, heads: int, block: int, halo: int, stride: int = 1) -> None:
        super().__init__()
        if min(dim, values, heads, block, stride) < 1 or halo < 0:
            raise ArgumentError(
                f"strided halo attention: found width {dim}, values {values}, heads {heads}, block {block}, "
                f"halo {halo} and stride {stride}, expected 1 or more of each, and a halo of 0 or more"
            )
        if dim % heads or values % heads:
            raise ArgumentError(
                f"strided halo attention: heads: found {heads}, expected a divisor of the widths {dim} and {values}"
            )
        if block % stride:
            raise ArgumentError(f"strided halo attention: block: found {block}, expected a multiple of {stride}")
        self.heads, self.block, self.halo, self.stride = heads, block, halo, stride
        self.query, self.key = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.value = nn.Linear(dim, values, bias=False)
        width, offsets = dim // heads, 2 * (block + halo) - 1
        self.rows, self.columns = (nn.Parameter(torch.randn(offsets, width) * width**-0.5) for _ in range(2))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b p o f"]:
        """Attend within the window of each block."""
        strided = x[:, :: self.stride, :: self.stride]
        q, k, v = (
            project(part).unflatten(-1, (self.heads, -1))
            for project, part in ((self.query, strided), (self.key, x), (self.value, x))
        )
        mixed = halo_attention(q, k, v, self.rows, self.columns, block=self.block, halo=self.halo, stride=self.stride)
        return mixed.flatten(-2)


@checked_constructor
class HaloBottleneck(nn.Module):
    """The bottleneck of a ResNet with halo attention in place of the 3 x 3 convolution, ``(B, H, W, D)`` to
    ``(B, H / s, W / s, G)``, rounded up.

    Args:
        dim: D.
        inner: width of the queries and keys.
        values: width of the values.
        output: G.
        heads: divides ``inner`` and ``values``.
        block: side of a block in cells, a multiple of the stride.
        halo: cells around a block that it sees.
        stride: s.
        drop_path: probability with which the branch is left out in training, sample by sample.

    Raises:
        ArgumentError: as :class:`StridedHaloAttention`; a width below 1; a drop_path outside [0, 1).
    """

    def __init__(
        self,
        dim: int,
        inner: int,
        values: int,
        output: int,
        *,
        heads: int,
        block: int,
        halo: int,
        stride: int = 1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if min(dim, inner, values, output) < 1:
            raise ArgumentError(
                f"halo bottleneck: found widths {(dim, inner, values, output)}, expected 1 or more each"
            )
        self.stride = stride
        self.reduce, self.reduce_norm = nn.Linear(dim, inner, bias=False), SequenceBatchNorm(inner)
        self.attention = StridedHaloAttention(inner, values, heads=heads, block=block, halo=halo, stride=stride)
        self.attention_norm = SequenceBatchNorm(values)
        self.expand, self.expand_norm = nn.Linear(values, output, bias=False), SequenceBatchNorm(output)
        # the block starts as its shortcut
        nn.init.zeros_(self.expand_norm.weight)
        changes = stride > 1 or dim != output
        self.shortcut = nn.Linear(dim, output, bias=False) if changes else None
        self.shortcut_norm = SequenceBatchNorm(output) if changes else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b p o g"]:
        """Run the block."""
        inner = functional.silu(normed(self.reduce_norm, self.reduce(x)))
        mixed = functional.silu(normed(self.attention_norm, self.attention(inner)))
        branch = self.drop_path(normed(self.expand_norm, self.expand(mixed)))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = normed(self.shortcut_norm, self.shortcut(x[:, :: self.stride, :: self.stride]))
        return functional.silu(branch + x)


def normed(norm: SequenceBatchNorm, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
    """Batch norm over all cells of a grid."""
    return norm(x.flatten(1, 2)).view_as(x)
