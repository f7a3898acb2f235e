"""Distributed helpers: row counts, batch norm and dropout over the global batch, so that N processes train like one.

Each of W ranks has the rows ``rank, rank + W, …`` of every global batch (:mod:`manyheads.lab.training.loop`).
Gradients are averaged over the ranks. The weights are those of one process, to rounding. Outside of a process group
these parts are torch's own.
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
    """This rank's rows ``rank, rank + W, …`` of those of all."""
    return rows if world() == 1 else rows[dist.get_rank() :: world()]


def everyones(rows: Tensor) -> Tensor:
    """``(N, …)`` of each rank -> ``(W N, …)`` of all, rank by rank; as many rows on each."""
    if world() == 1:
        return rows
    found = rows.new_empty(world() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(found, rows.contiguous())
    return found


def summed(values: Tensor) -> Tensor:
    """The sum over the ranks, differentiable: each rank's gradient is that of all ranks' losses."""
    if world() == 1:
        return values
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the rows of all ranks; torch's own for that is for GPUs only. ``(N, D)``."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        count = len(input) * world()
        mean = summed(input.sum(0)) / count
        centred = input - mean
        variance = summed(centred.square().sum(0)) / count
        stored: Any = self  # in general torch's buffers and momentum may be None
        stored.num_batches_tracked.add_(1)
        with torch.no_grad():
            stored.running_mean.lerp_(mean, stored.momentum)
            stored.running_var.lerp_(variance * (count / (count - 1)), stored.momentum)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias


class Dropout(nn.Dropout):
    """Dropout that draws for the rows of all ranks and takes its own, so that every row has the mask that it has in one
    process."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0.0 or world() == 1:
            return super().forward(input)
        noise = input.new_empty(len(input) * world(), *input.shape[1:]).bernoulli_(1.0 - self.p)
        return input * own(noise).div_(1.0 - self.p)
