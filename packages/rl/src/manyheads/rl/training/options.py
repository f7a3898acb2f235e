"""``manyheads rl train``: the trainer of agents."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

from manyheads.lab.training.options import TrainOptions
from manyheads.lab.training.run import Fit


@dataclass(frozen=True)
class AgentOptions(TrainOptions):
    """Options of ``manyheads rl train``."""

    def trainer(self) -> AbstractContextManager[Fit | None]:
        from manyheads.rl.training.loop import fit_agent

        return nullcontext(cast("Fit", fit_agent))
