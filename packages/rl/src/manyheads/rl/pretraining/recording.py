"""A recording of play: frames, actions, rewards, episodes and RAM; observations and triples that stay in an episode.

    observation o_t = (f_{t-S+1}, ..., f_t)        S frames as channels
    triple      (o_{t-k}, o_t, o_{t+k})            all 2k + S frames from one episode

Axes: N frames, S stack, H and W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from manyheads.core.errors import ArgumentError, CheckpointError, DataError
from manyheads.lab.data.storage import load_arrays, save_tensors

KIND = "recording of play"
RAM_BYTES = 128
_FIX = "collect it again (manyheads rl collect pong --out pong.safetensors)"
_DTYPES = {
    "frames": np.uint8,
    "actions": np.int32,
    "rewards": np.float32,
    "episodes": np.int32,
    "ram": np.uint8,
}


@dataclass(frozen=True)
class Recording:
    """Frames of play, in order; the frames of an episode lie together."""

    frames: np.ndarray
    """``(N, H, W)``, uint8, gray."""
    actions: np.ndarray
    """``(N,)``: the action taken after the frame, an index of the minimal action set."""
    rewards: np.ndarray
    """``(N,)``: the raw reward that the action brought."""
    episodes: np.ndarray
    """``(N,)``: number of the episode, rising."""
    ram: np.ndarray
    """``(N, 128)``, uint8: RAM of the emulator at the frame."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: game, seed, frame skip, actions, and whether it is complete."""

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            found = getattr(self, name)
            if found.dtype != dtype or len(found) != len(self.frames):
                raise DataError(
                    f"recording: {name}: found {found.dtype} of {len(found)} rows, expected {np.dtype(dtype)} of "
                    f"{len(self.frames)}: {_FIX}"
                )
        if self.frames.ndim != 3 or self.ram.ndim != 2 or (np.diff(self.episodes) < 0).any():
            raise DataError(f"recording: found frames of shape {self.frames.shape} or episodes out of order: {_FIX}")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def game(self) -> str:
        """Name of the game, such as "ms_pacman"."""
        return str(self.facts.get("game", ""))

    @property
    def digest(self) -> str:
        """SHA-256 of all arrays."""
        found = hashlib.sha256()
        for name in _DTYPES:
            found.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return found.hexdigest()

    @cached_property
    def bounds(self) -> np.ndarray:
        """``(E, 2)``: first frame of each episode, and the frame after its last."""
        starts = np.flatnonzero(np.diff(self.episodes, prepend=self.episodes[:1] - 1))
        return np.stack([starts, np.append(starts[1:], len(self))], 1)

    def centres(self, *, stack: int = 3, gap: int = 0, episodes: np.ndarray | None = None) -> np.ndarray:
        """Return each t whose observations t - gap, t and t + gap lie in one episode, of ``episodes`` only if given.

        With ``gap`` 0 these are the frames that have an observation. Raises :class:`ArgumentError` for a stack below 1
        or a negative gap.
        """
        if stack < 1 or gap < 0:
            raise ArgumentError(f"centres: found stack {stack} and gap {gap}, expected 1 or more and 0 or more")
        chosen = self.bounds
        if episodes is not None:
            chosen = chosen[np.isin(self.episodes[chosen[:, 0]], episodes)]
        ranges = [np.arange(start + gap + stack - 1, end - gap) for start, end in chosen]
        return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)

    def observations(self, at: np.ndarray, *, stack: int = 3) -> np.ndarray:
        """Return the observations ``(B, S, H, W)`` of the frames ``at``, the latest frame last."""
        return self.frames[np.asarray(at)[:, None] + np.arange(1 - stack, 1)]

    def split(self, held_out: float) -> tuple[np.ndarray, np.ndarray]:
        """Split the episodes: numbers of the first ones, and of the last ones that hold at least that share of frames.

        Raises :class:`DataError` if a part would have no episode.
        """
        numbers, counts = np.unique(self.episodes, return_counts=True)
        behind = np.cumsum(counts[::-1])[::-1]
        first = int((behind >= held_out * len(self)).sum()) - 1
        if not 0 < first < len(numbers):
            raise DataError(
                f"recording: found {len(numbers)} episodes, expected enough for held-out ones: collect more frames"
            )
        return numbers[:first], numbers[first:]

    def save(self, path: str | Path) -> None:
        """Write one file, atomically, with its digest."""
        save_tensors(path, {name: getattr(self, name) for name in _DTYPES}, dict(self.facts), kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read a file. Raises :class:`CheckpointError` for one that is absent, damaged or of another kind."""
        arrays, facts = load_arrays(path, kind=KIND, fix=_FIX)
        missing = set(_DTYPES) - set(arrays)
        if missing:
            raise CheckpointError(f"{path}: {sorted(missing)[0]}: missing: {_FIX}")
        return cls(**{name: arrays[name] for name in _DTYPES}, facts=facts)
