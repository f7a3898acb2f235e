"""Random numbers that are a function of their place: reproducible on every device, and independent of the size drawn.

A generator gives other numbers when more are drawn in a row, so that a padded input would see another sample than the
same input without its padding. A hash of (seed, row, column) does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def hashed_integers(seed: int, rows: int, columns: int, *, device: torch.device | None = None) -> Tensor:
    """``(rows, columns)`` int64, uniform on ``0 … 2^32 - 1``; entry (r, c) depends on the seed, r and c only."""
    start = _scramble(torch.tensor(seed & _WORD, device=device) ^ 0x3C6EF372)
    row = _scramble(start ^ torch.arange(rows, device=device))
    column = _scramble(torch.arange(columns, device=device) + 0x1B873593)
    return _scramble(row.unsqueeze(1) ^ column)


def hashed_choice(integers: Tensor, size: Tensor | int) -> Tensor:
    """:func:`hashed_integers` as numbers below ``size`` (which broadcasts), with replacement."""
    return (integers * size) >> 32


def _scramble(x: Tensor) -> Tensor:
    """An avalanche on 32 bits: both factors are below 2^31, so that no product leaves int64."""
    for factor, shift in ((0x21F0AAAD, 16), (0x735A2D97, 15)):
        x = ((x ^ (x >> shift)) * factor) & _WORD
    return x ^ (x >> 15)
