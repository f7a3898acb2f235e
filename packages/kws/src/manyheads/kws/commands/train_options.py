"""``manyheads kws train``: spotter files and the confidence interval of the accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyheads.kws.evaluation.confidence import accuracy_text, wilson
from manyheads.kws.training.trained import spotters_of
from manyheads.lab.data.files import write_atomically
from manyheads.lab.training.options import TrainOptions
from manyheads.lab.training.report import Report


@dataclass(frozen=True)
class SpotterOptions(TrainOptions):
    """Options of ``manyheads kws train``."""

    out: Path | None = None
    """Also write the spotter of the first seed to this file."""

    def finish(self, report: Report, folder: Path) -> tuple[Mapping[str, Any], list[str]]:
        """Return the spotter files and the 95 % confidence interval of the accuracy on the test part, for the JSON and
        as lines of text."""
        written = spotters_of(folder, report.seeds)
        if self.out is not None and written:
            write_atomically(self.out, written[0].read_bytes())
        more: dict[str, Any] = {"spotters": [str(path) for path in written]}
        line = f"spotter: {self.out or written[0]}" if written else "no spotter: the experiment is not about clips"
        others = f" (seed {report.seeds[0]}; the other seeds' lie beside it)" if len(written) > 1 else ""
        lines = [line + others]
        if "accuracy" in report.mean:
            right, clips = report.mean["accuracy"] / 100 * report.mean["clips"], report.mean["clips"]
            more["accuracy_interval"] = [100 * bound for bound in wilson(right, clips)]
            lines.insert(0, f"test part: {accuracy_text(right, clips)}")
        return more, lines
