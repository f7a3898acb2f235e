"""How the learning rate changes over a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from manyheads.lab.training.optimisers import Optimiser

if TYPE_CHECKING:
    import torch


def rate_factor(config: Optimiser, done: float, epochs: int, *, worse: int = 0) -> float:
    """The share of the learning rate after ``done`` epochs, of which ``worse`` did not better the validation loss; only
    one-cycle changes it inside an epoch."""
    if config.schedule == "one-cycle":
        rising = config.warm_up * epochs
        if done < rising:
            return 0.04 + 0.96 * _half_cosine(1.0 - done / rising)
        return _half_cosine((done - rising) / (epochs - rising))
    epoch = int(done)
    if config.schedule == "halving":
        return 0.5 ** max(epoch - 1, 0)
    if config.schedule == "cosine":
        return _half_cosine(epoch / epochs)
    if config.schedule == "steps":
        return 0.85 ** (epoch // 10)
    if config.schedule == "plateau":
        return 0.1 ** min(worse, 3)
    return 1.0


def _half_cosine(share: float) -> float:
    """From 1 at 0 down to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * share))


def set_learning_rate(
    optimiser: torch.optim.Optimizer, config: Optimiser, done: float, epochs: int, *, worse: int = 0
) -> None:
    """The rate of each parameter group, from its own ``base_rate`` where it has one."""
    factor = rate_factor(config, done, epochs, worse=worse)
    for group in optimiser.param_groups:
        group["lr"] = group.get("base_rate", config.learning_rate) * factor


def epochs_without_gain(history: Sequence[Mapping[str, float]]) -> int:
    """How many epochs so far did not better the validation loss; 0 where there is none."""
    best, count = math.inf, 0
    for line in history:
        if "validation_loss" in line:
            count += not line["validation_loss"] < best
            best = min(best, line["validation_loss"])
    return count
