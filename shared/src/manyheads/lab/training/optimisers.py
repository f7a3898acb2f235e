"""The optimiser of an experiment and its learning-rate schedule, as settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Optimiser:
    """The optimiser and its schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adam and adamw."""
    schedule: Literal["constant", "halving", "cosine", "one-cycle", "steps", "plateau"] = "constant"
    """halving: epochs 1 and 2 at the full rate, then half of the rate before; cosine: down to 0 over the epochs;
    one-cycle: step by step, up from a 25th over the first ``warm_up`` of all steps and down to 0, both along a cosine;
    steps: times 0.85 every 10 epochs; plateau: a tenth after each epoch without a better validation loss, down to a
    thousandth."""
    warm_up: float = 0.3
    clip_norm: float | None = None

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model; each parameter group may have its own ``base_rate``."""
        import torch

        rate, decay = self.learning_rate, self.weight_decay
        if self.name == "sgd":
            return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay)
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind(model.parameters(), lr=rate, weight_decay=decay, betas=self.betas)
