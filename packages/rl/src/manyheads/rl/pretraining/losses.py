"""Losses of self-supervised pretraining, as functions of embeddings.

    VICReg (2105.04906)   invariance  mean (a - b)^2
                          variance    1/2 sum_v mean_d relu(1 - sqrt(var_d + eps))
                          covariance  sum_v sum_{i != j} C_ij^2 / D,      C with 1 / (B - 1)
    order (2209.10901)    BCE(head(permuted triple), 0 for the order of time, 1 otherwise)
    MoCo v3 (2104.02057)  2 tau CE(q k' / tau, diagonal), both directions
    DINO (2104.14294)     -sum softmax((t - c) / tau_t) log softmax(s / tau_s), over pairs of different views

Axes: b batch, d width, p prototypes.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.errors import ArgumentError

VARIANCE_EPS = 1e-4
# The identity is the first.
ORDERS = torch.tensor(list(permutations(range(3))))


def invariance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of two embeddings ``(B, D)``."""
    return functional.mse_loss(a, b)


def variance(a: Tensor) -> Tensor:
    """Half the mean hinge of the standard deviation of each dimension below 1."""
    return 0.5 * functional.relu(1 - (a.var(0) + VARIANCE_EPS).sqrt()).mean()


def covariance(a: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions, over their number D."""
    centred = a - a.mean(0)
    matrix = centred.T @ centred / (len(a) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / a.shape[1]


class Shuffled(NamedTuple):
    """Permuted triples ``(B, 3, D)`` and targets ``(B,)``: 0 for the order of time, 1 for any other."""

    triples: Tensor
    target: Tensor


def shuffle_triples(triples: Tensor, *, in_order: float = 0.5, generator: torch.Generator | None = None) -> Shuffled:
    """Permute each triple; the share ``in_order`` keeps its order, the others get one of the five other orders.

    The published share is 1/6, so that "wrong" is right for five triples of six.
    """
    rows = len(triples)
    device = triples.device if generator is None else generator.device
    keep = torch.rand(rows, generator=generator, device=device) < in_order
    other = torch.randint(1, len(ORDERS), (rows,), generator=generator, device=device)
    drawn = torch.where(keep, 0, other).to(triples.device)
    order = ORDERS.to(triples.device)[drawn]
    permuted = triples.gather(1, order[:, :, None].expand(-1, -1, triples.shape[2]))
    return Shuffled(permuted, (drawn != 0).to(triples.dtype))


def order_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of the logits ``(B,)``."""
    return functional.binary_cross_entropy_with_logits(logits, target)


def contrastive(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE of one direction: query i should find key i among the keys of the batch. Times ``2 temperature``."""
    if temperature <= 0:
        raise ArgumentError(f"temperature: found {temperature}, expected a number above 0")
    q, k = functional.normalize(queries, dim=1), functional.normalize(keys, dim=1)
    logits = q @ k.T / temperature
    return 2 * temperature * functional.cross_entropy(logits, torch.arange(len(q), device=q.device))


def distillation(
    student: Tensor, teacher: Tensor, centre: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross-entropy of the student's prototypes ``(V, B, P)`` to the teacher's, over all pairs of different views.

    The teacher's scores are centred and sharpened, which keeps it from collapsing.
    """
    views = len(teacher)
    if views < 2 or len(student) < views:
        raise ArgumentError(
            f"distillation: found {views} views of the teacher, expected 2 or more, also of the student"
        )
    targets = ((teacher - centre) / teacher_temperature).softmax(-1)
    logs = (student / student_temperature).log_softmax(-1)
    pairs = [-(targets[i] * logs[j]).sum(-1).mean() for i in range(views) for j in range(len(student)) if i != j]
    return torch.stack(pairs).mean()
