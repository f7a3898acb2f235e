"""From a finished run to spotters: one file for each seed, beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file

from manyheads.core.errors import CheckpointError, DataError
from manyheads.kws.clips import clips_of, labels_of, only
from manyheads.kws.data import ClipSet
from manyheads.kws.models import NetworkConfig
from manyheads.kws.spotter import KeywordSpotter, Surround

if TYPE_CHECKING:
    from manyheads.lab.experiment import Experiment

NAME = "spotter.safetensors"


def write_spotters(experiment: Experiment, folder: Path, seeds: Sequence[int]) -> list[Path]:
    """Writes ``seed-<n>/spotter.safetensors`` for each seed of a run in ``folder``; gives their paths.

    An experiment that is not about clips has none.
    """
    data, config = experiment.data, experiment.model
    if not isinstance(data, ClipSet) or not isinstance(config, NetworkConfig):
        return []
    clips = clips_of(data.set)
    labels = labels_of(only(clips, data.labels) if data.labels else clips)
    written = []
    for seed in seeds:
        network = config.make(data.features.bins, labels)
        weights = folder / f"seed-{seed}" / "model.safetensors"
        try:
            network.load_state_dict(load_file(weights))
        except (SafetensorError, OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{weights} cannot be used ({reason}): train again with --fresh") from error
        spotter = KeywordSpotter(
            network,
            data.features,
            tau=data.tau,
            surround=Surround(data.lead, data.trail, data.quiet),
            trained={
                "experiment": experiment.name,
                "hash": experiment.hash,
                "seed": seed,
                "set": data.set,
                "held_out": data.held_out,
            },
        )
        path = folder / f"seed-{seed}" / NAME
        spotter.save(path)
        written.append(path)
    return written


def newest_spotter(root: Path = Path("runs")) -> Path:
    """The spotter that was written last below ``root``. Raises :class:`DataError` where there is none."""
    found = sorted(root.glob(f"*/*/seed-*/{NAME}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError(
            f"{root}: found no {NAME}: train one (manyheads kws train arabic-lmuformer) or name one with --spotter"
        )
    return found[-1]
