"""Evaluate temperature scaling of trained models: ``python benchmarks/recsys_calibration.py --root RUNS --csv FILE``.

The temperature of each run below ``--root`` is fitted on the validation part and applied to the test part. It divides
the logits, so that no AUC changes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from manyheads.lab.data.files import write_csv
from manyheads.lab.data.storage import load_model
from manyheads.lab.training.report import Report
from manyheads.recsys.training.calibration import calibrate, sigmoid
from manyheads.recsys.training.experiments import experiments
from manyheads.recsys.training.metrics import ece, log_loss
from manyheads.recsys.training.objective import predict_logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--csv", type=Path, required=True, help="file for the rows")
    asked = parser.parse_args()
    known, rows = {e.name: e for e in experiments()}, []
    for path in sorted(asked.root.glob("*/*/report.json")):
        report = Report.read(path)
        experiment = known[report.name]
        if experiment.hash != report.hash:
            # the run has other settings
            continue
        splits = experiment.data.open()
        model = experiment.model.build(splits)
        for seed in report.seeds:
            tensors, _ = load_model(path.parent / f"seed-{seed}", fix="train again")
            model.load_state_dict(experiment.model.renamed(tensors))
            held, test = (predict_logits(model, part)[:, 0] for part in (splits.validation, splits.test))
            fitted = calibrate(splits.validation.labels[:, 0].numpy(), held, "temperature")
            labels = splits.test.labels[:, 0].numpy()
            plain, calibrated = sigmoid(test), fitted(test)
            rows.append(
                {
                    "experiment": report.name,
                    "seed": seed,
                    "log_loss": f"{log_loss(labels, plain):.6f}",
                    "calibrated_log_loss": f"{log_loss(labels, calibrated):.6f}",
                    "ece": f"{ece(labels, plain):.6f}",
                    "calibrated_ece": f"{ece(labels, calibrated):.6f}",
                    "temperature": f"{fitted.temperature:.4f}",
                }
            )
    write_csv(asked.csv, rows)


if __name__ == "__main__":
    main()
