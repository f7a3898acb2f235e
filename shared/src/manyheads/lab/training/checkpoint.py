"""Checkpoints of a training run: tensors of model, optimiser and random generators, one file per checkpoint.

Writes are atomic: a crash at any moment leaves the previous file or the new one. A file that was damaged later is
named in a warning, and the checkpoint before it is loaded.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manyheads.core.errors import CheckpointError, ManyheadsWarning
from manyheads.lab.data.files import remove_parts, write_atomically
from manyheads.lab.data.storage import load_tensors, save_tensors

# Number of checkpoints that are kept.
KEEP = 2
KIND = "checkpoint"
# Not part of a checkpoint, whose bytes follow from the seed.
SPENT = "cpu-seconds.txt"


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write the checkpoint of ``step``; remove all but the latest :data:`KEEP`."""
    remove_parts(folder)
    save_tensors(folder / f"step-{step:09d}.safetensors", tensors, metadata, kind=KIND)
    for old in _newest_first(folder)[KEEP:]:
        old.unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints, so that a fresh run never resumes an older one."""
    for old in [*_newest_first(folder), folder / SPENT]:
        old.unlink(missing_ok=True)


def load_latest(
    folder: Path, *, expect: Mapping[str, Any], until: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Load the newest intact checkpoint, of step ``until`` at most: tensors and metadata, or None.

    A warning names each damaged file.

    Raises :class:`CheckpointError` if the metadata differ from ``expect``: the checkpoint of another experiment.
    """
    for path in _newest_first(folder):
        if until is not None and int(path.stem.removeprefix("step-")) > until:
            continue
        try:
            tensors, metadata = load_tensors(path, kind=KIND, fix="the one before is taken")
        except CheckpointError as error:
            warnings.warn(str(error), ManyheadsWarning, stacklevel=2)
            continue
        for name, value in expect.items():
            if metadata.get(name) != value:
                raise CheckpointError(
                    f"{path}: {name} is {metadata.get(name)!r}, expected {value!r}: it belongs to another run; "
                    "choose another folder or remove it"
                )
        return tensors, metadata
    return None


def save_cpu_seconds(folder: Path, seconds: float) -> None:
    """Write the CPU seconds of the run up to its newest checkpoint, for a run that continues it."""
    write_atomically(folder / SPENT, f"{seconds:.3f}\n".encode())


def load_cpu_seconds(folder: Path) -> float:
    """Return the CPU seconds of :func:`save_cpu_seconds`; 0 without a readable file."""
    try:
        return float((folder / SPENT).read_text())
    except (OSError, ValueError):
        return 0.0


def random_states(order: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of every random generator that a training step may use, as tensors and as JSON."""
    tensors = {"random.torch": torch.get_rng_state(), "random.order": order.get_state()}
    for index in range(torch.cuda.device_count()):
        tensors[f"random.cuda.{index}"] = torch.cuda.get_rng_state(index)
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - others may use it
    numpy_state = [kind, [int(k) for k in keys], int(position), int(has_gauss), float(gauss)]
    return tensors, {"python": random.getstate(), "numpy": numpy_state}


def restore_random_states(order: torch.Generator, tensors: Mapping[str, Tensor], states: Mapping[str, Any]) -> None:
    """Restore the states of :func:`random_states`."""
    torch.set_rng_state(tensors["random.torch"])
    order.set_state(tensors["random.order"])
    for index in range(torch.cuda.device_count()):
        if f"random.cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda.{index}"], index)
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, value = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, value))  # noqa: NPY002


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the optimiser's state as named tensors, and its parameter groups as JSON."""
    state = optimiser.state_dict()
    tensors = {
        f"optimiser.{index}.{name}": value
        for index, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    return tensors, state["param_groups"]


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Restore the state of :func:`optimiser_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    for group in groups:
        if isinstance(group.get("betas"), list):
            group["betas"] = tuple(group["betas"])
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)
