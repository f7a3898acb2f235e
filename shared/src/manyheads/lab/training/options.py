"""The part of the command ``train`` that a domain adds: options, another trainer, work on the trained seeds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyheads.lab.training.report import Report
from manyheads.lab.training.run import Fit


@dataclass(frozen=True)
class TrainOptions:
    """The base: no option, the supervised loop, nothing after it. A domain's options are the fields of a subclass, each
    with a docstring, which is its help."""

    def trainer(self) -> AbstractContextManager[Fit | None]:
        """The trainer of a seed for :func:`~manyheads.lab.training.run.run`, or None for the supervised loop; entered
        before the first seed and left after the last."""
        return nullcontext()

    def finish(self, report: Report, folder: Path) -> tuple[Mapping[str, Any], list[str]]:
        """Work on the trained seeds in ``folder``; gives fields for the JSON document, and lines for people."""
        return {}, []
