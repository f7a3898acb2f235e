"""SpectFormer: Frequency and Attention is what you need in a Vision Transformer (2304.06446): the spectral gating
network, which is the global filter of GFNet (2107.00645).

    F = rfft2(X),   G = K o F,   Y = irfft2(G)          K complex, n x (m / 2 + 1), one for each channel

By the convolution theorem this is a circular convolution of each channel with a kernel as large as the grid,

    y[i, j] = sum_{a, b} k[a, b] x[(i - a) mod n, (j - b) mod m],   k = irfft2(K)

Shapes: B batch, n rows, m columns, N = n m tokens, D width.

Cost: time ``O(N D log N)``, memory ``O(N D)``, ``n (m // 2 + 1) D`` complex weights. It mixes no channels.

A real kernel has a spectrum with ``K[n - a, 0] = conj K[a, 0]`` in its first column, and in its last column if m is
even. ``irfft2`` uses the part of these columns that has this symmetry. The rest has no effect and gets no gradient. At
the frequencies that are their own mirror image (DC and Nyquist) the rest is the imaginary part.

The layer keeps no state: it is not causal, and does not stream.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State

if TYPE_CHECKING:
    from jaxtyping import Float


def _flops(config: dict[str, Any], grid: Grid) -> float:
    tokens, frequencies = math.prod(grid), config["height"] * (config["width"] // 2 + 1)
    # two real transforms of 2.5 N log2 N each, and a complex product
    return config["dim"] * (5.0 * tokens * math.log2(max(tokens, 2)) + 6.0 * frequencies)


def _even(tokens: int) -> dict[str, int]:
    """The most even grid of a power of two and what is left over."""
    side = 1 << (tokens.bit_length() - 1) // 2
    while tokens % side:
        side //= 2
    return {"height": side, "width": tokens // side}


class SpectralGate(Layer):
    """Learned complex gate on the spectrum of a grid; see the module for equation and shapes."""

    info = LayerInfo(
        name="spectral-gate",
        title="SpectFormer: Frequency and Attention is what you need in a Vision Transformer",
        arxiv="2304.06446",
        formula=r"Y = \mathcal{F}^{-1}\big(K \odot \mathcal{F}(X)\big), \qquad K \in \mathbb{C}^{n \times m \times D}",
        good_for="The first blocks of a vision network on a grid of known size, and textures: N log N, no projections.",
        not_for="Mixing by content, as the filter does not depend on the input, and images of many sizes: take axial.",
        cost="time N D log N, memory N D, weights N D",
        flops=_flops,
        at_length=lambda n: {"plain": _even(n)},
        grid_ranks=(2,),
        positional=True,
        sizes=("height", "width"),
        lengths="the grid that it was built for; resized makes a layer for another",
        deviations=(
            "here the transform is not scaled by sqrt(N) each way: the scales cancel",
            "here any height and width; the authors' code derives them from the width of the tokens",
            "here resized keeps the kernel in pixels, by trigonometric interpolation of K; the authors' code has no "
            "gate of another size, GFNet's interpolates K bicubically without regard to its periodicity",
        ),
    )

    height: int = argument(least=1)
    """Rows n of the grid."""
    width: int = argument(least=1)
    """Columns m of the grid."""

    def setup(self) -> None:
        self.weight = nn.Parameter(torch.randn(self.height, self.width // 2 + 1, self.dim, 2) * 0.02)

    def kernel(self) -> Float[Tensor, "n m d"]:
        """The circular convolution kernel ``irfft2(K)``, in float32 at least."""
        return torch.fft.irfft2(self._gate(torch.float32), s=(self.height, self.width), dim=(0, 1))

    @torch.no_grad()
    @checked
    def resized(self, height: int, width: int) -> SpectralGate:
        """Return a new layer for another grid, with the same kernel in pixels.

        The gate is a trigonometric polynomial in the frequency, in turns per token. It is evaluated at the frequencies
        of the new grid: this pads the kernel with zeros, or wraps its ends. A kernel that fits into both grids stays
        what it is.

        Raises:
            ArgumentError: a size below 1.
        """
        for name, size in (("height", height), ("width", width)):
            if size < 1:
                raise ArgumentError(f"spectral-gate: {name}: found {size}, expected 1 or more")
        other = type(self)(self.dim, height=height, width=width).to(self.weight)
        if (height, width) == (self.height, self.width):
            other.load_state_dict(self.state_dict())
            return other
        kernel = _wrapped(_wrapped(self.kernel(), 0, height), 1, width)
        other.weight.copy_(torch.view_as_real(torch.fft.rfft2(kernel, dim=(0, 1))))
        return other

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = torch.fft.rfft2(wide, dim=(1, 2)) * self._gate(wide.dtype)
        return LayerOutput(torch.fft.irfft2(spectrum, s=(self.height, self.width), dim=(1, 2)).to(x.dtype))

    def _gate(self, least: torch.dtype) -> Tensor:
        """K, complex, ``(n, m // 2 + 1, D)``; half precision has no complex numbers."""
        return torch.view_as_complex(self.weight.to(torch.promote_types(self.weight.dtype, least)).contiguous())


def _wrapped(kernel: Tensor, axis: int, size: int) -> Tensor:
    """The circular kernel on ``size`` places of an axis: each tap at its offset from 0, modulo ``size``."""
    present = kernel.shape[axis]
    half = present // 2
    offsets = torch.arange(-half, half + 1, device=kernel.device)
    taps = kernel.index_select(axis, offsets % present)
    if present % 2 == 0:
        # the tap at half the size stands for both ends
        for end in (0, -1):
            taps.select(axis, end).mul_(0.5)
    shape = [size if place == axis else length for place, length in enumerate(kernel.shape)]
    return kernel.new_zeros(shape).index_add(axis, offsets % size, taps)
