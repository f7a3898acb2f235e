"""Synthetic distractor sounds that are no keyword: tones, melodies, chords, sweeps, hum, noise, bursts and clicks.

A network trained on words alone gives false alarms at the onset of any other sound. All random numbers come from the
generator that is passed in, so that the same seed gives the same sounds.

Shapes: N samples. Times are in seconds, frequencies in Hz.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Lowest and highest mean power of a sound, in dB of full scale.
LEVEL = (-45.0, -10.0)

Kind = Callable[[np.random.Generator, int, int], np.ndarray]


def distractors(count: int, sample_rate: int, *, seconds: float = 1.2, seed: int = 0) -> list[np.ndarray]:
    """Return ``count`` sounds ``(N,)`` float32, cycling through the kinds."""
    random, size = np.random.default_rng(seed), round(seconds * sample_rate)
    kinds = list(KINDS.values())
    return [_levelled(kinds[i % len(kinds)](random, size, sample_rate), random) for i in range(count)]


def tone(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """One long note, with tremolo or vibrato or neither."""
    t = np.arange(size) / rate
    vibrato = random.choice([0.0, random.uniform(0.002, 0.03)]) * np.sin(2 * np.pi * random.uniform(3, 9) * t)
    tremolo = 1 - random.choice([0.0, random.uniform(0.2, 1.0)]) * (
        0.5 + 0.5 * np.sin(_turns(random.uniform(1, 12), t))
    )
    frequency = _pitch(random) * (1 + vibrato)
    return tremolo * _voice(random, frequency, rate) * _envelope(random, size, rate)


def melody(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Notes one after another with one timbre and random pitches, with or without rests."""
    length, rest = random.uniform(0.06, 0.4), random.choice([0.0, 0.0, random.uniform(0.02, 0.2)])
    timbre, base, decay = _timbre(random), _pitch(random), random.choice([0.0, random.uniform(0.02, 0.6)])
    sound, at = np.zeros(size), -round(random.uniform(0, length) * rate)
    while at < size:
        count = max(2, round(length * random.choice([0.5, 1.0, 1.0, 2.0]) * rate))
        frequency = np.full(count, base * 2 ** (random.integers(-12, 13) / 12))
        note = _voice(random, frequency, rate, timbre) * _edges(count, rate, random.uniform(0.002, 0.03))
        if decay:
            note *= np.exp(-np.arange(count) / (decay * rate))
        _add(sound, note * random.uniform(0.4, 1.0), at)
        at += count + round(rest * rate)
    return sound


def chord(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Two to five notes together; some are switched on and off."""
    t, base = np.arange(size) / rate, _pitch(random)
    sound = np.zeros(size)
    for step in random.choice([0, 3, 4, 5, 7, 9, 12, 16], random.integers(2, 6), replace=False):
        gate = 1.0
        if random.random() < 0.5:
            gate = np.sin(_turns(random.uniform(0.3, 5), t, random)) > random.uniform(-0.6, 0.6)
        sound += gate * random.uniform(0.3, 1.0) * _voice(random, np.full(size, base * 2 ** (step / 12)), rate)
    return sound * _envelope(random, size, rate)


def sweep(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """A gliding pitch, once or back and forth."""
    low, high = np.sort(np.exp(random.uniform(np.log(80), np.log(0.4 * rate), 2)))
    t = np.arange(size) / rate
    place = t / t[-1] if random.random() < 0.5 else 0.5 + 0.5 * np.sin(_turns(random.uniform(0.5, 6), t, random))
    place = 1 - place if random.random() < 0.5 else place
    return _voice(random, low * (high / low) ** place, rate) * _envelope(random, size, rate)


def hum(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Mains hum or an engine: many harmonics of a nearly constant low pitch, with some noise."""
    base = random.choice([50.0, 60.0, random.uniform(25, 140)]) * (1 + 0.02 * _slow(random, size, rate))
    sound = _voice(random, base, rate, np.arange(1, 31) ** -random.uniform(0.3, 2) * random.random(30))
    return sound + random.uniform(0, 0.5) * sound.std() * coloured(random, size)


def noise(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Coloured noise, with a slow swell or a sudden onset."""
    swell = np.exp(random.uniform(0, 1.5) * _slow(random, size, rate))
    return coloured(random, size) * swell * _envelope(random, size, rate)


def bursts(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Coloured noise switched on and off, at regular or irregular intervals, with fast or slow onsets and decays."""
    gate, floor = np.zeros(size), random.choice([0.0, random.uniform(0, 0.05)])
    on, off = random.uniform(0.03, 0.9, 2)
    uneven, decay = random.random() < 0.5, random.choice([0.0, random.uniform(0.02, 0.3)])
    at = -round(random.uniform(0, on + off) * rate)
    while at < size:
        count = max(2, round(on * (random.uniform(0.5, 1.5) if uneven else 1.0) * rate))
        shape = _edges(count, rate, random.uniform(0.001, 0.02))
        if decay:
            shape = shape * np.exp(-np.arange(count) / (decay * rate))
        _add(gate, shape, at)
        at += count + round(off * (random.uniform(0.5, 1.5) if uneven else 1.0) * rate)
    return coloured(random, size) * np.maximum(gate, floor)


def clicks(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Clicks and taps: short noises or damped tones."""
    sound, at = np.zeros(size), random.uniform(0, 0.3)
    period, uneven = random.uniform(0.04, 0.5), random.random() < 0.6
    while at < size / rate:
        decay = random.uniform(0.001, 0.03)
        t = np.arange(round(5 * decay * rate) + 2) / rate
        body = np.sin(_turns(random.uniform(100, 3000), t)) if random.random() < 0.5 else coloured(random, len(t))
        _add(sound, body * np.exp(-t / decay) * random.uniform(0.3, 1.0), round(at * rate))
        at += period * (random.uniform(0.3, 1.7) if uneven else 1.0)
    return sound + 1e-4 * random.standard_normal(size)


KINDS: dict[str, Kind] = {
    "melody": melody,
    "bursts": bursts,
    "chord": chord,
    "tone": tone,
    "sweep": sweep,
    "clicks": clicks,
    "noise": noise,
    "hum": hum,
}


def coloured(random: np.random.Generator, size: int) -> np.ndarray:
    """Noise of mean power 1 whose spectrum falls or rises, or has one or two broad peaks."""
    spectrum = np.fft.rfft(random.standard_normal(size))
    at = np.linspace(1e-3, 1, len(spectrum))
    shape = at ** -random.uniform(-0.3, 1.2)
    if random.random() < 0.5:
        centres = np.exp(random.uniform(np.log(0.02), 0, random.integers(1, 3)))
        shape = 0.03 + sum(np.exp(-0.5 * (np.log(at / c) / random.uniform(0.15, 0.8)) ** 2) for c in centres)
    made = np.fft.irfft(spectrum * shape, size)
    return made / max(float(np.sqrt(np.square(made).mean())), 1e-12)


def _add(sound: np.ndarray, part: np.ndarray, at: int) -> None:
    """Add ``part`` to ``sound`` in place from sample ``at`` on, as far as they overlap."""
    begin, end = max(0, at), min(len(sound), at + len(part))
    if begin < end:
        sound[begin:end] += part[begin - at : end - at]


def _pitch(random: np.random.Generator) -> float:
    return float(np.exp(random.uniform(np.log(80), np.log(2000))))


def _timbre(random: np.random.Generator) -> np.ndarray:
    """Return amplitudes of harmonics: a pure tone, falling harmonics, odd harmonics or random ones."""
    count = int(random.integers(1, 13))
    falling = np.arange(1, count + 1) ** -random.uniform(0.5, 2.5)
    kind = random.integers(4)
    if kind == 0:
        return np.ones(1)
    if kind == 1:
        falling[1::2] = 0
    return falling * random.random(count) if kind == 2 else falling


def _voice(
    random: np.random.Generator, frequency: np.ndarray, rate: int, timbre: np.ndarray | None = None
) -> np.ndarray:
    """Return the harmonics of ``frequency (N,)`` below half the sample rate."""
    amplitudes = _timbre(random) if timbre is None else timbre
    phase, sound = 2 * np.pi * np.cumsum(frequency) / rate, np.zeros(len(frequency))
    for number, amplitude in enumerate(amplitudes, 1):
        if amplitude:
            below = number * frequency < 0.48 * rate
            sound += amplitude * below * np.sin(number * phase + random.uniform(0, 2 * np.pi))
    return sound


def _envelope(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Return an envelope from a random start over at least a third of the rest, or over the whole sound."""
    if random.random() < 0.4:
        return np.ones(size)
    begin = int(random.uniform(0, 0.5) * size)
    count = int(random.uniform(0.35, 1.0) * (size - begin))
    shape = np.zeros(size)
    shape[begin : begin + count] = _edges(count, rate, random.uniform(0.002, 0.15))
    return shape


def _edges(count: int, rate: int, seconds: float) -> np.ndarray:
    """Return an envelope of ones that rises and falls linearly within ``seconds``."""
    side = np.minimum(np.arange(count), np.arange(count)[::-1]) + 1
    return np.minimum(1.0, side / max(1.0, seconds * rate))


def _slow(random: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Return a slow random curve within [-1, 1], of three points a second."""
    points = max(2, round(3 * size / rate) + 1)
    return np.interp(np.linspace(0, points - 1, size), np.arange(points), random.uniform(-1, 1, points))


def _turns(frequency: float, t: np.ndarray, random: np.random.Generator | None = None) -> np.ndarray:
    return 2 * np.pi * (frequency * t + (0.0 if random is None else random.random()))


def _levelled(sound: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Scale a sound to a random level, with its peaks within full scale."""
    sound = sound * 10 ** (random.uniform(*LEVEL) / 20) / max(float(np.sqrt(np.square(sound).mean())), 1e-9)
    return (sound / max(1.0, float(np.abs(sound).max()))).astype(np.float32)
