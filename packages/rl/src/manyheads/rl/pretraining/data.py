"""Triples of observations from a recording, as the parts of an experiment.

The held-out part consists of whole episodes. A recording that is not there is collected.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manyheads.core.errors import DataError
from manyheads.lab.data.registry import cache_folder
from manyheads.lab.training.experiment import Splits
from manyheads.rl.pretraining.collect import STACK, collect
from manyheads.rl.pretraining.recording import Recording


@dataclass(frozen=True)
class TriplePart:
    """Triples ``(B, 3, S, H, W)`` of bytes: the observations at t - gap, t and t + gap."""

    recording: Recording
    centres: np.ndarray
    gap: int
    stack: int = STACK

    def __len__(self) -> int:
        return len(self.centres)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the triples of the chosen centres."""
        at = self.centres[indices.numpy()]
        steps = np.array([-self.gap, 0, self.gap])
        flat = (at[:, None] + steps).reshape(-1)
        frames = self.recording.observations(flat, stack=self.stack)
        return torch.from_numpy(frames).unflatten(0, (len(at), 3))


@dataclass(frozen=True)
class ProbePart:
    """A recording with the episodes on which probes are fitted, and those on which they are scored."""

    recording: Recording
    fitted: np.ndarray
    held: np.ndarray
    gap: int
    stack: int = STACK

    def __len__(self) -> int:
        return len(self.centres(self.held))

    def batch(self, indices: Tensor) -> Tensor:
        """Return triples of the held-out episodes."""
        return TriplePart(self.recording, self.centres(self.held), self.gap, self.stack).batch(indices)

    def centres(self, episodes: np.ndarray) -> np.ndarray:
        """Return the centres of all triples of these episodes."""
        return self.recording.centres(stack=self.stack, gap=self.gap, episodes=episodes)


@dataclass(frozen=True)
class RecordingData:
    """A recording of play."""

    game: str = "pong"
    """Name of the ROM, such as "ms_pacman"."""
    frames: int = 30_000
    """Number of frames, one for each step."""
    size: int = 84
    """Height and width of a frame in pixels."""
    seed: int = 0
    """Seed of the collection."""
    path: Path | None = None
    """Recording file; by default random play is collected once into the cache of the user."""
    gap: int = 3
    """k: the triple is t - k, t, t + k."""
    held_out: float = 0.25
    """Share of the frames in held-out episodes, at least."""

    def recording(self) -> Recording:
        """Load the recording, or collect it.

        Raises :class:`DataError` for a file of another game or size, or an unfinished one.
        """
        if self.path is None:
            name = f"{self.game}-{self.size}-{self.frames}-{self.seed}.safetensors"
            path = cache_folder() / "rl" / name
            return collect(self.game, self.frames, path, size=self.size, seed=self.seed, progress=True)
        found = Recording.load(self.path)
        for key, value in (("game", self.game), ("size", self.size), ("complete", True)):
            if found.facts.get(key) != value:
                raise DataError(
                    f"{self.path}: {key}: found {found.facts.get(key)!r}, expected {value!r}: set data.{key} or "
                    "collect again (manyheads rl collect)"
                )
        return found

    def open(self) -> Splits:
        """Return the triples of the first episodes for training, the last ones for the probes."""
        recording = self.recording()
        fitted, held = recording.split(self.held_out)
        train = TriplePart(recording, recording.centres(stack=STACK, gap=self.gap, episodes=fitted), self.gap)
        nothing = TriplePart(recording, np.zeros(0, np.int64), self.gap)
        facts = {"game": recording.game, "size": recording.frames.shape[1], "stack": STACK}
        return Splits(train, nothing, ProbePart(recording, fitted, held, self.gap), facts)
