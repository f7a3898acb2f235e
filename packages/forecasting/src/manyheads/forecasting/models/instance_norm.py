"""Normalise each channel of each window by its own mean and deviation, and undo it on the forecast (RevIN)."""

from __future__ import annotations

from torch import Tensor

_FLOOR = 1e-5  # added to the variance


def normalised(x_NLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The window, its mean and its deviation, ``(N, 1, C)``; neither carries a gradient."""
    mean = x_NLC.mean(1, keepdim=True).detach()
    deviation = (x_NLC.var(1, keepdim=True, correction=0) + _FLOOR).sqrt().detach()
    return (x_NLC - mean) / deviation, mean, deviation
