"""The objective (log loss with L2), the validation metric, the reported metrics, and batched prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError, CheckpointError
from manyheads.lab.domain import load
from manyheads.recsys.features.layout import Batch, Rows
from manyheads.recsys.models import MODELS
from manyheads.recsys.models.common import Config
from manyheads.recsys.models.global_batch import everyones, summed, world
from manyheads.recsys.models.tokens import all_tables
from manyheads.recsys.training.calibration import sigmoid
from manyheads.recsys.training.metrics import all_metrics, auc


@dataclass(frozen=True)
class LogLoss:
    """Log loss (binary cross-entropy): mean over the known labels of each task, summed over tasks, plus L2.

    The L2 term is ``lambda / 2`` times the sum of squares of the embeddings.
    """

    l2: float = 0.0
    """lambda, the strength of the L2."""
    l2_on: Literal["table", "batch"] = "table"
    """table: the whole embedding tables at each step, as BARS; batch: only the rows of the batch, each once."""
    task_weights: tuple[float, ...] = ()
    """One weight per task; all 1 if empty."""
    choose_by: Literal["auc", "log_loss"] = "auc"
    """Validation metric of early stopping and of the choice of the weights; of the first task."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = self._cross_entropy(
            model(batch.ids, batch.numbers), batch.labels, ranks=world() if model.training else 1
        )
        if self.l2 and model.training:
            # the ids of the global batch: a table row counts once per step, however many ranks touch it
            ids = everyones(batch.ids) if self.l2_on == "batch" else None
            for tables in all_tables(model):
                loss = loss + self.l2 * tables.penalty(ids)
        return loss

    def monitor(self, model: nn.Module, part: Rows) -> float:
        logits = torch.from_numpy(predict_logits(model, part)).float()
        first = (part.labels[:, 0].numpy(), logits[:, 0].numpy())
        found = -auc(*first) if self.choose_by == "auc" else float("nan")
        return float(self._cross_entropy(logits, part.labels)) if np.isnan(found) else found

    def said(self, monitored: float) -> str:
        """Describe the result of :meth:`monitor` for the progress output."""
        return f"validation AUC {-monitored:.4f}" if monitored < 0 else f"validation log-loss {monitored:.4f}"

    def metrics(self, model: nn.Module, part: Rows) -> dict[str, float]:
        logits = predict_logits(model, part)
        groups = None if part.groups is None else part.groups.numpy()
        found: dict[str, float] = {}
        for task in range(logits.shape[1]):
            labels = part.labels[:, task].numpy()
            known = ~np.isnan(labels)
            own = None if groups is None else groups[known]
            values = all_metrics(labels[known], sigmoid(logits[known, task]), own)
            found |= values if task == 0 else {f"{name} of task {task + 1}": v for name, v in values.items()}
        return found

    def _cross_entropy(self, logits: Tensor, labels: Tensor, *, ranks: int = 1) -> Tensor:
        """Return the loss; with several ``ranks``, scaled so that its mean over ranks is that of the global batch."""
        tasks = logits.shape[1]
        if tasks == 1:
            return functional.binary_cross_entropy_with_logits(logits, labels)
        weights = self.task_weights or (1.0,) * tasks
        if len(weights) != tasks:
            raise ArgumentError(f"task_weights: found {len(weights)}, expected one for each of the {tasks} tasks")
        # sum over tasks of weight * (sum of known losses / number of known labels in the global batch)
        known = ~torch.isnan(labels)
        each = functional.binary_cross_entropy_with_logits(logits, torch.where(known, labels, 0.0), reduction="none")
        # DDP averages over the ranks: divide by the global count / ranks, so that the average is the global mean
        count = known.sum(0).to(each.dtype) if ranks == 1 else summed(known.sum(0).to(each.dtype)) / ranks
        mean = (each * known).sum(0) / count.clamp(min=1 / ranks)
        return (mean * logits.new_tensor(weights)).sum()


@torch.no_grad()
def predict_logits(model: nn.Module, rows: Rows, *, size: int | None = None) -> np.ndarray:
    """Return logits ``(N, K)`` in float64, in batches of ``size``; leaves the model in evaluation mode.

    The default ``size`` is 512 on the CPU, so that activations stay in the cache, and 16,384 elsewhere.
    """
    model.eval()
    device = next(model.parameters()).device
    size = size or (512 if device.type == "cpu" else 16384)
    parts = [model(batch.ids.to(device), batch.numbers.to(device)).double().cpu() for batch in rows.whole(size)]
    return torch.cat(parts).numpy()


def config_from(description: Mapping[str, Any]) -> Config:
    """Read the model settings of a saved experiment.

    Raises :class:`CheckpointError` if it is no model of this package. Only known modules are imported, never one that a
    file names.
    """
    kinds = {spec.config.partition(":")[2]: spec.config for spec in MODELS.values()}
    found = str(description.get("type"))
    package, _, name = found.rpartition(".")
    if not f"{package}.".startswith("manyheads.recsys.") or name not in kinds:
        raise CheckpointError(f"model: found {found!r}, expected one of this package: train again")
    kind = load(kinds[name])
    known = {f.name for f in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in description.items() if k in known})
