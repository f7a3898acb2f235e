"""Where a model lies in a run of several processes: a copy on each, or, by a subclass, a part on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from manyheads.lab.training.experiment import Experiment


class Placement:
    """A copy of the model on each process, gradients averaged over them (DDP). The first process writes."""

    accelerator: str | None = None
    """Of Fabric; None for a GPU if there is one."""
    parted = False
    """Whether each process holds a part of its own, which it writes to checkpoints of its own."""

    def setup(self, fabric: Fabric, model: nn.Module, experiment: Experiment) -> tuple[nn.Module, Any]:
        """The model to be called in training and its optimiser; ``model`` holds the same weights afterwards."""
        return fabric.setup(model, experiment.optimiser.make(model))

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights and buffers that lie here, by name."""
        return model.state_dict()

    def load(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Set what :meth:`tensors` gave."""
        model.load_state_dict(tensors)

    def whole(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights of one process, complete on the first; every process calls."""
        return model.state_dict()
