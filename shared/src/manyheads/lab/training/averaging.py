"""The mean of the weights over the end of a training: it lies flatter than any of them."""

from __future__ import annotations

import torch
from torch import Tensor

SHARE = 0.25  # of all steps


def place_in_mean(step: int, steps: int) -> int:
    """The how-many-th of the averaged steps ``step`` is, counted from 1; 0 or less before them."""
    return step - steps + max(round(SHARE * steps), 1)


@torch.no_grad()
def take_in(mean: dict[str, Tensor], tensors: dict[str, Tensor], place: int) -> None:
    """``mean`` becomes the mean of ``place`` states, of which this is the last; integers are taken as they are."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            mean[name].lerp_(tensor, 1 / place)
        else:
            mean[name].copy_(tensor)
