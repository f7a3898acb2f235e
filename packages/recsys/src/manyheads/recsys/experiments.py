"""The models on the sets, with the published settings where there are some.

Names are ``<set>-<model>``, for instance ``frappe-x1r-deepfm``. Published figures are those of BARS (2205.09626) on
Frappe_x1, of which frappe-x1r has the same validation and test part; see :mod:`manyheads.recsys.frappe`.
"""

from __future__ import annotations

from typing import Any

from manyheads.lab.experiment import Budget, DataConfig, Experiment, Optimiser, Source
from manyheads.recsys.data import Adult, Frappe, MovieLens
from manyheads.recsys.models import MODELS, config_of
from manyheads.recsys.synthetic import Synthetic
from manyheads.recsys.tables import Split
from manyheads.recsys.train import LogLoss

SEEDS = (2021, 2022, 2023, 2024, 2025)
BARS = {
    "lr": (0.935584, 0.307643),
    "fm": (0.967108, 0.206515),
    "dnn": (0.984036, 0.157776),
    "deepfm": (0.984243, 0.148174),
    "autoint": (0.983085, 0.163684),
    "autoint+": (0.984812, 0.149007),
    "dlrm": (0.983995, 0.144441),
    "dcnv2": (0.984478, 0.149149),
    "final-mlp": (0.986072, 0.148415),
}
_CONTEXTS = {"first_context": ("user",), "second_context": ("item",)}
_WIDE = {"lr", "fm"}
_AUTOINT = {"layers": 3, "heads": 2, "attention_dim": 32}  # the paper's; BARS' for Frappe are four times as wide


def frappe_experiment(model: str) -> Experiment:
    """With BARS' settings: Adam at .001, batches of 4,096, L2 over the whole tables, a tenth of the rate after each
    epoch without a better validation AUC, two in a row end it. Ours where BARS has none: those of DeepFM."""
    settings: dict[str, Any] = {"final-mlp": _CONTEXTS}.get(model, {})
    l2 = 1e-3 if model in _WIDE else 0.1 if model in ("autoint+", "dlrm") else 0.05
    published = BARS.get(model)
    source = None
    if published is not None:
        source = Source("2205.09626", "BARS, Frappe_x1", dict(zip(("auc", "log_loss"), published, strict=True)))
    return Experiment(
        f"frappe-x1r-{model}",
        Frappe(),
        config_of(model, settings),
        LogLoss(l2=l2),
        Optimiser("adam", 1e-3, schedule="plateau"),
        Budget(epochs=100, batch_size=4096, patience=2),
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


def synthetic_experiment(name: str, model: str, **settings: Any) -> Experiment:
    """Layers alone, without a tower, on fields that share their embeddings; the budget is the same for all."""
    return Experiment(
        f"synthetic-{name}",
        Synthetic(),
        config_of(model, {"dim": 16, "init_sd": 0.1, "shared_tables": True, **settings}),
        LogLoss(),
        Optimiser("adam", 2e-3, schedule="plateau"),
        Budget(epochs=12, batch_size=512, patience=3),
        SEEDS,
    )


def _synthetic_experiments() -> list[Experiment]:
    """The three layers and the vanilla one with positions; each with a table a field as well, which can hold a field's
    role; and a tower, which knows no fields but has a weight for each place."""
    layers = (
        ("vanilla", "vanilla", {}),
        ("vanilla-positions", "vanilla", {"positions": True}),
        ("heterogeneous", "heterogeneous", {}),
        ("hiformer", "hiformer", {}),
    )
    made = [synthetic_experiment(name, model, **settings) for name, model, settings in layers]
    made += [
        synthetic_experiment(f"tables-{name}", model, shared_tables=False, **settings)
        for name, model, settings in layers
        if name != "vanilla-positions"
    ]
    return [*made, synthetic_experiment("dnn", "dnn", hidden=(128, 128), dropout=0.0)]


def experiments() -> list[Experiment]:
    """Every model on Frappe, on MovieLens-100K both ways, and on Adult; the layers on the synthetic set."""
    made = [frappe_experiment(model) for model in MODELS]
    splits: tuple[Split, ...] = ("time", "random")
    made += [_own_experiment(f"ml-100k-{s}", MovieLens(s), model, 0.05, 1024) for s in splits for model in MODELS]
    made += [_own_experiment("adult", Adult(), model, 1e-4, 512) for model in MODELS]
    return made + _synthetic_experiments()
