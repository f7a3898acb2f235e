"""Read sound files with soundfile: one channel, at a requested sample rate, with a note for every change.

The header of a file is not trusted: files are decoded in blocks until they end. Sample rates, lengths and resampling
ratios are bounded.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from manyheads.core.errors import ArgumentError, DataError
from manyheads.kws.audio.containers import FORMATS, KINDS, RATES, WIDTHS, Checksum, Container, check_container

# A sample counts as clipped from this share of full scale on; a recording, from this share of clipped samples on.
CLIPPED = 0.9995
CLIPPED_SHARE = 0.001
# A recording whose largest absolute sample is below this is silent.
SILENT = 1e-4
# Largest absolute sample. Louder ones are probably integers passed as floats.
LOUDEST = 4.0
# Numbers decoded at a time.
BLOCK = 1 << 20
# Most numbers in a file: LONGEST, or PACKED for each byte if that is more. No speech codec packs so many.
LONGEST = 1 << 27
PACKED = 64
# Largest numerator and denominator of a resampling ratio.
FINEST = 1 << 16


@dataclass(frozen=True)
class Sound:
    """One channel of samples in [-1, 1], with notes on changes made to them and warnings about them."""

    samples: np.ndarray  # (N,) float32
    sample_rate: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def read_sound(path: str | Path, sample_rate: int | None = None) -> Sound:
    """Read a sound file as one channel, resampled to ``sample_rate`` (None: as it is).

    Several channels are averaged. The notes of the result mention averaging, resampling, clipping, silence and a header
    without a length.

    Raises :class:`DataError` for a file that is absent, empty, truncated, damaged or not audio, for rates out of
    :data:`~manyheads.kws.audio.containers.RATES`, and for samples that are not finite or far beyond full scale.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: found a folder, expected a {KINDS} file")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: expected a {KINDS} file")
        container = check_container(path)
        with path.open("rb") as stream:
            source = stream.fileno() if container.content is None else io.BytesIO(container.content)
            with contextlib.nullcontext() if container.known else _quiet_stderr():
                samples, rate, notes = _decoded(source, container, path)
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).strip().rstrip(".")
        raise DataError(f"{path} cannot be read as audio ({reason}): expected a {KINDS} file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): expected a {KINDS} file") from None
    if len(samples) == 0:
        raise DataError(f"{path} holds no samples")
    sound = prepare(samples, rate, sample_rate, str(path))
    return Sound(sound.samples, sound.sample_rate, (*container.notes, *notes, *sound.notes))


def _decoded(source: int | io.BytesIO, container: Container, path: Path) -> tuple[np.ndarray, int, list[str]]:
    """Decode a file: samples averaged over the channels, sample rate and notes. Raises :class:`DataError`."""
    with soundfile.SoundFile(source, closefd=False) as sound:
        if sound.format not in FORMATS:
            raise DataError(f"{path}: found {sound.format_info}, expected a {KINDS} file: convert it")
        check_rate(sound.samplerate, str(path))
        digest = Checksum(container.md5[1]) if container.md5 is not None and container.md5[1] <= 24 else None
        most = max(LONGEST, PACKED * path.stat().st_size)
        parts, total = [np.zeros(0, np.float32)], 0
        while len(block := sound.read(max(1, BLOCK // sound.channels), dtype="float32", always_2d=True)):
            total += len(block)
            if total * sound.channels > most:
                raise DataError(f"{path}: found more than {most} samples in its {path.stat().st_size} bytes: cut it")
            if digest is not None:
                digest.add(block)
            # prepare() reports samples that are not finite.
            with np.errstate(all="ignore"):
                parts.append(block.mean(1))
        notes = [f"{sound.channels} channels averaged to one"] if sound.channels > 1 else []
        promised, width = sound.frames, WIDTHS.get(sound.subtype)
        if container.length is not None and width is not None:
            promised, left = divmod(container.length, width * sound.channels)
            notes += ["bytes after the last whole sample"] if left else []
        if total < promised:
            raise DataError(f"{path} is truncated: found {total} frames, its header promises {promised}")
        if total > promised:
            raise DataError(f"{path}: found {total} frames, its header promises {promised}: write it again")
        if digest is not None and container.md5 is not None and digest.found.digest() != container.md5[0]:
            raise DataError(f"{path} is damaged: its samples are not those that its checksum was made of")
        return np.concatenate(parts), sound.samplerate, notes


@contextlib.contextmanager
def _quiet_stderr() -> Generator[None]:
    """Silence the messages of the MP3 decoder, which writes to file descriptor 2 directly."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_rate(rate: int, place: str) -> None:
    """Raise :class:`DataError` for a sample rate out of range."""
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{place}: sample rate: found {rate} Hz, expected {RATES[0]} to {RATES[1]} Hz")


def prepare(samples: np.ndarray, rate: int, sample_rate: int | None, place: str) -> Sound:
    """Return samples ``(N,)`` or ``(N, channels)`` at ``rate`` as :class:`Sound` at ``sample_rate`` (None: as it is).

    ``place`` names the source in messages. Raises :class:`DataError` for a rate out of range, and for samples that are
    not finite or far beyond [-1, 1].
    """
    notes = []
    check_rate(rate, place)
    samples = np.asarray(samples, dtype=np.float32)
    if samples.ndim == 2:
        if samples.shape[1] > 1:
            notes.append(f"{samples.shape[1]} channels averaged to one")
        samples = samples.mean(1)
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        raise DataError(f"{place}: sample {bad[0]} is {samples[bad[0]]}, expected finite samples; {len(bad)} are not")
    size = np.abs(samples)
    if size.max(initial=0.0) > LOUDEST:
        raise DataError(f"{place}: found a sample of {size.max():g}, expected samples in [-1, 1]: divide them")
    if len(samples) and size.max() < SILENT:
        notes.append("silent")
    elif len(samples) and (size >= CLIPPED).mean() > CLIPPED_SHARE:
        notes.append(f"clipped: {(size >= CLIPPED).mean():.1%} of the samples are at full scale")
    if sample_rate is not None and rate != sample_rate:
        samples = resample(samples, rate, sample_rate)
        notes.append(f"resampled from {rate} to {sample_rate} Hz")
        rate = sample_rate
    return Sound(samples, rate, tuple(notes))


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Resample ``(N,)`` from ``rate`` to ``target`` Hz: polyphase, with an anti-aliasing filter (scipy).

    Both numbers of the ratio are at most :data:`FINEST`, which bounds the length of the filter. The ratio is exact for
    rates up to 65,536 Hz and for the usual rates above; for other rates the error is a few millionths.

    Raises :class:`ArgumentError` for a target rate out of range.
    """
    from scipy.signal import resample_poly

    if not RATES[0] <= target <= RATES[1]:
        raise ArgumentError(f"sample rate: found {target} Hz, expected {RATES[0]} to {RATES[1]} Hz")
    ratio = Fraction(min(rate, target), max(rate, target)).limit_denominator(FINEST)
    up, down = (ratio.denominator, ratio.numerator) if target > rate else (ratio.numerator, ratio.denominator)
    return resample_poly(samples, up, down).astype(np.float32)
