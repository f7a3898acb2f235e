"""Scaling Local Self-Attention for Parameter Efficient Visual Backbones (2103.12731): halo attention.

The grid is split into blocks of b x b cells. All cells of a block see the same window: the block and the halo, h cells
around it.

    y_i = W_o sum_j softmax_j(q_i . k_j / sqrt(E) + q_i . a_{dy} + q_i . c_{dx}) v_j,   j in the window of i's block

``a`` and ``c`` are learned vectors of the offsets ``dy`` and ``dx`` from i to j, shared by the heads. With ``h = 0``
blocks are independent; with ``b = 1`` the window slides from cell to cell.

Shapes: B batch, ``(n, m)`` the grid, N its cells, D width, H heads, E = D / H head width.

Cost: time ``O(N (b + 2 h)^2 D + N D^2)``, memory ``O(N D (1 + 2 h / b)^2)``: linear in the cells.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyheads.core.fields import argument, heads_argument
from manyheads.core.functional.halo_attention import halo_attention
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    dim, block, halo, heads = config["dim"], config["block"], config["halo"], config["heads"]
    cells, window = math.prod(grid), block + 2 * halo
    covered = math.prod(-(-size // block) * block for size in grid)
    return 8.0 * cells * dim * dim + 4.0 * covered * window * dim + 4.0 * covered * window**2 * (dim + heads * window)


def _at_length(tokens: int) -> dict[str, dict[str, Any]]:
    block = min(8, max(2, round(tokens**0.5) // 4))
    plain = {"heads": 2, "block": block, "halo": max(1, 3 * block // 8)}
    return {"plain": plain, "no halo": {**plain, "halo": 0}}


class HaloAttention(Layer):
    """Blocks of cells that attend to the window around them; see the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, a block below 1, a halo below 0.
    """

    info = LayerInfo(
        name="halo",
        title="Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
        arxiv="2103.12731",
        formula=(
            r"y_i = W_o \sum_{j \in \text{window of } i\text{'s block}} \operatorname{softmax}_j\!\left("
            r"\frac{q_i \cdot k_j}{\sqrt{E}} + q_i \cdot a_{y_j - y_i} + q_i \cdot c_{x_j - x_i}\right) v_j"
        ),
        good_for="Images and feature maps of any size in which near cells belong together, at a cost linear in them.",
        not_for="Grids of some hundred cells, or relations across the image: softmax sees all cells in one layer.",
        cost="time N (b + 2h)^2 D + N D^2 for blocks of b x b cells and a halo of h, memory N D (1 + 2h/b)^2",
        flops=_flops,
        at_length=_at_length,
        grid_ranks=(2,),
        masks=("padding",),
        positional=True,
        full_context=False,
        lengths="any; the last blocks are padded inside",
        linear_in_value=True,
        deviations=(
            'here a window ends at the border of the image; border="zero" is the zero-padded border of public code, '
            "in which the cells outside have keys and values of 0 and take their share of the softmax",
            "here the relative terms are added unscaled, as in timm; the paper does not say",
            "here the tables hold the 2(b + h) - 1 offsets that occur; those of timm hold 2(b + 2h) - 1, of which 2h "
            "are never read",
            "the output projection is that of this layer; HaloNet's bottleneck has a 1 x 1 convolution in its place "
            "(blocks/halo_bottleneck.py, which down-samples too)",
            "h = 0 and b = 1 are allowed",
            "padding is ours",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does; the paper has heads of width 16."""
    block: int = argument(default=8, least=1)
    """b, the side of a block in cells."""
    halo: int = argument(default=3, least=0)
    """h, the cells around a block that it sees."""
    border: Literal["masked", "zero"] = "masked"
    """What a window holds outside the grid, and in the place of padding: nothing, or cells with key and value 0."""
    bias: bool = False
    """Biases in the four projections."""

    def setup(self) -> None:
        width, offsets = self.dim // self.heads, 2 * (self.block + self.halo) - 1
        self.query, self.key, self.value, self.output = (
            nn.Linear(self.dim, self.dim, bias=self.bias) for _ in range(4)
        )
        self.rows, self.columns = (nn.Parameter(torch.randn(offsets, width) * width**-0.5) for _ in range(2))

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)) for part in (self.query, self.key, self.value))
        mixed = halo_attention(
            q,
            k,
            v,
            self.rows,
            self.columns,
            block=self.block,
            halo=self.halo,
            real=None if mask.padding is None else mask.padding.view(x.shape[:-1]),
            masked=self.border == "masked",
        )
        return LayerOutput(self.output(mixed.flatten(-2)))
