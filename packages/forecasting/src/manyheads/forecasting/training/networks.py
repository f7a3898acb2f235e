"""Train a network of :data:`~manyheads.forecasting.models.networks.NETWORKS` on windows, with the shared loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from manyheads.forecasting.models.network_forecast import NetworkForecast
from manyheads.forecasting.models.networks import network_config
from manyheads.forecasting.series.panels import FittedModel, History
from manyheads.forecasting.training.windows import HistoryWindows, SquaredError
from manyheads.lab.training.experiment import Budget, Experiment
from manyheads.lab.training.loop import train_model
from manyheads.lab.training.optimisers import Optimiser

_FEW = 100  # steps an epoch; with fewer, more epochs at a higher learning rate
_MANY = 500  # steps an epoch; with more, fewer epochs, so that series of any length get about as many steps


def recipe(steps: int, *, published: bool = False) -> tuple[Optimiser, Budget]:
    """Optimiser and budget for an epoch of ``steps`` optimiser steps.

    Short epochs get more epochs at a higher learning rate. Both recipes were chosen by validation loss: the usual one
    on ETTh1 with horizon 96, the one for short epochs on illness with horizon 24 (19 steps an epoch). Long epochs get
    three at most, for the time of two CPU cores. With ``published`` the recipe is that of 2205.13504.
    """
    if published:
        return Optimiser("adam", 1e-4, schedule="halving"), Budget(epochs=10, batch_size=32, patience=3)
    if steps < _FEW:
        optimiser = Optimiser("adam", 1e-3, schedule="cosine", clip_norm=1.0)
        return optimiser, Budget(epochs=50, batch_size=32, patience=10)
    epochs, patience = (3, 1) if steps > _MANY else (10, 3)
    optimiser = Optimiser("adam", 3e-4, schedule="halving", clip_norm=1.0)
    return optimiser, Budget(epochs=epochs, batch_size=32, patience=patience)


def fit_network(
    history: History,
    horizons: Sequence[int],
    *,
    look_back: int,
    seed: int = 0,
    network: str,
    published: bool = False,
    **changes: Any,
) -> dict[int, FittedModel]:
    """Train one network for each horizon and keep the weights of the best validation loss.

    ``changes`` are fields of the config of the network, such as ``layer="routing"``. Progress goes to standard error.
    """
    config = network_config(network, published=published, **changes)
    fitted: dict[int, FittedModel] = {}
    for horizon in horizons:
        data = HistoryWindows(history, look_back, horizon)
        windows = len(data.open().train)
        optimiser, budget = recipe(windows // 32, published=published)
        budget = replace(budget, batch_size=min(budget.batch_size, windows))
        experiment = Experiment(f"{network}-{horizon}", data, config, SquaredError(), optimiser, budget)
        module, _ = train_model(experiment, seed, None, progress=True)
        fitted[horizon] = NetworkForecast(module.eval(), look_back, horizon, network, config, history.channels)
    return fitted
