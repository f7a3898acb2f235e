"""Spotter files of training runs: ``runs/<experiment>/<hash>/seed-<n>/spotter.safetensors``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from manyheads.core.errors import DataError

NAME = "spotter.safetensors"


def spotters_of(folder: Path, seeds: Iterable[int]) -> list[Path]:
    """Return the spotter files of a run; none if the experiment does not use clips."""
    paths = [folder / f"seed-{seed}" / NAME for seed in seeds]
    return [path for path in paths if path.is_file()]


def newest_spotter(root: Path = Path("runs")) -> Path:
    """Return the newest spotter file below ``root``. Raises :class:`DataError` if there is none."""
    found = sorted(root.glob(f"*/*/seed-*/{NAME}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError(
            f"{root}: found no {NAME}: train one (manyheads kws train arabic-lmuformer) or name one with --spotter"
        )
    return found[-1]
