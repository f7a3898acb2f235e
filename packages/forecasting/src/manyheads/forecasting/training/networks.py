"""Train a network of :data:`~manyheads.forecasting.models.networks.NETWORKS` on windows, by the one loop."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from manyheads.forecasting.models.network_forecast import NetworkForecast
from manyheads.forecasting.models.networks import network_config
from manyheads.forecasting.series.panels import FittedModel, History
from manyheads.forecasting.training.windows import HistoryWindows, SquaredError
from manyheads.lab.training.experiment import Budget, Experiment
from manyheads.lab.training.loop import train_model
from manyheads.lab.training.optimisers import Optimiser

RECIPE = Optimiser("adam", 3e-4, schedule="halving", clip_norm=1.0)  # by the validation loss of ETTh1-96
PUBLISHED_RECIPE = Optimiser("adam", 1e-4, schedule="halving")  # 2205.13504 and the papers' scripts
BUDGET = Budget(epochs=10, batch_size=32, patience=3)

# the generator of torch, which the training seeds, is one for all threads
_one_training = threading.Lock()


def fit_network(
    history: History,
    horizons: Sequence[int],
    *,
    look_back: int,
    seed: int = 0,
    network: str,
    published: bool = False,
    budget: Budget = BUDGET,
    **changes: Any,
) -> dict[int, FittedModel]:
    """One training a horizon; the weights are those of the best validation loss.

    ``changes`` are settings of the network, such as ``layer="routing"``. Progress goes to standard error.
    """
    config = network_config(network, published=published, **changes)
    optimiser = PUBLISHED_RECIPE if published else RECIPE
    fitted: dict[int, FittedModel] = {}
    for horizon in horizons:
        data = HistoryWindows(history, look_back, horizon)
        name = f"{network}-{horizon}"
        experiment = Experiment(name, data, config, SquaredError(), optimiser, _whole(budget, data))
        with _one_training:
            module, _ = train_model(experiment, seed, None, progress=True)
        fitted[horizon] = NetworkForecast(module.eval(), look_back, horizon, network, config, history.channels)
    return fitted


def _whole(budget: Budget, data: HistoryWindows) -> Budget:
    """The budget with a batch that the train part can fill."""
    from dataclasses import replace

    return replace(budget, batch_size=max(1, min(budget.batch_size, len(data.open().train))))
