"""``manyheads rl train``: the trainer of agents."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from manyheads.lab.training.experiment import Experiment
from manyheads.lab.training.options import TrainOptions
from manyheads.lab.training.report import SeedResult
from manyheads.lab.training.run import Fit
from manyheads.rl.training.settings import AgentExperiment


@dataclass(frozen=True)
class AgentOptions(TrainOptions):
    """Options of ``manyheads rl train``."""

    def trainer(self) -> AbstractContextManager[Fit | None]:
        return nullcontext(_fit)


def _fit(experiment: Experiment, seed: int, folder: Path | None, **options: bool) -> SeedResult:
    """Train an agent, or an encoder, which learns as any supervised model."""
    if isinstance(experiment, AgentExperiment):
        from manyheads.rl.training.loop import fit_agent as fit
    else:
        from manyheads.lab.training.loop import fit_supervised as fit
    return fit(experiment, seed, folder, **options)  # ty: ignore[invalid-argument-type]
