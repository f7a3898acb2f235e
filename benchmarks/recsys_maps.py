"""Measure whether explanations rank the true interactions first.

    python benchmarks/recsys_maps.py --root RUNS --csv FILE

For each trained model of the synthetic set below ``--root``, pairs of fields are ordered by attention, by the AUC
interaction of permutations, and by the mixed logit, on rows of the test part. The file holds the AUC of the true pairs
among all pairs (0.5 is chance) and Spearman's correlation with the true strengths. Nothing is chosen by these figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from manyheads.lab.data.files import write_csv
from manyheads.lab.training.report import Report
from manyheads.recsys.datasets.synthetic import Synthetic
from manyheads.recsys.explain.explanation import Explanation, explain, rank_correlation, upper
from manyheads.recsys.training.experiments import experiments
from manyheads.recsys.training.metrics import auc
from manyheads.recsys.training.recommender import Recommender


def views(found: Explanation) -> dict[str, np.ndarray]:
    """Return the matrices of pairs that an explanation offers, by name."""
    measured, views = found.importance, {}
    if found.maps is not None:
        size = found.maps.fields
        if (pairs := found.maps.pairs()) is not None:
            views["attention"] = pairs
        if len(found.maps.full) > 1:
            parts = [layer[:size, :size] for layer in found.maps.full]
            views |= {f"attention, layer {i + 1}": (part + part.T) / 2 for i, part in enumerate(parts)}
    if measured.interaction is None or measured.mixed is None:
        return views
    return views | {"AUC interaction": np.abs(measured.interaction), "mixed logit": measured.mixed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--csv", type=Path, required=True, help="file for the rows")
    parser.add_argument("--rows", type=int, default=5000, help="test rows of each explanation")
    asked = parser.parse_args()
    known, rows = {e.name: e for e in experiments()}, []
    for path in sorted(asked.root.glob("synthetic-*/*/report.json")):
        report = Report.read(path)
        experiment = known.get(report.name)
        if experiment is None or experiment.hash != report.hash or not isinstance(experiment.data, Synthetic):
            # the run has other settings
            continue
        frame, _ = experiment.data.part(2)
        strengths = upper(experiment.data.interactions())
        for seed in report.seeds:
            recommender = Recommender.load(path.parent / f"seed-{seed}")
            found = explain(recommender, frame, rows=asked.rows, seed=seed)
            for view, matrix in views(found).items():
                order = upper(matrix)
                rank = rank_correlation(order, strengths)
                rows.append(
                    {
                        "experiment": report.name,
                        "seed": seed,
                        "view": view,
                        "true_pairs_auc": f"{auc((strengths > 0).astype(int), order):.4f}",
                        "rank_correlation": "" if rank is None else f"{rank:.4f}",
                        "model_auc": f"{report.metrics[str(seed)]['auc']:.4f}",
                        "rows": found.importance.rows,
                    }
                )
    write_csv(asked.csv, rows)


if __name__ == "__main__":
    main()
