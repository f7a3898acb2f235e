"""Reading sound: WAV and FLAC through soundfile, one channel, the rate that is asked for, and no silent guesses."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from manyheads.core.errors import DataError

CLIPPED = 0.9995  # of full scale
CLIPPED_SHARE = 0.001  # of the samples
SILENT = 1e-4  # largest absolute sample


@dataclass(frozen=True)
class Sound:
    """One channel of samples in [-1, 1] and what was done to them or is odd about them."""

    samples: np.ndarray  # (N,) float32
    sample_rate: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def read_sound(path: str | Path, sample_rate: int | None = None) -> Sound:
    """Reads a file. Several channels are averaged, other rates resampled; both are noted, as are clipping and silence.

    Raises :class:`DataError` for a file that is absent, empty, truncated or not audio, and for samples that are not
    finite.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: expected a WAV or FLAC file")
    _check_whole(path)
    try:
        with soundfile.SoundFile(path) as stream:
            promised, rate = stream.frames, stream.samplerate
            samples = stream.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).strip().rstrip(".")
        raise DataError(f"{path} cannot be read as audio ({reason}): expected a WAV or FLAC file") from None
    if len(samples) < promised:
        raise DataError(f"{path} is truncated: found {len(samples)} frames, its header promises {promised}")
    if len(samples) == 0:
        raise DataError(f"{path} holds no samples")
    return prepare(samples, rate, sample_rate, str(path))


def prepare(samples: np.ndarray, rate: int, sample_rate: int | None, place: str) -> Sound:
    """``(N,)`` or ``(N, channels)`` samples at ``rate`` -> :class:`Sound` at ``sample_rate`` (None: as it is)."""
    notes = []
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim == 2:
        if samples.shape[1] > 1:
            notes.append(f"{samples.shape[1]} channels averaged to one")
        samples = samples.mean(1)
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        raise DataError(f"{place}: sample {bad[0]} is {samples[bad[0]]}, expected finite samples; {len(bad)} are not")
    size = np.abs(samples)
    if len(samples) and size.max() < SILENT:
        notes.append("silent")
    elif (size >= CLIPPED).mean() > CLIPPED_SHARE:
        notes.append(f"clipped: {(size >= CLIPPED).mean():.1%} of the samples are at full scale")
    if sample_rate is not None and rate != sample_rate:
        samples = resample(samples, rate, sample_rate)
        notes.append(f"resampled from {rate} to {sample_rate} Hz")
        rate = sample_rate
    return Sound(samples, rate, tuple(notes))


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Polyphase resampling with an anti-aliasing filter (scipy)."""
    from scipy.signal import resample_poly

    ratio = Fraction(target, rate)
    return resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float32)


def _check_whole(path: Path) -> None:
    """libsndfile reads a truncated WAV without complaint: its header says how long the file must be."""
    with path.open("rb") as stream:
        head = stream.read(12)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return
    promised, found = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
    if found < promised and promised < 0xFFFFFFFF:
        raise DataError(f"{path} is truncated: found {found} bytes, its header promises {promised}")
