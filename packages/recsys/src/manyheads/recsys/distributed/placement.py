"""The training loop with embedding tables cut over the processes: how it sets up, holds and gathers the model.

Batches, losses, L2, schedule and the choice of weights are those of one process, to rounding, and so is the folder that
is written. Each process writes checkpoints of its own part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.lab.training.experiment import Experiment
from manyheads.lab.training.placement import Placement
from manyheads.recsys.distributed.sharded_tables import ROW_WISE_FROM, gathered, shard


class ShardedPlacement(Placement):
    """A part of the tables on each process, and a copy of the rest.

    Raises :class:`ArgumentError` on setup for clipped gradients and for mixed precision.
    """

    accelerator = "cpu"
    parted = True

    def __init__(self, row_wise_from: int = ROW_WISE_FROM) -> None:
        self.row_wise_from = row_wise_from

    def setup(self, fabric: Fabric, model: nn.Module, experiment: Experiment) -> tuple[nn.Module, Any]:
        check_supported(experiment)
        parallel = shard(model, row_wise_from=self.row_wise_from)
        return parallel, fabric.setup_optimizers(experiment.optimiser.make(model))

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        # TorchRec makes buffers of its own when it first runs
        buffers = {name: buffer for name, buffer in model.named_buffers() if ".collection." not in name}
        return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *buffers.items())}

    @torch.no_grad()
    def load(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        for name, own in self.tensors(model).items():
            own.copy_(tensors[name])

    def whole(self, model: nn.Module) -> dict[str, Tensor]:
        return gathered(model)


def check_supported(experiment: Experiment) -> None:
    """Raises :class:`ArgumentError` for what sharded tables cannot do."""
    clip_norm, precision = experiment.optimiser.clip_norm, experiment.budget.precision
    if clip_norm is not None:
        raise ArgumentError(f"clip_norm: found {clip_norm}, expected None with sharded tables")
    if precision != "32-true":
        raise ArgumentError(f"precision: found {precision}, expected 32-true with sharded tables")
