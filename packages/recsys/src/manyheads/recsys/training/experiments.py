"""Experiments ``<set>-<model>`` such as ``frappe-x1r-deepfm``, with the published settings if there are any.

Published figures are those of BARS (2205.09626) on Frappe_x1. frappe-x1r has the same validation and test part; see
:mod:`manyheads.recsys.datasets.frappe`. An experiment has a published figure only if BARS ran the same function:

- BARS' DLRM concatenates the embeddings (``interaction_op=cat``) before a tower with dropout .4. It is
  ``frappe-x1r-dnn-cat`` here.
- BARS' AutoInt and AutoInt+ ran in FuxiCTR 1.2, whose attention lacked a transpose and mixed heads with fields.
"""

from __future__ import annotations

from typing import Any

from manyheads.lab.training.experiment import Budget, DataConfig, Experiment, Source
from manyheads.lab.training.optimisers import Optimiser
from manyheads.recsys.datasets.splits import Adult, Frappe, MovieLens
from manyheads.recsys.datasets.synthetic import Synthetic
from manyheads.recsys.features.tables import Split
from manyheads.recsys.models import MODELS, config_of
from manyheads.recsys.training.objective import LogLoss

SEEDS = (2021, 2022, 2023, 2024, 2025)
BARS = {
    "lr": (0.935584, 0.307643),
    "fm": (0.967108, 0.206515),
    "dnn": (0.984036, 0.157776),
    "deepfm": (0.984243, 0.148174),
    "dnn-cat": (0.983995, 0.144441),
    "dcnv2": (0.984478, 0.149149),
    "final-mlp": (0.986072, 0.148415),
}
_CONTEXTS = {"first_context": ("user",), "second_context": ("item",)}
# BARS on Frappe; 0.05 for the other models
_L2 = {"lr": 1e-5, "fm": 5e-6, "autoint+": 0.1, "dlrm": 0.1, "dnn-cat": 0.1}
# hiformer-lowrank+ was not tuned: it takes the settings of hiformer+
_TUNED = ("vanilla+", "heterogeneous+", "hiformer+", "hiformer-lowrank+")
# chosen among ten from 0 to 0.2; an L2 made for wide embeddings keeps a single weight at 0
_LINEAR_L2 = {"lr": 0.0, "fm": 0.0}
# ml-100k-time: the other models chose 0.05, of 0.05 and 0.2
_TIME_L2 = {**_LINEAR_L2, "vanilla+": 0.2}
# the paper's; BARS' for Frappe are four times as wide
_AUTOINT = {"layers": 3, "heads": 2, "attention_dim": 32}


def frappe_experiment(model: str, *, tuned: bool = True) -> Experiment:
    """Return an experiment on frappe-x1r with the settings of BARS, or those of DeepFM if BARS has none.

    Settings of BARS: Adam with learning rate .001, batch size 4,096, L2 on the whole tables. An epoch without a better
    validation AUC divides the learning rate by ten; two in a row end the training.

    ``tuned``: Transformers with a tower use what ``benchmarks/recsys_tuning.py`` found best on the validation part:
    more regularisation, 24 epochs at a constant learning rate, and the mean of the weights over the last six epochs
    (SWA).
    """
    settings: dict[str, Any] = dict(_CONTEXTS) if model == "final-mlp" else {}
    name = model
    if model == "dnn-cat":
        name, settings = "dnn", {"dropout": 0.4}
    l2 = _L2.get(model, 0.05)
    optimiser = Optimiser("adam", 1e-3, schedule="plateau")
    budget = Budget(epochs=100, batch_size=4096, patience=2)
    if tuned and model in _TUNED:
        l2, settings["dropout"] = 0.2, 0.2
        optimiser, budget = Optimiser("adam", 1e-3), Budget(epochs=24, batch_size=4096, keep="mean")
    published = BARS.get(model)
    source = None
    if published is not None:
        source = Source("2205.09626", "BARS, Frappe_x1", dict(zip(("auc", "log_loss"), published, strict=True)))
    return Experiment(
        f"frappe-x1r-{model}",
        Frappe(),
        config_of(name, settings),
        LogLoss(l2=l2),
        optimiser,
        budget,
        SEEDS,
        source,
    )


def _own_experiment(name: str, data: DataConfig, model: str, l2: float, batch_size: int) -> Experiment:
    settings: dict[str, Any] = {"dim": 16}
    if model.startswith("autoint"):
        settings |= _AUTOINT
    if model == "final-mlp" and not isinstance(data, Adult):
        settings |= _CONTEXTS
    return Experiment(
        f"{name}-{model}",
        data,
        config_of(model, settings),
        LogLoss(l2=l2),
        Optimiser("adam", 1e-3, schedule="plateau"),
        Budget(epochs=30, batch_size=batch_size, patience=2),
        SEEDS,
    )


def synthetic_experiments() -> list[Experiment]:
    """Return experiments of attention layers without a tower, on fields that share one embedding table.

    All have the same budget. ``synthetic-long-…`` has a fixed number of epochs, because early stopping may hurt a layer
    that starts slowly; it adds a low-rank Hiformer, and ``tables-vanilla`` with an embedding table per field, which can
    hold the role of the field.
    """
    layers: list[tuple[str, str, dict[str, Any]]] = [
        ("vanilla", "vanilla", {}),
        ("vanilla-positions", "vanilla", {"positions": True}),
        ("heterogeneous", "heterogeneous", {}),
        ("hiformer", "hiformer", {}),
    ]
    more = [("hiformer-lowrank", "hiformer-lowrank", {}), ("tables-vanilla", "vanilla", {"shared_tables": False})]
    early = Optimiser("adam", 2e-3, schedule="plateau"), Budget(epochs=12, batch_size=512, patience=3)
    fixed = Optimiser("adam", 2e-3, schedule="cosine"), Budget(epochs=15, batch_size=512)
    return [
        Experiment(
            f"synthetic-{prefix}{name}",
            Synthetic(),
            config_of(model, {"dim": 16, "init_sd": 0.1, "shared_tables": True, **settings}),
            LogLoss(),
            optimiser,
            budget,
            SEEDS,
        )
        for prefix, chosen, (optimiser, budget) in (("", layers, early), ("long-", [*layers, *more], fixed))
        for name, model, settings in chosen
    ]


def experiments() -> list[Experiment]:
    """Return all experiments: every model on Frappe, MovieLens-100K (both splits) and Adult; layers on synthetic."""
    made = [frappe_experiment(model) for model in (*MODELS, "dnn-cat")]
    chosen: dict[Split, dict[str, float]] = {"time": _TIME_L2, "random": _LINEAR_L2}
    made += [
        _own_experiment(f"ml-100k-{split}", MovieLens(split), model, l2.get(model, 0.05), 1024)
        for split, l2 in chosen.items()
        for model in MODELS
    ]
    made += [_own_experiment("adult", Adult(), model, 1e-4, 512) for model in MODELS]
    return made + synthetic_experiments()
