"""Write one file of each kind that this version saves, with its answer: ``python -m tests.released.make 0.2``.

Run it once for a release, with the code of that release. The folder is never written again.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from manyheads.lab.training.run import run
from tests.fuzz import model_files
from tests.lab.toy import toy

KINDS = {
    "forecaster": model_files.forecaster,
    "spotter": model_files.spotter,
    "recommender": model_files.recommender,
    "served": model_files.served,
}


def write(folder: Path) -> None:
    """Every kind below ``folder``, and ``expected.json``: kind -> path and answer."""
    expected = {}
    for name, make in KINDS.items():
        path, answer = make(folder / name if name in ("recommender", "served") else folder)
        expected[name] = {"path": path.relative_to(folder).as_posix(), "answer": np.asarray(answer(path)).tolist()}
    with tempfile.TemporaryDirectory() as runs:
        report = run(toy(), root=runs, progress=False)
        shutil.copy(next(Path(runs).rglob("report.json")), folder)
    expected["report"] = {"path": "report.json", "answer": report.mean["mse"]}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    target = Path(__file__).parent / sys.argv[1]
    target.mkdir()
    write(target)
