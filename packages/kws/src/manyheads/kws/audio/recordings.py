"""Test recordings composed of clips, with the true words and times: the basis of miss rate and false alarms."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyheads.core.errors import ArgumentError, DataError
from manyheads.kws.audio.clips import Clip
from manyheads.kws.audio.reading import check_rate, read_sound
from manyheads.lab.data.files import write_atomically

# Level in dB below the loudest frame of a clip from which on a frame counts as speech.
QUIET = 25.0
# Frame length in seconds.
FRAME = 0.01


@dataclass(frozen=True)
class Spoken:
    """A spoken word with its start and end in seconds."""

    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Tape:
    """A recording and its spoken words."""

    samples: np.ndarray  # (N,) float32
    sample_rate: int
    spoken: tuple[Spoken, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def compose(
    clips: Sequence[Clip],
    sample_rate: int,
    *,
    snr: float | None = 20.0,
    noise: Path | None = None,
    gap: tuple[float, float] = (0.2, 0.8),
    level: float = -26.0,
    seed: int = 0,
) -> Tape:
    """Compose a recording: clips in random order with gaps between them, over background noise.

    Args:
        clips: each clip is used once.
        sample_rate: sample rate of the recording in Hz. Clips are resampled.
        snr: signal-to-noise ratio in dB: mean power of the speech within the words over that of the noise. None: only a
            noise floor at -80 dB of full scale, so that no gap is digital silence.
        noise: recording of background noise, repeated as needed. Default: pink noise.
        gap: shortest and longest gap between two clips, in seconds.
        level: mean power of each word, in dB of full scale.
        seed: random seed of the order, the gaps and the noise.

    Raises:
        ArgumentError: no clips, gaps out of order.
        DataError: a sample rate out of range, silent noise.
    """
    if not clips:
        raise ArgumentError("clips: found none, expected at least one")
    check_rate(sample_rate, "compose")
    if not 0 <= gap[0] <= gap[1]:
        raise ArgumentError(f"gap: found {gap}, expected 0 <= shortest <= longest")
    random = np.random.default_rng(seed)
    parts, spoken, at = [np.zeros(round(0.5 * sample_rate), np.float32)], [], round(0.5 * sample_rate)
    for index in random.permutation(len(clips)):
        # Scale the speech in the clip to the requested level.
        samples = read_sound(clips[index].path, sample_rate).samples
        start, end = extent(samples, sample_rate)
        power = float(np.square(samples[start:end]).mean()) if end > start else 0.0
        if power > 0:
            samples = samples * np.float32(np.sqrt(10 ** (level / 10) / power))
        spoken.append(Spoken(clips[index].label, (at + start) / sample_rate, (at + end) / sample_rate))
        pause = np.zeros(round(random.uniform(*gap) * sample_rate), np.float32)
        parts += [samples, pause]
        at += len(samples) + len(pause)
    speech = np.concatenate(parts)
    under = level - snr if snr is not None else -80.0
    mixed = speech + _noise(len(speech), sample_rate, noise, random) * np.float32(10 ** (under / 20))
    return Tape((mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32), sample_rate, tuple(spoken))


def extent(samples: np.ndarray, sample_rate: int) -> tuple[int, int]:
    """Return start and end sample of the speech in a clip (energy-based voice activity detection).

    Speech is every 10 ms frame within :data:`QUIET` dB of the loudest one, except isolated single frames. Without such
    frames it is the whole clip.
    """
    size = max(1, round(FRAME * sample_rate))
    count = len(samples) // size
    if count < 3:
        return 0, len(samples)
    power = np.square(samples[: count * size].reshape(count, size)).mean(1)
    loud = power > power.max() * 10 ** (-QUIET / 10)
    beside = np.r_[False, loud[:-1]] | np.r_[loud[1:], False]
    found = np.flatnonzero(loud & beside)
    if not len(found):
        return 0, len(samples)
    return int(found[0] * size), int((found[-1] + 1) * size)


def _noise(count: int, sample_rate: int, path: Path | None, random: np.random.Generator) -> np.ndarray:
    """Return ``(count,)`` samples of noise with mean power 1. Raises :class:`DataError` for a silent recording."""
    if path is None:
        spectrum = np.fft.rfft(random.standard_normal(count))
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
        spectrum[0] = 0
        made = np.fft.irfft(spectrum, count)
    else:
        sound = read_sound(path, sample_rate)
        made = np.resize(np.roll(sound.samples, int(random.integers(len(sound.samples)))), count)
    power = float(np.square(made).mean())
    if not power > 0:
        raise DataError(f"{path}: silent: expected a recording of noise")
    return (made / np.sqrt(power)).astype(np.float32)


def write_tape(tape: Tape, path: Path) -> tuple[Path, Path]:
    """Write the recording as 16 bit WAV or FLAC, and its words as CSV: ``start,end,label``. Return both paths.

    Raises :class:`ArgumentError` for another suffix.
    """
    import soundfile

    if path.suffix not in (".wav", ".flac"):
        raise ArgumentError(f"out: found {path}, expected a name that ends in .wav or .flac")
    sound = io.BytesIO()
    soundfile.write(sound, tape.samples, tape.sample_rate, format=path.suffix[1:].upper(), subtype="PCM_16")
    write_atomically(path, sound.getvalue())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("start", "end", "label"))
    writer.writerows((f"{word.start:.3f}", f"{word.end:.3f}", word.label) for word in tape.spoken)
    write_atomically(path.with_suffix(".csv"), text.getvalue().encode("utf-8"))
    return path, path.with_suffix(".csv")


def read_truth(path: Path) -> tuple[Spoken, ...]:
    """Read the words of a recording from a CSV file such as :func:`write_tape` writes; return them in order of time.

    Raises :class:`DataError` with file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path} cannot be read: expected a CSV with the columns start, end, label") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if not {"start", "end", "label"} <= set(rows.fieldnames or ()):
        raise DataError(f"{path}: found the columns {rows.fieldnames}, expected start, end, label")
    spoken = []
    for row in rows:
        try:
            word = Spoken(row["label"], float(row["start"]), float(row["end"]))
        except (TypeError, ValueError):
            raise DataError(f"{path}, line {rows.line_num}: found {row}, expected seconds, seconds, a word") from None
        if not 0 <= word.start <= word.end:
            raise DataError(f"{path}, line {rows.line_num}: found start {word.start} and end {word.end}")
        spoken.append(word)
    return tuple(sorted(spoken, key=lambda word: word.start))


def check_truth(spoken: Sequence[Spoken], path: Path, seconds: float) -> None:
    """Raise :class:`DataError` for a word that begins after the end of the recording, at ``seconds``."""
    late = [word for word in spoken if word.start > seconds]
    if late:
        raise DataError(
            f"{path}: found {late[0].label!r} at {late[0].start:g} s, expected all words before the end of the "
            f"recording at {seconds:.3f} s: it is the truth of another one"
        )
