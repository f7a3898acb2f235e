"""Settings of the optimiser and its learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Optimiser:
    """Settings of the optimiser and its learning-rate schedule."""

    name: Literal["adam", "adamw", "sgd", "lars"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    """For adam and adamw only; the first is the momentum of lars."""
    schedule: Literal["constant", "halving", "cosine", "one-cycle", "steps", "plateau"] = "constant"
    """The learning-rate schedule.

    - halving: the full rate in epochs 1 and 2, then half of the previous rate in each epoch;
    - cosine: cosine annealing to 0 over the epochs;
    - one-cycle: changes at every step; warm-up from 1/25 to the full rate, then annealing to 0, both along a cosine;
    - steps: times 0.85 every 10 epochs;
    - plateau: divided by 10 after each epoch without a better validation loss, down to a thousandth.
    """
    warm_up: float = 0.3
    """For one-cycle: share of all steps for the warm-up."""
    clip_norm: float | None = None
    """Largest norm of the gradient; None clips nothing."""

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of a model; each parameter group may have its own ``base_rate``."""
        import torch

        rate, decay = self.learning_rate, self.weight_decay
        if self.name == "sgd":
            return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay)
        if self.name == "lars":
            from manyheads.lab.training.lars import Lars

            return Lars(model.parameters(), lr=rate, weight_decay=decay, momentum=self.betas[0])
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(model.parameters(), lr=rate, weight_decay=decay, betas=self.betas)
