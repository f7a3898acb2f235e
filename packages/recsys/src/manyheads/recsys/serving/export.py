"""Export a fitted recommender to ONNX, for :class:`manyheads.recsys.serving.Ranker`, which needs no torch.

``network.onnx`` scores whole rows. With ``shared`` columns and a field transformer there are two more graphs:
``request.onnx`` computes the part of the shared columns once per request, and ``candidates.onnx`` takes its result and
the other columns. The folder also has the encoder, the labels and ``serving.json``: calibration, layout, and the
largest difference from torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.lab.data.files import write_atomically
from manyheads.lab.data.onnx_files import exported
from manyheads.lab.install import need_package
from manyheads.recsys.features.layout import PADDING, Layout
from manyheads.recsys.models.transformer import FieldTransformer
from manyheads.recsys.serving.form import ServedTransformer
from manyheads.recsys.serving.projections import State
from manyheads.recsys.serving.ranker import CANDIDATES, FORMAT, NETWORK, REQUEST, Ranker, small_name, write_about
from manyheads.recsys.serving.tokens import Chosen

if TYPE_CHECKING:
    from manyheads.recsys.training.recommender import Recommender

PACKAGE = "manyheads-recsys"
# batch sizes of the comparison with torch; the graphs are traced with another
SAMPLES = (1, 2, 7, 300)


@dataclass(frozen=True)
class Exported:
    """Result of :func:`export`.

    ``parity`` is the largest difference of a logit from torch, relative if the logit is above 1.
    """

    folder: Path
    parity: float
    shared_graphs: bool


def export(recommender: Recommender, folder: str | Path, *, shared: Sequence[str] = ()) -> Exported:
    """Write the folder and compare it with torch.

    Args:
        recommender: a fitted model.
        folder: the folder to write.
        shared: columns with the same value for all candidates of a request, such as those of user and context.

    Raises:
        MissingPackageError: onnx or onnxruntime is not installed.
        UnknownNameError: a shared column that is no feature.
        ArgumentError: all columns are shared.
    """
    need_package("onnx", PACKAGE, "onnx")
    need_package("onnxruntime", PACKAGE, "onnx")
    folder = Path(folder)
    encoder, labels = recommender.encoder_, recommender.labels_
    columns = encoder.spec.columns
    for name in shared:
        if name not in columns:
            raise UnknownNameError("shared column", name, columns)
    if set(columns) == set(shared):
        raise ArgumentError("shared: found every column, expected at least one that differs by candidate")
    layout = encoder.layout(labels.tasks)
    parts = graphs(recommender.network_, layout, tuple(shared))
    about: dict[str, Any] = {
        "format": FORMAT,
        "model": getattr(recommender.config_, "layer", type(recommender.network_).__name__),
        "settings": {name: str(value) for name, value in asdict(recommender.config_).items()},
        "layout": asdict(layout),
        "shared": [name for name in columns if name in shared],
        "request": asdict(parts.request) if parts.request is not None else None,
        "calibration": [asdict(one) for one in recommender.calibration_],
    }
    # remove the graphs of an earlier export that this one does not write
    for name in (NETWORK, REQUEST, CANDIDATES):
        (folder / small_name(name)).unlink(missing_ok=True)
        if name not in parts.files:
            (folder / name).unlink(missing_ok=True)
    for name, content in {**encoder.files(), **labels.files(), **parts.files}.items():
        write_atomically(folder / name, content)
    write_about(folder, {**about, "parity": None})
    parity = measured_parity(recommender.network_, layout, Ranker.load(folder))
    write_about(folder, {**about, "parity": parity})
    return Exported(folder, parity, parts.request is not None)


@dataclass(frozen=True)
class Graphs:
    """The ONNX files by name, and the fields that the request graph takes."""

    files: dict[str, bytes]
    request: Chosen | None = None


def graphs(network: nn.Module, layout: Layout, shared: Sequence[str] = ()) -> Graphs:
    """Export a network to ONNX: whole rows, and with ``shared`` columns also request and candidates."""
    network.eval()
    ids, numbers = sample_rows(layout, 5)
    served: nn.Module = network
    if isinstance(network, FieldTransformer):
        served = _Whole(ServedTransformer(network, layout).eval())
    place = f"export: {type(network).__name__}"
    names = ["ids", "numbers"]
    content = exported(
        _Named(served),
        (ids, numbers),
        inputs=names,
        outputs=["logits"],
        batch=[*names, "logits"],
        place=place,
    )
    if not shared or not isinstance(network, FieldTransformer):
        return Graphs({NETWORK: content})
    form = ServedTransformer(network, layout, shared).eval()
    if form.request_tokens is None:
        return Graphs({NETWORK: content})
    request_inputs, candidate_inputs = (
        (ids[:, columns(layout, chosen)], numbers[:, list(chosen.numeric)]) for chosen in (form.shared, form.own)
    )
    request_inputs = request_inputs[0][:1], request_inputs[1][:1]
    with torch.no_grad():
        state = form.request(*request_inputs)
    states = [f"state_{n}" for n in range(len(state))]
    files = {
        NETWORK: content,
        REQUEST: exported(_Request(form), request_inputs, inputs=names, outputs=states, batch=[], place=place),
        CANDIDATES: exported(
            _Candidates(form),
            (*candidate_inputs, *state),
            inputs=[*names, *states],
            outputs=["logits"],
            batch=[*names, "logits"],
            place=place,
        ),
    }
    return Graphs(files, form.shared)


def columns(layout: Layout, chosen: Chosen) -> list[int]:
    """Return the id columns of the chosen fields."""
    spans = (layout.columns_of(layout.names[n]) for n in chosen.names)
    return [column for span in spans for column in range(span.start, span.stop)]


def sample_rows(layout: Layout, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random ids ``(rows, C)`` and numbers ``(rows, F)``, some of them padding or missing."""
    rng = np.random.default_rng(seed)
    parts = []
    for size, width in zip(layout.rows, layout.widths, strict=True):
        part = rng.integers(0, size, (rows, width))
        part[:, 1:][rng.random((rows, width - 1)) < 0.5] = PADDING
        parts.append(part)
    ids = np.concatenate(parts, 1) if parts else np.zeros((rows, 0), np.int64)
    numbers = rng.normal(size=(rows, len(layout.numeric))).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.1] = np.nan
    return torch.from_numpy(ids), torch.from_numpy(numbers)


def measured_parity(network: nn.Module, layout: Layout, ranker: Ranker) -> float:
    """Return the largest difference from torch over batches of several sizes, for whole rows and shared columns."""
    worst = 0.0
    for seed, rows in enumerate(SAMPLES):
        ids, numbers = sample_rows(layout, rows, seed)
        worst = max(worst, _gap(network, ids, numbers, ranker.logits(ids.numpy(), numbers.numpy())))
        if ranker.request is not None:
            picked, numeric = columns(layout, Chosen(**ranker.request)), list(ranker.request["numeric"])
            ids[:, picked], numbers[:, numeric] = ids[:1, picked], numbers[:1, numeric]
            worst = max(worst, _gap(network, ids, numbers, ranker.shared_logits(ids.numpy(), numbers.numpy())))
    return worst


@torch.no_grad()
def _gap(network: nn.Module, ids: Tensor, numbers: Tensor, found: np.ndarray) -> float:
    expected = network(ids, numbers).numpy()
    return float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max())


class _Named(nn.Module):
    """Name both inputs ``ids`` and ``numbers`` and keep them in the graph, used or not."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.network(ids, numbers)


class _Whole(nn.Module):
    """The serving form without shared columns: the request part is that of the task tokens only, a constant."""

    def __init__(self, form: ServedTransformer) -> None:
        super().__init__()
        self.form = form
        with torch.no_grad():
            nothing = torch.zeros(1, 0)
            self.state: State = tuple(t.clone() for t in form.request(nothing.long(), nothing))

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.form.candidates(self.state, ids, numbers)


class _Request(nn.Module):
    def __init__(self, form: ServedTransformer) -> None:
        super().__init__()
        self.form = form

    def forward(self, ids: Tensor, numbers: Tensor) -> State:
        return self.form.request(ids, numbers)


class _Candidates(nn.Module):
    def __init__(self, form: ServedTransformer) -> None:
        super().__init__()
        self.form = form

    def forward(self, ids: Tensor, numbers: Tensor, *state: Tensor) -> Tensor:
        return self.form.candidates(state, ids, numbers)
