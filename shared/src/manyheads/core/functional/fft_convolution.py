"""Long convolutions by the FFT, along time and on grids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

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
    return _convolved("fft_convolution", x, kernel, (0,))


def grid_fft_convolution(
    x: Float[Tensor, "..."], kernel: Float[Tensor, "..."], *, axes: int, centre: tuple[int, ...] | None = None
) -> Float[Tensor, "..."]:
    """Convolution ``y[p] = sum_q kernel[centre + q] x[p - q]`` along the last ``axes`` axes, of a grid of any sizes.

    Without a centre, which is then 0, cell p of an image sees the cells that are neither below nor right of it. x is 0
    outside the grid. Broadcasting, precision and errors are those of :func:`fft_convolution`; time ``O(N log N)`` for N
    cells.
    """
    return _convolved("grid_fft_convolution", x, kernel, (0,) * axes if centre is None else centre)


def _convolved(name: str, x: Tensor, kernel: Tensor, centre: tuple[int, ...]) -> Tensor:
    axes = len(centre)
    if not (x.is_floating_point() and kernel.is_floating_point()) or min(kernel.shape[-axes:]) < 1:
        raise ArgumentError(
            f"{name}: found {x.dtype} and a kernel {tuple(kernel.shape)} of {kernel.dtype}, expected real "
            "input and at least one tap"
        )
    grid = x.shape[-axes:]
    if 0 in grid:
        return x
    places, lengths, before = tuple(range(-axes, 0)), [], []
    for axis, size, middle in zip(places, grid, centre, strict=True):
        # taps further than the grid is long meet zeros only
        first, last = max(middle - size + 1, 0), min(middle + size, kernel.shape[axis])
        kernel = kernel.narrow(axis, first, last - first)
        before.append(middle - first)
        lengths.append(fast_length(size + max(middle - first, last - 1 - middle)))
    dtype = torch.promote_types(x.dtype, kernel.dtype)
    inner = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    kernel = kernel.to(inner)
    if any(before):
        missing = [length - size for length, size in zip(lengths, kernel.shape[-axes:], strict=True)]
        padding = [side for count in reversed(missing) for side in (0, count)]
        kernel = torch.roll(functional.pad(kernel, padding), [-count for count in before], places)
    spectrum = torch.fft.rfftn(x.to(inner), s=lengths, dim=places) * torch.fft.rfftn(kernel, s=lengths, dim=places)
    y = torch.fft.irfftn(spectrum, s=lengths, dim=places)
    return y[(..., *(slice(size) for size in grid))].to(dtype)


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
