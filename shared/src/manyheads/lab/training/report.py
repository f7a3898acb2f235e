"""The result of a seed and the report of an experiment, stored as JSON documents with a digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyheads.core.errors import CheckpointError
from manyheads.lab.data.storage import load_document

RESULT, REPORT = "result of a seed", "report of an experiment"


@dataclass(frozen=True)
class SeedResult:
    """The result of training one seed."""

    metrics: Mapping[str, float]
    parameters: int
    cpu_seconds: float
    epochs: int


@dataclass(frozen=True)
class Report:
    """The results of all seeds of an experiment."""

    name: str
    hash: str
    command: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, Mapping[str, float]]
    """Seed -> metric -> value."""
    mean: Mapping[str, float]
    sd: Mapping[str, float | None]
    """Sample standard deviation of each metric; None with one seed."""
    parameters: int
    cpu_seconds: float
    peak_memory_bytes: int
    environment: Mapping[str, str]
    source: Mapping[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report. Raises :class:`CheckpointError` if the file is absent or damaged."""
        stored: dict[str, Any] = load_document(path, kind=REPORT, fix="remove it and run the experiment again")
        try:
            stored["seeds"] = tuple(stored["seeds"])
            return cls(**stored)
        except (TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path}: found the fields of another version: remove it and run the experiment again"
            ) from error
