"""Image classification with every image backbone of the core: train on a folder ``label/*.png``, predict.

    from manyheads.images import ImageClassifier
    classifier = ImageClassifier.load("classifier.safetensors")
    print(classifier.predict(["photo.png"])[0].label)

Names are imported on first use: ``import manyheads.images`` alone loads neither torch nor Pillow.
"""

from __future__ import annotations

import importlib
from typing import Any

from manyheads.lab.domain import Domain

domain = Domain(
    name="images",
    summary="image classification with every image backbone: train on a folder of pictures, predict",
    package="manyheads-images",
    commands="manyheads.images.commands:commands",
    datasets="manyheads.images.pictures.catalogue:datasets",
    experiments="manyheads.images.training.experiments:experiments",
)

_HOMES = {"ImageClassifier": "classifier", "Prediction": "classifier"}
__all__ = ["domain", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
