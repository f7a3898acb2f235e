"""Correlation on a circle through the FFT.

    c[s] = sum_t a[(t + s) mod n] b[t],   0 <= s < n

With queries and keys it tells how well each delay aligns them; with values and weights on delays it rolls and sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from manyheads.core.functional.fft_convolution import fast_length


def circular_correlation(a: Tensor, b: Tensor, *, lengths: Tensor | None = None, mean: int | None = None) -> Tensor:
    """``a (…, T)``, ``b (…, T)``, which broadcast -> ``c (…, T)``, in time ``O(T log T)``.

    ``lengths`` (int64, broadcasts against the leading axes) gives each row a circle of its own, ``n = lengths``; what
    lies beyond it must be 0 and becomes 0. ``mean`` averages over that axis of the product (negative, not the last)
    and drops it, at the cost of one inverse transform instead of many. Half precision is computed in float32.
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
        # delays s and s - n are one on the circle; those below 0 lie at the end of the longer transform
        wrapped = c.gather(-1, ((shift - n) % size).expand(*c.shape[:-1], tokens))
        c = torch.where(shift < n, c[..., :tokens] + wrapped, 0.0)
    return c.to(dtype)
