"""Serving: ONNX export, ranking, low-rank compression, int8, latency benchmark, HTTP server.

export(model, "served")                          # needs torch; writes ONNX, encoder, labels, calibration
ranker = Ranker.load("served")                   # onnxruntime, numpy, pandas; no torch
ranker.score(request, candidates).probabilities  # the shared fields are computed once
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
