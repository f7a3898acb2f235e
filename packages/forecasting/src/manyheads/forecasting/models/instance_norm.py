"""Instance normalisation (RevIN): each channel of each window by its own mean and standard deviation."""

from __future__ import annotations

from torch import Tensor

_FLOOR = 1e-5  # added to the variance


def normalised(x_NLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised window ``(N, L, C)``, its mean and its standard deviation ``(N, 1, C)``.

    To undo it, multiply the forecast by the deviation and add the mean. Neither carries a gradient.
    """
    mean = x_NLC.mean(1, keepdim=True).detach()
    deviation = (x_NLC.var(1, keepdim=True, correction=0) + _FLOOR).sqrt().detach()
    return (x_NLC - mean) / deviation, mean, deviation
