"""Input and output of a keyword spotter: chunks of samples, stream state, scores and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from manyheads.core import state as states
from manyheads.core.errors import ArgumentError
from manyheads.kws.audio.features import MeanState, SampleState
from manyheads.kws.audio.reading import LOUDEST
from manyheads.kws.streaming.background import BackgroundState
from manyheads.kws.streaming.detection import SmoothState

FULL_SCALE = {np.dtype(np.int16): 32768.0, np.dtype(np.int32): 2147483648.0}


@dataclass(frozen=True)
class Prediction:
    """Classification of a whole clip."""

    label: str
    score: float
    scores: Mapping[str, float]
    notes: tuple[str, ...] = ()
    """Changes made to the audio of the file, and warnings about it."""


@dataclass(frozen=True)
class Heard:
    """Scores of one stream over T steps. Step t ends ``times[t]`` seconds after the start of the stream."""

    times: np.ndarray  # (T,)
    scores: np.ndarray  # (T, C)
    logits: np.ndarray  # (T, C)


@dataclass(frozen=True)
class Surround:
    """Quiet frames around a clip, as in training."""

    lead: int = 0
    """Frames before the clip."""
    trail: int = 0
    """Frames after the clip."""
    power: float = 1e-6
    """Power of each spectral line in these frames."""


class StreamState(NamedTuple):
    """Complete state of a stream."""

    samples: SampleState
    background: BackgroundState
    mean: MeanState
    network: states.State
    smooth: SmoothState


@dataclass
class Group:
    """Streams whose frames end at the same time, so that they run as one batch."""

    rows: list[int]
    state: StreamState


def joined(parts: list[Heard]) -> Heard:
    """Concatenate consecutive parts of one stream."""
    return Heard(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("times", "scores", "logits")))


def samples_of(
    chunk: Any, sample_rate: int | None, *, streams: int, expected_rate: int, device: torch.device
) -> Tensor:
    """Return a chunk as a float32 tensor ``(streams, N)`` in [-1, 1].

    Raises :class:`ArgumentError` for another rate or shape, samples that are masked or not finite, floats far beyond
    [-1, 1].
    """
    if sample_rate is not None and sample_rate != expected_rate:
        raise ArgumentError(
            f"chunk: found {sample_rate} Hz, expected {expected_rate} Hz: resample it, or read the file with "
            "manyheads.kws.read_sound, which does"
        )
    if np.ma.is_masked(chunk):
        raise ArgumentError("chunk: found an array with masked samples, expected all of them: fill it with .filled(0)")
    try:
        array = np.asarray(chunk)
    # Ragged rows, or tensors whose dtype numpy does not have.
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"chunk: found a {type(chunk).__name__} that is no array of numbers, expected floats, int16 or int32"
        ) from error
    if array.ndim == 1 and streams == 1:
        array = array[None]
    if array.ndim != 2 or len(array) != streams:
        expected = "(N,)" if streams == 1 else f"({streams}, N), a row a stream"
        raise ArgumentError(f"chunk: found shape {array.shape}, expected {expected}")
    if array.dtype in FULL_SCALE:
        array = array / np.float32(FULL_SCALE[array.dtype])
    elif array.dtype.kind != "f":
        raise ArgumentError(f"chunk: found {array.dtype}, expected floats in [-1, 1], int16 or int32")
    largest = float(np.abs(array).max(initial=0.0))
    if not largest <= LOUDEST:
        reason = f"a sample of {largest:g}" if np.isfinite(largest) else "a sample that is not finite"
        raise ArgumentError(f"chunk: found {reason}, expected floats in [-1, 1] (or an array of int16)")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)
