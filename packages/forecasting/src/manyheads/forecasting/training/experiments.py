"""The experiments: the linear and Transformer rows of Table 2 of 2205.13504, PatchTST and iTransformer.

Names are ``<set>-<horizon>-<model>`` in lower case, for instance ``etth1-96-dlinear``. The suffix ``-i`` means weights
for each channel. The networks have a size for two CPU cores; the published size is
``--model.width 512 --model.heads 8 --model.expansion 4``.
"""

from __future__ import annotations

from manyheads.forecasting.datasets.benchmark_sets import SEASONS
from manyheads.forecasting.models.closed_form.normal_equations import Form
from manyheads.forecasting.models.networks import NETWORKS, find_network, network_config
from manyheads.forecasting.training.networks import recipe as network_recipe
from manyheads.forecasting.training.published import horizons_of, look_back_of, published_mse
from manyheads.forecasting.training.windows import LinearModel, SetWindows, SquaredError
from manyheads.lab.training.experiment import Budget, Experiment, Source
from manyheads.lab.training.optimisers import Optimiser

# batch size and learning rate of the authors' scripts by set; recipe() has those that depend on the horizon
_BATCH = {"ETTm1": 8, "electricity": 16, "traffic": 16, "weather": 16}
_RATE = {
    "ETTh1": 0.005,
    "ETTh2": 0.05,
    "ETTm1": 0.0001,
    "electricity": 0.001,
    "traffic": 0.05,
    "weather": 0.0001,
    "exchange_rate": 0.0005,
    "national_illness": 0.01,
}
# steps of an epoch of 32 windows, about; 200 for the others
_STEPS = {"national_illness": 19, "ETTm1": 1000, "ETTm2": 1000, "electricity": 550, "traffic": 350, "weather": 1100}


def recipe(set_name: str, horizon: int) -> tuple[int, float]:
    """Batch size and learning rate of the authors' scripts."""
    long = horizon > 192
    batch = (32 if long else 8) if set_name == "exchange_rate" else _BATCH.get(set_name, 32)
    return batch, (0.01 if long else 0.001) if set_name == "ETTm2" else _RATE[set_name]


def linear_experiment(set_name: str, horizon: int, form: Form, *, individual: bool = False) -> Experiment:
    """The experiment of one cell of Table 2, with the paper's recipe."""
    batch, rate = recipe(set_name, horizon)
    name = f"{set_name.lower()}-{horizon}-{form}{'-i' if individual else ''}"
    published = None if individual else published_mse(set_name, horizon, form)
    source = Source("2205.13504", "Table 2 (truncated test part)", {"mse": published[0]}) if published else None
    return Experiment(
        name,
        SetWindows(set_name, look_back_of(set_name), horizon),
        LinearModel(form, individual),
        SquaredError(),
        Optimiser("adam", rate, schedule="halving"),
        Budget(epochs=10, batch_size=batch, patience=3),
        source=source,
    )


def network_experiment(set_name: str, horizon: int, network: str) -> Experiment:
    """The experiment of one network at the size for two CPU cores, with the look-back of the published tables."""
    published = published_mse(set_name, horizon, network)
    optimiser, budget = network_recipe(_STEPS.get(set_name, 200))
    source = Source(find_network(network).paper, published[1], {"mse": published[0]}) if published else None
    return Experiment(
        f"{set_name.lower()}-{horizon}-{network}",
        SetWindows(set_name, look_back_of(set_name, find_network(network).look_back), horizon),
        network_config(network),
        SquaredError(),
        optimiser,
        budget,
        source=source,
    )


def experiments() -> list[Experiment]:
    """Every set, horizon and model; the linear ones with shared weights and with weights for each channel."""
    networks = [
        network_experiment(set_name, horizon, network)
        for set_name in SEASONS
        for horizon in horizons_of(set_name)
        for network in NETWORKS
    ]
    linear = [
        linear_experiment(set_name, horizon, form, individual=individual)
        for set_name in SEASONS
        for horizon in horizons_of(set_name)
        for form in ("linear", "nlinear", "dlinear", "rlinear")
        for individual in (False, True)
    ]
    return [*linear, *networks]
