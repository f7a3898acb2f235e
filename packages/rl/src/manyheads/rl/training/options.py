"""``manyheads rl train``: the trainer of agents."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyheads.core.errors import ArgumentError
from manyheads.lab.data.files import write_atomically
from manyheads.lab.training.experiment import Experiment
from manyheads.lab.training.options import TrainOptions
from manyheads.lab.training.report import Report, SeedResult
from manyheads.lab.training.run import Fit
from manyheads.rl.encoders.frames import FILE as ENCODER_FILE
from manyheads.rl.training.settings import AgentExperiment
from manyheads.rl.training.stored import FILE as AGENT_FILE


@dataclass(frozen=True)
class AgentOptions(TrainOptions):
    """Options of ``manyheads rl train``."""

    out: Path | None = None
    """Also write the agent (or encoder) of the first seed to this file."""

    def trainer(self) -> AbstractContextManager[Fit | None]:
        if self.out is not None and self.out.is_dir():
            raise ArgumentError(f"--out: found the folder {self.out}, expected a file")
        return nullcontext(_fit)

    def finish(self, report: Report, folder: Path) -> tuple[Mapping[str, Any], list[str]]:
        """Return the agent or encoder of each seed, for the JSON and as a line of text."""
        places = [folder / f"seed-{seed}" / name for seed in report.seeds for name in (AGENT_FILE, ENCODER_FILE)]
        written = [path for path in places if path.exists()]
        if self.out is not None and written:
            write_atomically(self.out, written[0].read_bytes())
        others = f" (seed {report.seeds[0]}; the other seeds' lie beside it)" if len(written) > 1 else ""
        line = [f"file: {self.out or written[0]}{others}"] if written else []
        return {"files": [str(path) for path in written]}, line


def _fit(experiment: Experiment, seed: int, folder: Path | None, **options: bool) -> SeedResult:
    """Train an agent, or an encoder, which learns as any supervised model."""
    if isinstance(experiment, AgentExperiment):
        from manyheads.rl.training.loop import fit_agent as fit
    else:
        from manyheads.lab.training.loop import fit_supervised as fit
    return fit(experiment, seed, folder, **options)  # ty: ignore[invalid-argument-type]
