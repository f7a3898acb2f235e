"""Checkpoint files read as numpy arrays, where torch is not needed or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from manyheads.core.errors import CheckpointError


def load_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what :func:`manyheads.lab.checkpoint.save_tensors` wrote, of kinds that numpy has.

    Raises :class:`CheckpointError` for a file that is absent or damaged.
    """
    try:
        with safe_open(path, framework="np") as stored:
            metadata = stored.metadata() or {}
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): remove it to start from the one before") from error
    raw = {name: np.ascontiguousarray(value).reshape(-1).view(np.uint8) for name, value in arrays.items()}
    if "state" not in metadata or metadata.get("digest") != digest(raw, metadata["state"]):
        raise CheckpointError(f"{path} is damaged or not one of ours: remove it to start from the one before")
    return arrays, json.loads(metadata["state"])


def digest(raw: Mapping[str, np.ndarray], text: str) -> str:
    """Of the header and of each array's bytes, by name."""
    found = hashlib.sha256(text.encode())
    for name in sorted(raw):
        found.update(name.encode())
        found.update(raw[name].data)
    return found.hexdigest()
