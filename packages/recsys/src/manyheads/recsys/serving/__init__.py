"""A fitted recommender as something that answers requests: export, ranking, compression, benchmark, server.

export(model, "served")                          # torch; writes ONNX, the encoder, labels, calibration
ranker = Ranker.load("served")                   # onnxruntime, numpy, pandas; no torch
ranker.score(request, candidates).probabilities  # what the candidates share is computed once
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"Ranker": "ranker", "export": "export", "quantise": "quantise", "search_rank": "compress"}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
