"""Axial Attention in Multidimensional Transformers (1912.12180): softmax attention along one axis of a grid.

    y[…, i, …] = W_o sum_j softmax_j(q[…, i, …] . k[…, j, …] / sqrt(E)) v[…, j, …]

Only the index along the axis varies; the other axes act as a batch. One layer along each axis in turn lets every token
reach the whole grid. Causal layers are the masked rows (axis 1) and masked columns (axis 0) of the paper. Its shifts
down and right are ``functional.shifted``, its image model is :mod:`manyheads.core.backbones.axial_transformer`.

Shapes: B batch, ``(n, m)`` or ``(n, m, d)`` the grid, N its tokens, L the length of the axis, D width, H heads,
E = D / H head width.

Cost: time ``O(N L D + N D^2)``, memory ``O(N D)``: on a square grid ``N^1.5``, against ``N^2`` of full attention.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import heads_argument
from manyheads.core.functional.attention import attention
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    dim, tokens, length = config["dim"], math.prod(grid), grid[config["axis"]]
    seen = (length + 1) / 2 if config.get("causal") else length
    return 8.0 * tokens * dim * dim + 4.0 * tokens * seen * dim


class AxialAttention(Layer):
    """Softmax attention along one axis; see the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, an axis that no grid has, or, at the call, one that this grid has not.
    """

    info = LayerInfo(
        name="axial",
        title="Axial Attention in Multidimensional Transformers",
        arxiv="1912.12180",
        formula=(
            r"y_i = W_o \sum_{j} \operatorname{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt{E}}\right) "
            r"v_j, \quad j \text{ along one axis}"
        ),
        good_for="Images and other grids on which full attention over all cells costs too much.",
        not_for="Grids of some hundred cells: softmax over the flattened grid sees all of them in one layer.",
        cost="time N L D + N D^2 along an axis of length L, N^1.5 D on a square grid, memory N D",
        flops=_flops,
        at_length=lambda n: {"plain": {"heads": 2}, "causal": {"heads": 2, "causal": True}},
        grid_ranks=(2, 3),
        causal=("no", "strict"),
        masks=("padding",),
        positional=True,
        full_context=False,
        linear_in_value=True,
        deviations=(
            "here one layer along one axis; position embeddings, blocks, shifts and sampling row by row are in the "
            "AxialTransformer",
            "causal means along the axis, and so in raster order too",
            "padding is ours",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does."""
    axis: int = -1
    """The grid axis along which tokens see each other: of an image 0 for its columns, 1 for its rows; negative from the
    end."""
    causal: bool = False
    """Each token sees itself and earlier tokens along the axis only."""
    bias: bool = False
    """Biases in the four projections."""

    def setup(self) -> None:
        if not -3 <= self.axis < 3:
            raise ArgumentError(f"axial: axis: found {self.axis}, expected one of a grid of two or three axes, -3 to 2")
        self.query, self.key, self.value, self.output = (
            nn.Linear(self.dim, self.dim, bias=self.bias) for _ in range(4)
        )

    @property
    def causality(self) -> Causality:
        return "strict" if self.causal else "no"

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        rank = x.dim() - 2
        if not -rank <= self.axis < rank:
            raise ArgumentError(
                f"axial: axis: found {self.axis} for a grid of {rank} axes, expected {-rank} to {rank - 1}"
            )
        along = 1 + self.axis % rank
        q, k, v = (self._lines(part(x), along) for part in (self.query, self.key, self.value))
        allowed = None
        if mask.padding is not None:
            real = mask.padding.view(x.shape[:-1]).movedim(along, -1)
            allowed = real.reshape(-1, 1, 1, real.shape[-1])
            if self.causal:
                length = real.shape[-1]
                allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mixed = attention(q, k, v, allowed=allowed, causal=self.causal and allowed is None)
        lines = (*(size for axis, size in enumerate(x.shape[:-1]) if axis != along), x.shape[along])
        return LayerOutput(self.output(mixed.transpose(1, 2).flatten(2).view(*lines, -1).movedim(-2, along)))

    def _lines(self, x: Tensor, along: int) -> Tensor:
        """``(B, *grid, D)`` -> ``(B times the other axes, H, L, E)``."""
        moved = x.movedim(along, -2)
        return moved.reshape(-1, moved.shape[-2], self.heads, moved.shape[-1] // self.heads).transpose(1, 2)
