"""Audio sources of a stream: a recording in chunks, optionally in real time, or the microphone."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Generator, Iterator

import numpy as np

from manyheads.core.errors import ArgumentError, DataError, MissingPackageError
from manyheads.lab.install import missing


def chunks_of(samples: np.ndarray, sample_rate: int, seconds: float, *, paced: bool = False) -> Iterator[np.ndarray]:
    """Yield ``samples (N,)`` in chunks of ``seconds``. With ``paced``, wait so that they arrive in real time."""
    size = max(1, round(seconds * sample_rate))
    begun = time.monotonic()
    for start in range(0, len(samples), size):
        chunk = samples[start : start + size]
        if paced:
            time.sleep(max(0.0, begun + (start + len(chunk)) / sample_rate - time.monotonic()))
        yield chunk


def microphone(sample_rate: int, seconds: float, device: str | None = None) -> Generator[np.ndarray]:
    """Yield chunks of ``seconds`` from the microphone, as ``(N,)`` float32, until interrupted.

    Raises :class:`MissingPackageError` without sounddevice or PortAudio, :class:`DataError` if no device can be opened
    at this rate.
    """
    try:
        import sounddevice  # ty: ignore[import-not-found]
    except ImportError as error:
        raise missing("sounddevice", "manyheads-kws", "microphone", place="the microphone") from error
    # sounddevice raises OSError at import if the PortAudio library is missing.
    except OSError as error:
        raise MissingPackageError(
            f"sounddevice found no PortAudio ({error}): install it (Debian: apt install libportaudio2)"
        ) from error
    arrived: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def take(block: np.ndarray, frames: int, when: object, status: object) -> None:
        if status:
            print(f"microphone: {status}", file=sys.stderr)
        arrived.put(block[:, 0].copy())

    size = max(1, round(seconds * sample_rate))
    chosen = int(device) if device is not None and device.isdigit() else device
    try:
        source = sounddevice.InputStream(
            samplerate=sample_rate, blocksize=size, channels=1, dtype="float32", device=chosen, callback=take
        )
    except (ValueError, sounddevice.PortAudioError) as error:
        raise DataError(
            f"microphone: it cannot be opened at {sample_rate} Hz ({error}): choose another with --device"
        ) from error
    with source:
        while True:
            yield arrived.get()


def check_chunk(seconds: float) -> None:
    """Raises :class:`ArgumentError` for chunks below 10 ms."""
    if not seconds >= 0.01:
        raise ArgumentError(f"chunk: found {seconds} s, expected at least 0.01 s")
