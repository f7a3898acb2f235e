"""Evaluate scikit-learn's logistic regression and LightGBM on the data sets of our recommenders.

    python benchmarks/recsys_peers.py [--sets SET …] --csv FILE

Both get the same encoded rows as our models and fit the training part. Their settings are chosen by the validation AUC
with the first seed, then fitted with each seed; the test part is read only at the end. A logistic regression has no
seed. LightGBM takes ids as categories and samples four fifths of the rows and columns for each tree.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lightgbm
import numpy as np
from sklearn.linear_model import LogisticRegression

from manyheads.lab.data.files import write_csv
from manyheads.lab.training.experiment import Splits
from manyheads.recsys.datasets.splits import Adult, Frappe, MovieLens
from manyheads.recsys.datasets.synthetic import Synthetic
from manyheads.recsys.features.layout import Rows
from manyheads.recsys.training.baselines import Design
from manyheads.recsys.training.experiments import SEEDS
from manyheads.recsys.training.metrics import all_metrics, auc

SETS = {"frappe-x1r": Frappe(), "ml-100k-time": MovieLens("time"), "adult": Adult(), "synthetic": Synthetic()}
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_LOOSE = {"min_data_per_group": 10, "cat_smooth": 1.0, "cat_l2": 1.0}
TREES: tuple[dict[str, Any], ...] = (
    {"num_leaves": 31, "learning_rate": 0.05},
    {"num_leaves": 15, "learning_rate": 0.05},
    {"num_leaves": 255, "learning_rate": 0.1, **_LOOSE},
)

Predict = Callable[[Rows], np.ndarray]


def labels_of(rows: Rows) -> np.ndarray:
    """Return the first label of each row as integers."""
    return rows.labels[:, 0].numpy().astype(int)


def regression(splits: Splits, setting: dict[str, Any], seed: int) -> tuple[Predict, int]:
    """Fit a logistic regression; return its prediction function and its number of parameters."""
    design = Design.of(splits.facts["layout"], splits.train)
    fitted = LogisticRegression(max_iter=1000, **setting).fit(design(splits.train), labels_of(splits.train))
    return lambda rows: fitted.predict_proba(design(rows))[:, 1], fitted.coef_.size + 1


def trees(splits: Splits, setting: dict[str, Any], seed: int) -> tuple[Predict, int]:
    """Fit LightGBM with early stopping; return its prediction function and its number of leaves."""
    layout = splits.facts["layout"]
    fields = list(range(len(layout.names)))

    def table(rows: Rows) -> np.ndarray:
        return np.concatenate([rows.ids.numpy(), rows.numbers.numpy()], 1).astype(np.float64)

    drawn = {"subsample": 0.8, "subsample_freq": 1, "colsample_bytree": 0.8, "random_state": seed}
    model = lightgbm.LGBMClassifier(n_estimators=2000, n_jobs=1, verbosity=-1, deterministic=True, **drawn, **setting)
    held = (table(splits.validation), labels_of(splits.validation))
    model.fit(
        table(splits.train),
        labels_of(splits.train),
        eval_set=[held],
        eval_metric="binary_logloss",
        categorical_feature=fields,
        callbacks=[lightgbm.early_stopping(50, verbose=False)],
    )
    leaves = int(model.booster_.trees_to_dataframe()["left_child"].isna().sum())
    return lambda rows: model.predict_proba(table(rows))[:, 1], leaves


PEERS = {
    "scikit-learn-lr": (regression, [{"C": c} for c in STRENGTHS], SEEDS[:1]),
    "lightgbm": (trees, list(TREES), SEEDS),
}


def rows_of(name: str, command: str) -> Iterator[dict[str, Any]]:
    """Yield one row per model and metric of a data set."""
    splits = SETS[name].open()
    for peer, (fit, settings, seeds) in PEERS.items():
        validation_aucs = [
            auc(labels_of(splits.validation), fit(splits, setting, seeds[0])[0](splits.validation))
            for setting in settings
        ]
        setting = settings[int(np.argmax(validation_aucs))]
        started, found, parameters = time.process_time(), [], 0
        for seed in seeds:
            predict, parameters = fit(splits, setting, seed)
            groups = None if splits.test.groups is None else splits.test.groups.numpy()
            found.append(all_metrics(labels_of(splits.test), predict(splits.test), groups))
        seconds = time.process_time() - started
        for metric in found[0]:
            values = [one[metric] for one in found]
            yield {
                "experiment": f"{name}-{peer}",
                "metric": metric,
                "mean": f"{fmean(values):.6f}",
                "sd": f"{stdev(values):.6f}" if len(values) > 1 else "",
                "seeds": " ".join(map(str, seeds)),
                "values": " ".join(f"{value:.6f}" for value in values),
                "setting": " ".join(f"{key}={value}" for key, value in setting.items()),
                "tried": len(settings),
                "validation_auc": f"{max(validation_aucs):.6f}",
                "parameters": parameters,
                "cpu_s": f"{seconds:.1f}",
                "versions": " ".join(f"{one}={version(one)}" for one in ("scikit-learn", "lightgbm", "numpy")),
                "command": command,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="data sets; all by default")
    parser.add_argument("--csv", type=Path, required=True, help="file for the rows; those of other sets stay")
    asked = parser.parse_args()
    for name in asked.sets:
        made = list(rows_of(name, f"python benchmarks/recsys_peers.py --sets {name}"))
        before = list(csv.DictReader(asked.csv.open())) if asked.csv.is_file() else []
        own = {row["experiment"] for row in made}
        write_csv(asked.csv, [*(row for row in before if row["experiment"] not in own), *made])


if __name__ == "__main__":
    main()
