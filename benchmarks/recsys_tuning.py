"""Tune hyperparameters of recommenders on the validation part.

    python benchmarks/recsys_tuning.py SET MODEL [MODEL …]

Every model of a set has the same number of settings, one seed each. The test part is never read: the validation part
replaces it, so that no test figure exists. Rows go to ``--csv``, one per setting, in the order of trying.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manyheads.lab.data.files import write_csv
from manyheads.lab.training.experiment import DataConfig, Experiment, Splits, find_experiment
from manyheads.lab.training.run import run
from manyheads.recsys.models import MODELS, config_of
from manyheads.recsys.training.experiments import experiments, frappe_experiment

SEED = 2021
GRIDS: dict[str, list[dict[str, Any]]] = {
    "frappe-x1r": [
        {"l2": 0.05},
        {"l2": 0.05, "tower_dropout": 0.4, "init_sd": 0.01, "schedule": "cosine", "epochs": 15},
        {"l2": 0.05, "dropout": 0.2},
        {"l2": 0.1, "dropout": 0.2},
        {"l2": 0.2, "dropout": 0.2},
        {"l2": 0.2, "dropout": 0.2, "schedule": "cosine", "epochs": 24},
        {"l2": 0.2, "dropout": 0.2, "schedule": "constant", "epochs": 24, "keep": "mean"},
    ],
}
# On MovieLens the kinds of regularisation depend on the model; the number of settings does not.
_PLAIN = [{"l2": l2} for l2 in (0.05, 0.2, 0.02, 0.01, 0.005, 0.002, 1e-3, 1e-4, 1e-5, 0.0)]
_TOWER = [
    *({"l2": l2} for l2 in (0.05, 0.2)),
    *({"l2": l2, "dropout": dropout} for dropout in (0.5, 0.7) for l2 in (0.05, 0.2)),
]
_BESIDE = [
    *({"l2": l2} for l2 in (0.05, 0.2)),
    {"l2": 0.05, "tower_dropout": 0.5},
    {"l2": 0.05, "dropout": 0.3},
    *({"l2": l2, "tower_dropout": 0.5, "dropout": 0.3} for l2 in (0.05, 0.2)),
]
MOVIELENS = "ml-100k-time"


def grid(name: str, model: str) -> list[dict[str, Any]]:
    """Return the settings to try for a model."""
    if name != MOVIELENS:
        return GRIDS[name]
    if model in ("lr", "fm", "autoint"):
        return _PLAIN
    return _BESIDE if "tower_dropout" in vars(config_of(model)) else _TOWER


@dataclass(frozen=True)
class Closed:
    """A data set whose test part is replaced by its validation part."""

    data: DataConfig

    def open(self) -> Splits:
        splits = self.data.open()
        return Splits(splits.train, splits.validation, splits.validation, splits.facts)


def candidate(name: str, model: str, setting: dict[str, Any]) -> Experiment:
    """Return the experiment with a setting.

    ``l2``, ``schedule`` (which disables early stopping), ``epochs`` and ``keep`` belong to the training, all others to
    the model.
    """
    untuned = name == "frappe-x1r"
    found = frappe_experiment(model, tuned=False) if untuned else find_experiment(f"{name}-{model}", experiments())
    setting = dict(setting)
    objective = replace(found.objective, l2=setting.pop("l2"))
    optimiser, budget = found.optimiser, found.budget
    if "schedule" in setting:
        optimiser = replace(optimiser, schedule=setting.pop("schedule"))
        budget = replace(budget, epochs=setting.pop("epochs"), patience=None, keep=setting.pop("keep", "best"))
    settings = {**MODELS[model].settings, **vars(found.model), **setting}
    return replace(
        found,
        name=f"{found.name}-tuning",
        data=Closed(found.data),
        model=config_of(model, settings),
        objective=objective,
        optimiser=optimiser,
        budget=budget,
        source=None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=[*GRIDS, MOVIELENS])
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the settings to run, from 1; all by default")
    parser.add_argument("--root", default="benchmarks/runs/tuning", help="folder for the runs")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/recsys_tuning.csv"))
    asked = parser.parse_args()
    for model in asked.models:
        for index, setting in enumerate(grid(asked.set, model), 1):
            if asked.only and index not in asked.only:
                continue
            report = run(candidate(asked.set, model, setting), root=asked.root, seeds=[SEED])
            row = {
                "set": asked.set,
                "model": model,
                "try": index,
                "setting": " ".join(f"{k}={v}" for k, v in setting.items()),
                "seed": SEED,
                **{f"validation_{name}": f"{report.mean[name]:.6f}" for name in ("auc", "log_loss", "gauc")},
                "parameters": report.parameters,
                "cpu_s": f"{report.cpu_seconds:.0f}",
                "command": f"python benchmarks/recsys_tuning.py {asked.set} {model} --only {index}",
            }
            keep(asked.csv, row)


def keep(path: Path, row: dict[str, Any]) -> None:
    """Add a row to the file; it replaces an earlier row of the same set, model and setting."""
    names = ("set", "model", "try")
    before = list(csv.DictReader(path.open())) if path.is_file() else []
    same = {name: str(row[name]) for name in names}
    rows = [old for old in before if {name: old[name] for name in names} != same]
    write_csv(path, sorted([*rows, row], key=lambda r: (r["set"], r["model"], int(r["try"]))))


if __name__ == "__main__":
    main()
