"""Spotter files of training runs: ``runs/<experiment>/<hash>/seed-<n>/spotter.safetensors``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from manyheads.core.errors import DataError
from manyheads.lab.training.run import newest

NAME = "spotter.safetensors"


def spotters_of(folder: Path, seeds: Iterable[int]) -> list[Path]:
    """Return the spotter files of a run; none if the experiment does not use clips."""
    paths = [folder / f"seed-{seed}" / NAME for seed in seeds]
    return [path for path in paths if path.is_file()]


def newest_spotter(root: Path = Path("runs")) -> Path:
    """Return the newest spotter file below ``root``. Raises :class:`DataError` if there is none."""
    found = newest(root, NAME)
    if found is None:
        raise DataError(
            f"{root}: found no {NAME}: train one (manyheads kws train arabic-lmuformer) or name one with --spotter"
        )
    return found
