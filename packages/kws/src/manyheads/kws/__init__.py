"""Streaming keyword spotting (wake words): LMUFormer and its spiking form, trained in parallel, run frame by frame.

    from manyheads.kws import KeywordSpotter
    spotter = KeywordSpotter.load("spotter.safetensors")
    for detection in spotter.stream(chunk):
        print(detection)

Names are imported on first use: ``import manyheads.kws`` alone loads neither soundfile nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from manyheads.lab.domain import Domain

domain = Domain(
    name="kws",
    summary="streaming, spiking keyword spotting after LMUFormer: train, stream, eval, export",
    package="manyheads-kws",
    commands="manyheads.kws.commands:commands",
    datasets="manyheads.kws.audio.catalogue:datasets",
    experiments="manyheads.kws.training.experiments:experiments",
    train_options="manyheads.kws.commands.train_options:SpotterOptions",
)

_HOMES = {
    "KeywordSpotter": "streaming.spotter",
    "Detection": "streaming.detection",
    "Features": "audio.features",
    "LogMel": "audio.features",
    "read_sound": "audio.reading",
}
__all__ = ["domain", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
