"""Baselines on the digits of ``manyheads images``: the same parts, settings chosen on the validation part.

python benchmarks/images_baselines.py --csv benchmarks/results/images_baselines.csv
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from manyheads.images.pictures.labelled import digits
from manyheads.images.training.data import ImageData
from manyheads.lab.data.files import write_csv


def candidates() -> Iterator[tuple[str, str, Any]]:
    """Yield name, setting and classifier."""
    for strength in (0.01, 0.1, 1.0, 10.0):
        yield "logistic regression", f"C={strength}", LogisticRegression(C=strength, max_iter=2000)
    for strength in (1.0, 10.0, 100.0):
        for width in ("scale", 0.005, 0.02):
            yield "support vector machine, RBF", f"C={strength} gamma={width}", SVC(C=strength, gamma=width)
    for count in (1, 3, 5):
        yield "nearest neighbours", f"k={count}", KNeighborsClassifier(count)


def main(path: Path) -> None:
    data = ImageData()
    found = digits(8, (data.validation_share, data.test_share))
    pixels = found.pixels.reshape(len(found.targets), -1) / 255
    part = {name: (pixels[own], found.targets[own]) for name, own in found.parts.items()}
    best: dict[str, dict[str, Any]] = {}
    for name, setting, classifier in candidates():
        before = time.process_time()
        fitted = make_pipeline(StandardScaler(with_std=False), classifier).fit(*part["train"])
        row = {
            "model": name,
            "setting": setting,
            "validation_accuracy": 100 * fitted.score(*part["validation"]),
            "cpu_s": time.process_time() - before,
            "fitted": fitted,
        }
        if name not in best or row["validation_accuracy"] > best[name]["validation_accuracy"]:
            best[name] = row
    rows = [
        {
            **{key: value for key, value in row.items() if key != "fitted"},
            "accuracy": 100 * row["fitted"].score(*part["test"]),
            "versions": f"scikit-learn={sklearn.__version__}",
            "command": f"python benchmarks/images_baselines.py --csv {path}",
        }
        for row in best.values()
    ]
    write_csv(path, rows)
    for row in rows:
        print(f"{row['model']} ({row['setting']}): {row['accuracy']:.2f} % of the test part")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, required=True)
    main(parser.parse_args().csv)
