"""Measures of collapse and sparsity of representations.

    effective rank       exp of the entropy of the singular values of the centred features, normalised to sum 1
    off-diagonal         mean |C_ij|, i != j, of the covariance matrix
    deviation            standard deviation of each dimension
    Hoyer sparsity       (sqrt D - |x|_1 / |x|_2) / (sqrt D - 1), from 0 (even) to 1 (one entry), mean over vectors

Axes: n vectors, d width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError
from manyheads.rl.encoders.frames import FrameEncoder


class Collapse(NamedTuple):
    """Collapse measures of features ``(N, D)``."""

    effective_rank: float
    off_diagonal: float
    deviation: Tensor  # (D,)


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of centred features ``(N, D)``: 1 to D; 0 if all are equal."""
    singular = torch.linalg.svdvals((features - features.mean(0)).double())
    total = singular.sum()
    if total <= 1e-12 * max(1.0, float(features.abs().max())):
        return 0.0
    shares = singular / total
    return float(torch.special.entr(shares).sum().exp())


def collapse(features: Tensor) -> Collapse:
    """Return all collapse measures. Raises :class:`ArgumentError` for fewer than two vectors."""
    if features.dim() != 2 or len(features) < 2:
        raise ArgumentError(f"collapse: found features of shape {tuple(features.shape)}, expected two rows or more")
    matrix = torch.cov(features.double().T).reshape(features.shape[1], -1)
    width = len(matrix)
    off = (matrix.abs().sum() - matrix.diagonal().abs().sum()) / max(width * (width - 1), 1)
    return Collapse(effective_rank(features), float(off), features.std(0))


def hoyer_sparsity(vectors: Tensor) -> Tensor:
    """Return the Hoyer sparsity of each vector ``(..., D)``; 0 for a vector of zeros."""
    root = math.sqrt(vectors.shape[-1])
    one, two = vectors.abs().sum(-1), vectors.square().sum(-1).sqrt()
    return torch.where(two > 0, (root - one / two.clamp_min(1e-30)) / (root - 1), 0.0)


@torch.no_grad()
def sparsity_by_layer(encoder: FrameEncoder, frames: Tensor) -> list[float]:
    """Return the mean Hoyer sparsity of the tokens after each block of the encoder."""
    found: list[float] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: found.append(float(hoyer_sparsity(out[0]).mean())))
        for block in encoder.network.stack.residual_blocks
    ]
    try:
        encoder(frames)
    finally:
        for hook in hooks:
            hook.remove()
    return found
