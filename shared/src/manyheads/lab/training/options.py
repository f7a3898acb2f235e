"""Options of a domain for the command ``train``: fields, another trainer, and work after training."""

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
    """Base class: no options, the supervised loop, no work after training.

    The fields of a subclass are the options of its domain; the docstring of a field is its help text.
    """

    def trainer(self) -> AbstractContextManager[Fit | None]:
        """Return the trainer of a seed for :func:`~manyheads.lab.training.run.run`, or None for the supervised loop.

        The context is entered before the first seed and left after the last.
        """
        return nullcontext()

    def finish(self, report: Report, folder: Path) -> tuple[Mapping[str, Any], list[str]]:
        """Work on the trained seeds in ``folder``; return fields for the JSON document, and lines of text."""
        return {}, []
