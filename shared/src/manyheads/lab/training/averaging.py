"""Stochastic weight averaging (SWA): the mean of the weights over the last quarter of training.

The mean lies in a flatter minimum than any of the averaged weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Share of all steps that is averaged.
SHARE = 0.25


def place_in_mean(step: int, steps: int) -> int:
    """Return the number of ``step`` among the averaged steps, counted from 1; 0 or less before averaging begins."""
    return step - steps + max(round(SHARE * steps), 1)


@torch.no_grad()
def take_in(mean: dict[str, Tensor], tensors: dict[str, Tensor], place: int) -> None:
    """Update the running mean in place with state number ``place``; integer tensors are copied, not averaged."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            mean[name].lerp_(tensor, 1 / place)
        else:
            mean[name].copy_(tensor)
