"""The experiments of the domain."""

from __future__ import annotations

from manyheads.lab.training.experiment import Experiment


def experiments() -> list[Experiment]:
    """Return all experiments."""
    return []
