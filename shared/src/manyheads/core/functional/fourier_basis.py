"""A few frequencies of a real signal as a product with a matrix: linear in the length, and exact under padding.

    X[k] = sum_t x[t] exp(-2 pi i k t / n),   x[t] = 1/n sum_k c_k Re(X[k] exp(2 pi i k t / n))

with ``c_k = 1`` for k = 0 and k = n / 2, else 2, as a real signal has the conjugate at n - k. For M frequencies this
costs ``O(T M)`` a channel; below some hundred frequencies that is less than an FFT with its transposes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fourier_basis(
    tokens: int, frequencies: Tensor, *, lengths: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """``frequencies (M,)`` int64 -> ``basis (T, 2 M)`` and ``scale (2 M,)``.

    ``basis.T @ x`` holds the real parts of the M coefficients, then the imaginary ones; ``(basis * scale) @ X`` is the
    signal. Frequencies above n / 2 do not exist at that length: their scale is 0. With ``lengths (B,)``, n of each row,
    the results have a leading axis B.
    """
    n = torch.tensor(tokens, device=frequencies.device) if lengths is None else lengths.clamp(min=1)
    n = n.view(*n.shape, 1)
    time = torch.arange(tokens, device=frequencies.device)
    # whole turns are dropped in integers: an angle of thousands of turns would have no digits left in float32
    phase = (time.unsqueeze(-1) * frequencies) % n.unsqueeze(-1)
    angle = phase.to(dtype) * (2 * math.pi / n.unsqueeze(-1).to(dtype))
    doubled = 1 + ((frequencies > 0) & (2 * frequencies != n)).to(dtype)
    scale = torch.where(2 * frequencies <= n, doubled / n, 0.0)
    return torch.cat([angle.cos(), -angle.sin()], -1), torch.cat([scale, scale], -1)
