"""Small spotters with calibrated batch norm, so that their detections depend on the audio."""

from __future__ import annotations

import numpy as np
import torch

from manyheads.kws.audio.features import Features, LogMel, RunningMean
from manyheads.kws.models import LMUFormerConfig
from manyheads.kws.streaming.detection import Rule
from manyheads.kws.streaming.spotter import KeywordSpotter
from manyheads.kws.streaming.stream_state import Surround

LABELS = ("go", "no", "stop", "yes")
FEATURES = Features(sample_rate=8000, bins=16)


def babble(seconds: float, seed: int = 0, sample_rate: int = 8000) -> np.ndarray:
    """Return noise whose colour and loudness change a few times per second."""
    random = np.random.default_rng(seed)
    count = round(seconds * sample_rate)
    t = np.arange(count) / sample_rate
    tone = np.sin(2 * np.pi * np.cumsum(300 + 1200 * np.abs(np.sin(2.1 * t + seed))) / sample_rate)
    loudness = np.clip(np.sin(5.3 * t + seed) + 0.4, 0.02, None)
    return (0.15 * loudness * tone + 0.02 * random.standard_normal(count)).astype(np.float32)


def sweep(seconds: float, sample_rate: int = 8000) -> np.ndarray:
    """Return a tone of constant loudness whose frequency goes up and down, with a little noise."""
    count = round(seconds * sample_rate)
    t = np.arange(count) / sample_rate
    tone = np.sin(2 * np.pi * np.cumsum(900 + 600 * np.sin(9 * t)) / sample_rate)
    noise = np.random.default_rng(2).standard_normal(count)
    return (0.1 * tone + 0.03 * noise).astype(np.float32)


def small_spotter(*, rule: Rule | None = None, streams: int = 1, surround: Surround | None = None, **config):
    """Return a small spotter; ``config`` as for :class:`LMUFormerConfig`."""
    torch.manual_seed(3)
    network = LMUFormerConfig(**{"channels": 12, "order": 4, "window": 10, "memories": 2, **config}).make(16, LABELS)
    frames = RunningMean()(LogMel(FEATURES)(torch.from_numpy(babble(20.0, seed=9))[None])[0])[0]
    network.calibrate(frames)
    with torch.no_grad():
        # Large weights, so that scores vary between 0 and 1.
        network.head.weight.mul_(150)
        network.head.bias.sub_(network.eval().whole(frames).mean((0, 1)))
    rule = rule or Rule(threshold=0.6, smoothing=0.2, refractory=0.3)
    return KeywordSpotter(network, FEATURES, rule=rule, streams=streams, surround=surround)
