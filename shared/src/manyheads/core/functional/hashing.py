"""Random numbers by hashing their index: reproducible on every device, and independent of how many are drawn.

A generator gives other numbers if a row is longer, so that a padded input would see another sample than the same input
without padding. A hash of (seed, row, column) does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int

_WORD = 0xFFFFFFFF


def hashed_integers(
    seed: int, rows: int, columns: int, *, device: torch.device | None = None
) -> Int[Tensor, "rows columns"]:
    """Integers, uniform on ``0 … 2^32 - 1``; entry (r, c) depends on the seed, r and c only."""
    start = _scramble(torch.tensor(seed & _WORD, device=device) ^ 0x3C6EF372)
    row = _scramble(start ^ torch.arange(rows, device=device))
    column = _scramble(torch.arange(columns, device=device) + 0x1B873593)
    return _scramble(row.unsqueeze(1) ^ column)


def hashed_choice(integers: Int[Tensor, "..."], size: Int[Tensor, "..."] | int) -> Int[Tensor, "..."]:
    """Draw numbers below ``size`` (which broadcasts) with replacement, from :func:`hashed_integers`."""
    return (integers * size) >> 32


def _scramble(x: Tensor) -> Tensor:
    """Avalanche hash on 32 bits: both factors are below 2^31, so that no product overflows int64."""
    for factor, shift in ((0x21F0AAAD, 16), (0x735A2D97, 15)):
        x = ((x ^ (x >> shift)) * factor) & _WORD
    return x ^ (x >> 15)
