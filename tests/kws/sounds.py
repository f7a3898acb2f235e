"""Synthetic sounds for tests."""

from __future__ import annotations

import numpy as np
import soundfile

WORDS = {"low": 300.0, "middle": 900.0, "high": 2200.0}


def tone(frequency, *, seconds=0.4, rate=8000, loud=0.3, seed=0):
    """Return a tone with a little noise."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (loud * np.sin(2 * np.pi * frequency * time) + 0.003 * noise).astype(np.float32)


def write(path, samples, rate=8000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def word_folder(folder, *, speakers=12, rate=8000):
    """Write ``label/speaker_nohash_0.wav``; each speaker has a different frequency."""
    for speaker in range(speakers):
        for label, frequency in WORDS.items():
            samples = tone(frequency * (1 + 0.01 * speaker), seconds=0.3 + 0.01 * speaker, rate=rate, seed=speaker)
            write(folder / label / f"s{speaker:02}_nohash_0.wav", samples, rate)
    return folder


def speech_commands_folder(folder):
    """Write the layout of Speech Commands: official lists and background noise; four speakers are on neither list."""
    word_folder(folder, speakers=6, rate=16000)
    write(folder / "_background_noise_" / "hum.wav", tone(50, seconds=2, rate=16000), 16000)
    (folder / "validation_list.txt").write_text("".join(f"{w}/s04_nohash_0.wav\n" for w in WORDS))
    (folder / "testing_list.txt").write_text("".join(f"{w}/s05_nohash_0.wav\n" for w in WORDS))
    return folder
