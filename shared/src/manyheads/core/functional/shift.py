"""Shift of a grid by one place, for networks in which a cell must not see itself.

Axes: b batch, d width; any axes between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Shaped


def shifted(x: Shaped[Tensor, "b *grid d"], axis: int) -> Shaped[Tensor, "b *grid d"]:
    """Move every cell to the next place along a grid axis: ``y[i] = x[i - 1]``, ``y[0] = 0``.

    Of an image axis 0 shifts down, axis 1 shifts right.

    Raises:
        ArgumentError: an axis that the grid has not.
    """
    rank = x.dim() - 2
    if not -rank <= axis < rank:
        raise ArgumentError(f"shifted: axis: found {axis} for a grid of {rank} axes, expected {-rank} to {rank - 1}")
    along = 1 + axis % rank
    if x.shape[along] == 0:
        return x
    first = torch.zeros_like(x.narrow(along, 0, 1))
    return torch.cat([first, x.narrow(along, 0, x.shape[along] - 1)], along)
