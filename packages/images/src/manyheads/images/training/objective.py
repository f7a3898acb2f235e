"""Cross-entropy with label smoothing, accuracy in percent, and the classifier file of a trained seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.images.classifier import FILE, ImageClassifier
from manyheads.images.training.data import ImageBatch, ImagePart
from manyheads.lab.training.environment import first_process
from manyheads.lab.training.experiment import Splits

BATCH = 64


@dataclass(frozen=True)
class ImageLoss:
    """Cross-entropy over the labels."""

    label_smoothing: float = 0.05
    """Label smoothing."""

    def loss(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Return the scalar loss of a batch."""
        return functional.cross_entropy(model(batch.images), batch.targets, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def metrics(self, model: nn.Module, part: ImagePart) -> dict[str, float]:
        """Return accuracy in percent and number of pictures."""
        device, right = next(model.parameters()).device, 0
        for indices in torch.arange(len(part)).split(BATCH):
            images, targets = part.batch(indices)
            right += int((model(images.to(device)).argmax(1).cpu() == targets).sum())
        return {"accuracy": 100 * right / max(len(part), 1), "pictures": float(len(part))}

    def after(self, model: nn.Module, splits: Splits, folder: Path) -> None:
        """Write the classifier file."""
        if first_process():
            ImageClassifier.of(model, splits.facts).save(folder / FILE)
