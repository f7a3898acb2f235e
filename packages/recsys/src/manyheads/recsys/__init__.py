"""Click-through rate models for tables with heterogeneous features: calibrated probabilities from a DataFrame.

    from manyheads.recsys import Recommender
    model = Recommender(label="clicked").fit(frame)
    model.predict_proba(new_rows)

Names are imported on first use: ``import manyheads.recsys`` loads neither pandas nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from manyheads.lab.domain import Domain

domain = Domain(
    name="recsys",
    summary="click-through rate models (Hiformer, DeepFM, DCN V2 …): fit, predict, explain and serve your own table",
    package="manyheads-recsys",
    commands="manyheads.recsys.commands:commands",
    datasets="manyheads.recsys.datasets.catalogue:datasets",
    experiments="manyheads.recsys.training.experiments:experiments",
    train_options="manyheads.recsys.distributed.options:RecommenderOptions",
)

_HOMES = {
    "Encoder": "features.encoder",
    "FeatureSpec": "features.spec",
    "Field": "features.spec",
    "Recommender": "training.recommender",
    "infer_spec": "features.spec",
}
__all__ = ["domain", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
