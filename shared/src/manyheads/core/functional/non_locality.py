"""How far attention looks on a grid: the non-locality of ConViT (2103.10697).

    D[b, h] = (1 / N) sum_i sum_j P[b, h, i, j] |p_j - p_i|

with p the place of a token on its grid, in steps of the grid. Axes: b batch, h heads, t tokens, s sources (N of each).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Float


def non_locality(weights: Float[Tensor, "b h t s"], grid: tuple[int, ...]) -> Float[Tensor, "b h"]:
    """Return the mean distance that each head attends to; ``methods.mixing_matrix`` gives the weights of a layer.

    Args:
        weights: each row sums to 1; tokens in raster order.
        grid: the size of each axis.

    Raises:
        ArgumentError: weights of another number of tokens.
    """
    tokens = math.prod(grid)
    if weights.shape[-2:] != (tokens, tokens):
        raise ArgumentError(
            f"non locality: weights: found shape {tuple(weights.shape)}, expected (B, H, {tokens}, {tokens}) on a grid "
            f"of {' x '.join(map(str, grid))}"
        )
    axes = [torch.arange(size, device=weights.device, dtype=weights.dtype) for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    distances = (places[:, None] - places).square().sum(-1).sqrt()
    return (weights * distances).sum(-1).mean(-1)
