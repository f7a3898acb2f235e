"""Placement of a model in a run of several processes: a copy on each, or, by a subclass, a shard on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from manyheads.lab.training.experiment import Experiment


class Placement:
    """A copy of the model on each process, gradients averaged over them (DDP). The first process writes."""

    accelerator: str | None = None
    """The accelerator of Fabric; None for a GPU if there is one."""
    parted = False
    """True if each process holds a shard, which it writes to its own checkpoints."""

    def setup(self, fabric: Fabric, model: nn.Module, experiment: Experiment) -> tuple[nn.Module, Any]:
        """Return the model to call in training and its optimiser; ``model`` keeps the same weights."""
        return fabric.setup(model, experiment.optimiser.make(model))

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights and buffers of this process by name."""
        return model.state_dict()

    def load(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors that :meth:`tensors` returned."""
        model.load_state_dict(tensors)

    def whole(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights of a one-process run, complete on the first process; every process must call."""
        return model.state_dict()
