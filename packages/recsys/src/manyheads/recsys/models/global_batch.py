"""Distributed helpers: row counts, batch norm and dropout over the global batch, so that N processes train like one.

Each of W ranks has the rows ``rank, rank + W, …`` of every global batch (:mod:`manyheads.lab.training.loop`).
Gradients are averaged over the ranks. The weights equal those of one process up to rounding. Without a process group,
the modules behave like those of torch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> int:
    """Return the number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own(rows: Tensor) -> Tensor:
    """Return the rows ``rank, rank + W, …`` of this rank."""
    return rows if world() == 1 else rows[dist.get_rank() :: world()]


def everyones(rows: Tensor) -> Tensor:
    """Gather the rows of all ranks, rank by rank: ``(N, …)`` -> ``(W N, …)``; N is the same on every rank."""
    if world() == 1:
        return rows
    found = rows.new_empty(world() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(found, rows.contiguous())
    return found


def summed(values: Tensor) -> Tensor:
    """Return the sum over the ranks, differentiable: the gradient is that of the sum of the losses of all ranks."""
    if world() == 1:
        return values
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of all ranks, ``(N, D)``; SyncBatchNorm of torch works on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        count = len(input) * world()
        mean = summed(input.sum(0)) / count
        centred = input - mean
        variance = summed(centred.square().sum(0)) / count
        # Any, as the buffers and the momentum of torch's batch norm may be None in general
        stored: Any = self
        stored.num_batches_tracked.add_(1)
        with torch.no_grad():
            stored.running_mean.lerp_(mean, stored.momentum)
            stored.running_var.lerp_(variance * (count / (count - 1)), stored.momentum)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias


class Dropout(nn.Dropout):
    """Dropout over the global batch: each rank draws the mask of all rows and uses its own part, so that every row has
    the same mask as in one process."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0 or world() == 1:
            return super().forward(input)
        noise = input.new_empty(len(input) * world(), *input.shape[1:]).bernoulli_(1.0 - self.p)
        return input * own(noise).div_(1.0 - self.p)
