"""int8 weights for an exported folder, admitted only where the AUC on given rows does not fall.

The weights of products are rounded once to 8 bits, activations as they come; all else stays float32, embeddings too,
and so does what is computed once a request.
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
    """AUC of each label in float32 and in int8, on so many rows."""

    auc: dict[str, float]
    auc_int8: dict[str, float]
    rows: int
    tolerance: float
    admitted: bool
    bytes: int
    bytes_int8: int

    @property
    def fall(self) -> float:
        """The largest of any label."""
        return max(self.auc[name] - self.auc_int8[name] for name in self.auc)


def has_int8(folder: Path) -> bool:
    """Whether :func:`quantise` has admitted the int8 files of this folder."""
    return bool((read_about(folder).get("int8") or {}).get("admitted"))


def quantise(folder: str | Path, rows: pd.DataFrame, *, tolerance: float = 0.001) -> Gate:
    """Writes the int8 files and has :class:`Ranker` take them.

    ``rows`` with the labels decide: where the AUC of any label falls by more than ``tolerance`` an
    :class:`ArgumentError` says so and the folder stays as it was. Raises :class:`MissingPackageError` without onnx, and
    :class:`ArgumentError` where the rows have one class only.
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
