"""Long-term forecasting: linear models in closed form, Transformers, prediction intervals and backtests.

    from manyheads.forecasting import Forecaster
    forecast = Forecaster(horizon=24).fit(frame).predict()

The linear family is that of 'Are Transformers Effective for Time Series Forecasting?' (2205.13504).

Names are imported at first use: ``import manyheads.forecasting`` alone loads neither pandas nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from manyheads.lab.domain import Domain

domain = Domain(
    name="forecasting",
    summary="long-term forecasting: fit, predict, backtest your own table; bench the papers' sets",
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
