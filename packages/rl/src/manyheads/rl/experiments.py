"""The experiments of the domain."""

from __future__ import annotations

from manyheads.lab.training.experiment import Experiment
from manyheads.rl.pretraining.experiments import experiments as pretraining_experiments


def experiments() -> list[Experiment]:
    """Return all experiments."""
    return pretraining_experiments()
