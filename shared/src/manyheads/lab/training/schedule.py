"""Learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from manyheads.lab.training.optimisers import Optimiser

if TYPE_CHECKING:
    import torch


def rate_factor(config: Optimiser, done: float, epochs: int, *, worse: int = 0) -> float:
    """Return the factor of the learning rate after ``done`` epochs (a fraction inside an epoch).

    ``worse`` is the number of epochs that did not improve the validation loss. Only one-cycle changes the factor inside
    an epoch.
    """
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
    """Fall along half a cosine from 1 at ``share`` = 0 to 0 at ``share`` = 1."""
    return 0.5 * (1.0 + math.cos(math.pi * share))


def set_learning_rate(
    optimiser: torch.optim.Optimizer, config: Optimiser, done: float, epochs: int, *, worse: int = 0
) -> None:
    """Set the learning rate of each parameter group, relative to its ``base_rate`` if it has one."""
    factor = rate_factor(config, done, epochs, worse=worse)
    for group in optimiser.param_groups:
        group["lr"] = group.get("base_rate", config.learning_rate) * factor


def epochs_without_gain(history: Sequence[Mapping[str, float]]) -> int:
    """Count the epochs that did not improve the validation loss; 0 without a validation loss."""
    best, count = math.inf, 0
    for line in history:
        if "validation_loss" in line:
            count += not line["validation_loss"] < best
            best = min(best, line["validation_loss"])
    return count
