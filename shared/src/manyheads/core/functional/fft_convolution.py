"""Long causal convolutions by the FFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Float


def fft_convolution(x: Float[Tensor, "*#rows t"], kernel: Float[Tensor, "*#rows k"]) -> Float[Tensor, "... t"]:
    """Causal convolution ``y[t] = sum_{j <= t} kernel[j] x[t - j]`` along the last axis.

    T tokens and K taps are free; the leading axes broadcast. Time ``O((T + K) log(T + K))``. Half precision is computed
    in float32.

    Raises:
        ArgumentError: complex or integer input, an empty kernel.
    """
    if not (x.is_floating_point() and kernel.is_floating_point()) or kernel.shape[-1] < 1:
        raise ArgumentError(
            f"fft_convolution: found {x.dtype} and a kernel {tuple(kernel.shape)} of {kernel.dtype}, expected real "
            "input and at least one tap"
        )
    tokens = x.shape[-1]
    if tokens == 0:
        return x
    kernel = kernel[..., :tokens]
    dtype = torch.promote_types(x.dtype, kernel.dtype)
    inner = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    length = fast_length(tokens + kernel.shape[-1] - 1)
    spectrum = torch.fft.rfft(x.to(inner), n=length) * torch.fft.rfft(kernel.to(inner), n=length)
    return torch.fft.irfft(spectrum, n=length)[..., :tokens].to(dtype)


def fast_length(length: int) -> int:
    """The smallest number from ``length`` on whose prime factors are 2, 3 and 5: FFTs of such lengths are fast."""
    best = 1 << (length - 1).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            quotient = -(-length // threes)
            candidate = threes << (quotient - 1).bit_length()
            best = min(best, candidate) if candidate >= length else best
            threes *= 3
        fives *= 5
    return best
