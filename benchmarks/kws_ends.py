"""Count detections of words at both ends of a recording, and false alarms in sounds without speech.

    manyheads kws train arabic-spotter --seeds 1 2 3 --root runs
    python benchmarks/kws_ends.py runs --csv benchmarks/results/kws_ends.csv

40 random test clips are cut to their speech. Each is placed in white noise: in the middle of four seconds, or at the
very start or the very end of two seconds, where the recording begins or ends with the word. The noise continues under
the word, or lies only around it. Each row of the file is one place and one level of noise, or one sound without speech.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from manyheads.kws import KeywordSpotter, read_sound
from manyheads.kws.audio.recordings import extent
from manyheads.kws.commands.evaluate import clips_of_part
from manyheads.kws.training.trained import NAME
from manyheads.lab.data.files import write_csv

WORDS, SECONDS = 40, 30
PLACES = ("in the middle", "at the very start", "at the very end")


def words(spotter: KeywordSpotter) -> list[tuple[str, np.ndarray]]:
    """Return label and speech of ``WORDS`` random clips of the test part."""
    clips = [clip for clip in clips_of_part("arabic", "test") if clip.label in spotter.keywords]
    chosen = np.random.default_rng(0).permutation(len(clips))[:WORDS]
    found = []
    for clip in (clips[index] for index in chosen):
        samples = read_sound(clip.path, spotter.sample_rate).samples
        start, stop = extent(samples, spotter.sample_rate)
        found.append((clip.label, samples[start:stop]))
    return found


def recordings(word: np.ndarray, rate: int, level: float, under: bool, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each place with the word at that place in noise."""
    padding = 2 * rate
    for place, lead, trail in zip(PLACES, (padding, 0, padding), (padding, padding, 0), strict=True):
        noise = level * np.random.default_rng(seed).standard_normal(lead + len(word) + trail)
        if not under:
            noise[lead : lead + len(word)] = 0.0
        noise[lead : lead + len(word)] += word
        yield place, noise.clip(-1, 1).astype(np.float32)


def sounds(rate: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield half a minute each of a melody of decaying tones and of bursts of white noise."""
    random, t, note = np.random.default_rng(0), np.arange(rate // 2) / rate, rate // 2
    melody = [
        sum(np.sin(2 * np.pi * f * h * t) / h for h in range(1, 6)) * 0.2 * np.exp(-4.0 * t)
        for f in 110.0 * 2.0 ** (random.integers(0, 36, 2 * SECONDS) / 12)
    ]
    yield "melody", np.concatenate(melody).clip(-1, 1).astype(np.float32)
    long = 0.1 * random.standard_normal(2 * SECONDS * note)
    yield "bursts of noise", (long * (np.arange(len(long)) // note % 2)).astype(np.float32)


def counts(path: Path) -> dict[tuple[str, float | str, str], int]:
    """Count the detected words of ``WORDS`` by place, level and kind of noise, and the false alarms by sound."""
    spotter = KeywordSpotter.load(path)
    found: dict[tuple[str, float | str, str], int] = {}
    for seed, (label, word) in enumerate(words(spotter)):
        for level in (0.0005, 0.002, 0.01):
            for under in (True, False):
                for place, samples in recordings(word, spotter.sample_rate, level, under, seed):
                    key = (place, level, "under the word too" if under else "around the word")
                    found[key] = found.get(key, 0) + any(d.label == label for d in spotter.detect(samples))
    for name, samples in sounds(spotter.sample_rate):
        found[name, "", f"{SECONDS} s"] = len(spotter.detect(samples))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder in which the spotter was trained, with any number of seeds")
    parser.add_argument("--csv", type=Path, required=True, help="file for the rows")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    spotters = sorted(asked.runs.glob(f"arabic-spotter/*/seed-*/{NAME}"))
    if not spotters:
        parser.error(f"{asked.runs}: found no trained arabic-spotter: train one (see the top of this file)")
    each = [counts(path) for path in spotters]
    rows: list[dict[str, Any]] = []
    for place, level, noise in each[0]:
        values = [one[place, level, noise] for one in each]
        rows.append(
            {
                "place_or_sound": place,
                "noise_rms": level,
                "noise": noise,
                "of": WORDS if level != "" else "",
                "mean": f"{fmean(values):.2f}",
                "sd": f"{stdev(values):.2f}" if len(values) > 1 else "",
                "values": " ".join(map(str, values)),
                "command": f"python benchmarks/kws_ends.py {asked.runs}",
            }
        )
        print(rows[-1], flush=True)
    write_csv(asked.csv, rows)


if __name__ == "__main__":
    main()
