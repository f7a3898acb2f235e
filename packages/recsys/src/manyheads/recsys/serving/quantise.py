"""int8 quantisation of an exported folder, accepted only if the AUC on given rows does not fall.

The weights of matrix products are quantised once, activations dynamically. Everything else stays float32: embeddings,
and the request graph, which runs once per request.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyheads.core.errors import ArgumentError
from manyheads.lab.data.files import write_atomically
from manyheads.lab.data.onnx_files import int8_products
from manyheads.lab.install import need_package
from manyheads.recsys.serving.ranker import CANDIDATES, FILE, NETWORK, Ranker, read_about, small_name, write_about
from manyheads.recsys.training.metrics import auc

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Gate:
    """Result of :func:`quantise`: AUC of each label in float32 and int8 on ``rows`` rows, bytes of the network."""

    auc: dict[str, float]
    auc_int8: dict[str, float]
    rows: int
    tolerance: float
    admitted: bool
    bytes: int
    bytes_int8: int

    @property
    def fall(self) -> float:
        """The largest loss of AUC of any label."""
        return max(self.auc[name] - self.auc_int8[name] for name in self.auc)


def has_int8(folder: Path) -> bool:
    """Return whether :func:`quantise` has accepted int8 files for this folder."""
    return bool((read_about(folder).get("int8") or {}).get("admitted"))


def quantise(folder: str | Path, rows: pd.DataFrame, *, tolerance: float = 0.001) -> Gate:
    """Write int8 files beside the float32 ones; :class:`Ranker` then uses them by default.

    Args:
        folder: an exported folder.
        rows: labelled rows that were not trained on; the AUC is compared on them.
        tolerance: largest accepted loss of AUC of any label.

    Raises:
        ArgumentError: the AUC falls by more than ``tolerance`` (the folder is unchanged), or the rows have one class
            only.
        MissingPackageError: onnx is not installed.
    """
    need_package("onnx", "manyheads-recsys", "onnx")
    if not tolerance >= 0:
        raise ArgumentError(f"int8: tolerance: found {tolerance}, expected 0 or more")
    folder = Path(folder)
    plain = Ranker(folder, int8=False)
    labels = plain.labels.encode(rows)
    files = [name for name in (NETWORK, CANDIDATES) if (folder / name).is_file()]
    made = {small_name(name): int8_products((folder / name).read_bytes()) for name in files}
    with tempfile.TemporaryDirectory() as beside:
        for path in folder.iterdir():
            if path.is_file():
                (Path(beside) / path.name).symlink_to(path.resolve())
        for name, content in made.items():
            (Path(beside) / name).unlink(missing_ok=True)
            (Path(beside) / name).write_bytes(content)
        (Path(beside) / FILE).unlink()
        write_about(Path(beside), read_about(folder))
        small = Ranker(beside, int8=True)
        found = [_aucs(one, rows, labels) for one in (plain, small)]
    sizes = (folder / NETWORK).stat().st_size, len(made[small_name(NETWORK)])
    gate = Gate(found[0], found[1], len(rows), tolerance, True, *sizes)
    if gate.fall > tolerance:
        raise ArgumentError(
            f"int8: the AUC falls by {gate.fall:.5f} on {len(rows)} rows, expected at most {tolerance:g}: float32 is "
            "kept; allow more with --tolerance, or train a wider model"
        )
    about = read_about(folder)
    for name, content in made.items():
        write_atomically(folder / name, content)
    write_about(folder, {**about, "int8": asdict(gate)})
    return gate


def _aucs(ranker: Ranker, rows: pd.DataFrame, labels: np.ndarray) -> dict[str, float]:
    logits = ranker.score_rows(rows).logits
    found = {}
    for index, task in enumerate(ranker.labels.tasks):
        known = ~np.isnan(labels[:, index])
        found[task] = auc(labels[known, index], logits[known, index])
        if np.isnan(found[task]):
            raise ArgumentError(f"int8: label {task!r}: found one class only, expected rows of both to compare AUC on")
    return found
