"""A few Fourier coefficients of a real signal by a matrix product: linear in the length, and exact under padding.

    X[k] = sum_t x[t] exp(-2 pi i k t / n),   x[t] = 1/n sum_k c_k Re(X[k] exp(2 pi i k t / n))

with ``c_k = 1`` for k = 0 and k = n / 2, else 2, as a real signal has the conjugate at n - k. For M frequencies this
costs ``O(T M)`` for each channel; below some hundred frequencies that is less than an FFT with its transposes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def fourier_basis(
    tokens: int,
    frequencies: Int[Tensor, "m"],
    *,
    lengths: Int[Tensor, "b"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "*b t 2*m"], Float[Tensor, "*b 2*m"]]:
    """The matrix ``basis`` of the transform and the factors ``scale`` of its inverse.

    ``basis.T @ x`` holds the real parts of the M coefficients, then the imaginary parts. ``(basis * scale) @ X`` is the
    signal. A frequency above n / 2 does not exist at that length: its scale is 0.

    Args:
        tokens: T.
        frequencies: k of each coefficient.
        lengths: n of each row, which gives the results a leading axis B; T for all by default.
        dtype: of the results.
    """
    n = torch.tensor(tokens, device=frequencies.device) if lengths is None else lengths.clamp(min=1)
    n = n.view(*n.shape, 1)
    time = torch.arange(tokens, device=frequencies.device)
    # Drop whole turns in integers: an angle of thousands of turns would have no digits left in float32.
    phase = (time.unsqueeze(-1) * frequencies) % n.unsqueeze(-1)
    angle = phase.to(dtype) * (2 * math.pi / n.unsqueeze(-1).to(dtype))
    doubled = 1 + ((frequencies > 0) & (2 * frequencies != n)).to(dtype)
    scale = torch.where(2 * frequencies <= n, doubled / n, 0.0)
    return torch.cat([angle.cos(), -angle.sin()], -1), torch.cat([scale, scale], -1)
