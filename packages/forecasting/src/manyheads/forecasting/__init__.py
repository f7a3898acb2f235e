"""Long-term forecasting: the linear family of 'Are Transformers Effective for Time Series Forecasting?', honestly.

    from manyheads.forecasting import Forecaster
    forecast = Forecaster(horizon=24).fit(frame).predict()

Names are imported when they are used: ``import manyheads.forecasting`` alone loads neither pandas nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from manyheads.lab.domain import Domain

domain = Domain(
    name="forecasting",
    summary="long-term forecasting after LTSF-Linear: bench, fit, predict, backtest",
    package="manyheads-forecasting",
    commands="manyheads.forecasting.commands:commands",
    datasets="manyheads.forecasting.datasets.catalogue:datasets",
    experiments="manyheads.forecasting.training.experiments:experiments",
)

_HOMES = {
    "Forecaster": "estimator.forecaster",
    "LinearMap": "models.linear_map",
    "Panel": "series.panels",
    "History": "series.panels",
    "fit_auto": "models.closed_form.auto",
    "fit_ridge": "models.closed_form.ridge",
    "load_set": "datasets.benchmark_sets",
    "read_panels": "series.frames",
}
__all__ = ["domain", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
