"""Circular correlation by the FFT.

    c[s] = sum_t a[(t + s) mod n] b[t],   0 <= s < n

Of queries and keys it is a score for each delay; of values and weights of delays it is a weighted sum of rolled values.

Axes: t tokens, leading axes that broadcast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.functional.fft_convolution import fast_length

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def circular_correlation(
    a: Float[Tensor, "*#rows t"],
    b: Float[Tensor, "*#rows t"],
    *,
    lengths: Int[Tensor, "..."] | None = None,
    mean: int | None = None,
) -> Float[Tensor, "... t"]:
    """Circular correlation ``c`` of ``a`` and ``b``, in time ``O(T log T)``.

    Half precision is computed in float32.

    Args:
        lengths: n of each row, which broadcasts against the leading axes; T by default. Both inputs must be 0 beyond
            it, and the result is 0 there.
        mean: the axis of the product (negative, not the last) to average over and drop. This costs one inverse
            transform instead of one for each entry of the axis.
    """
    tokens, dtype = a.shape[-1], torch.promote_types(a.dtype, b.dtype)
    inner = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    size = tokens if lengths is None else fast_length(2 * tokens - 1)
    spectrum = torch.fft.rfft(a.to(inner), n=size) * torch.fft.rfft(b.to(inner), n=size).conj()
    if mean is not None:
        spectrum = spectrum.mean(mean)
    c = torch.fft.irfft(spectrum, n=size)
    if lengths is not None:
        shift = torch.arange(tokens, device=a.device)
        n = lengths.unsqueeze(-1)
        # Delays s and s - n are equal on the circle; negative ones lie at the end of the longer transform.
        wrapped = c.gather(-1, ((shift - n) % size).expand(*c.shape[:-1], tokens))
        c = torch.where(shift < n, c[..., :tokens] + wrapped, 0.0)
    return c.to(dtype)
