"""Measure the CPU time of a training epoch on frappe-x1r: ``python benchmarks/recsys_speed.py [MODEL …]``.

The work equals that of FuxiCTR's measured 8.1 CPU seconds: one pass over 202,027 rows in batches of 4,096 with the
settings of DeepFM from BARS, and the scores and AUC of the 57,722 validation rows. CPU time of one thread; the models
take turns and the shortest time of each counts, as other processes may run on the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from manyheads.lab.data.files import write_csv
from manyheads.recsys.training.experiments import frappe_experiment

# CPU seconds of FuxiCTR for an epoch and validation.
FUXICTR = 8.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["deepfm"])
    parser.add_argument("--epochs", type=int, default=3, help="repetitions")
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/recsys_throughput.csv"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: _Run(name) for name in asked.models}
    for _ in range(asked.epochs):
        for run in runs.values():
            run.epoch()
    rows = []
    for name, run in runs.items():
        total = run.training + run.validation
        rows.append(
            {
                "model": name,
                "epoch_cpu_s": f"{run.training:.2f}",
                "validation_cpu_s": f"{run.validation:.2f}",
                "rows_per_cpu_s": f"{run.rows / total:.0f}",
                "times_fuxictr": f"{FUXICTR / total:.2f}",
                "epochs": asked.epochs,
                "torch": torch.__version__,
                "command": " ".join(["python", "benchmarks/recsys_speed.py", *sys.argv[1:]]),
            }
        )
        print(rows[-1])
    write_csv(asked.csv, rows)


class _Run:
    """A model in training, with the shortest CPU times of an epoch and of a validation."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.experiment = frappe_experiment(name)
        self.splits: Any = self.experiment.data.open()
        self.rows = len(self.splits.train)
        self.model = self.experiment.model.build(self.splits)
        self.optimiser = self.experiment.optimiser.make(self.model)
        self.training = self.validation = float("inf")

    def epoch(self) -> None:
        self.model.train()
        begun = time.process_time()
        for chosen in torch.randperm(self.rows).split(self.experiment.budget.batch_size):
            self.optimiser.zero_grad()
            self.experiment.objective.loss(self.model, self.splits.train.batch(chosen)).backward()
            self.optimiser.step()
        between = time.process_time()
        self.experiment.objective.monitor(self.model, self.splits.validation)
        self.training = min(self.training, between - begun)
        self.validation = min(self.validation, time.process_time() - between)


if __name__ == "__main__":
    main()
