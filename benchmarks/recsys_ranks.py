"""Measure accuracy and time against the rank of low-rank projections.

    python benchmarks/recsys_ranks.py --root RUNS --csv FILE --picture FILE

The composite projections of a Hiformer trained on MovieLens-100K, split by time, are cut to each rank without
retraining. Measured are the AUC on the validation part and the CPU time of 100 rows through ONNX Runtime on one thread;
all ranks take turns. The picture marks the best rank within half of the time of the full-rank model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from manyheads.lab.data.files import write_csv, write_figure
from manyheads.lab.training.report import Report
from manyheads.recsys.datasets.splits import movielens_table
from manyheads.recsys.features.tables import split_rows
from manyheads.recsys.serving.compress import draw, search_rank
from manyheads.recsys.training.recommender import Recommender


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the trained Hiformer")
    parser.add_argument("--csv", type=Path, required=True, help="file for the rows")
    parser.add_argument("--picture", type=Path, required=True, help="file for the picture")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    [path] = asked.root.glob("ml-100k-time-hiformer/*/report.json")
    model = Recommender.load(path.parent / f"seed-{Report.read(path).seeds[0]}")
    _, rows, _ = split_rows(movielens_table(), split="time", time="timestamp", seed=2021)
    found = search_rank(model, rows, budget_share=0.5, repeats=100)
    write_figure(asked.picture, draw(found))
    write_csv(
        asked.csv,
        [
            {
                "projections": one.name,
                "parameters": one.parameters,
                "cpu_ms": f"{one.cpu_ms:.4f}",
                "candidates": found.candidates,
                "validation_auc": f"{one.auc:.6f}",
                "sigma_cut": f"{one.error:.4g}",
                "chosen": one is found.chosen,
            }
            for one in found.tried
        ],
    )


if __name__ == "__main__":
    main()
