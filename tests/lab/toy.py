"""A small experiment for the tests, with everything that makes resuming hard: dropout, momentum, shuffling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from manyheads.lab.training.experiment import Budget, Experiment, Source, Splits
from manyheads.lab.training.optimisers import Optimiser


@dataclass(frozen=True)
class Rows:
    x: Any
    y: Any

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return self.x[indices], self.y[indices]


@dataclass(frozen=True)
class ToyData:
    rows: int = 64
    seed: int = 7

    def open(self):
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.rows, 5, generator=generator, dtype=torch.get_default_dtype())
        y = (x**2).sum(1, keepdim=True) + 0.3 * torch.randn(self.rows, 1, generator=generator)
        third = self.rows // 2
        parts = [Rows(x[a:b], y[a:b]) for a, b in ((0, third), (third, third + 16), (third + 16, self.rows))]
        return Splits(*parts, {"width": 5})


@dataclass(frozen=True)
class ToyModel:
    hidden: int = 8
    dropout: float = 0.2

    def build(self, splits):
        return nn.Sequential(
            nn.Linear(splits.facts["width"], self.hidden),
            nn.Tanh(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, 1),
        )


@dataclass(frozen=True)
class ToyObjective:
    def loss(self, model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def metrics(self, model, part):
        return {"mse": nn.functional.mse_loss(model(part.x), part.y).item()}


def toy(**changes):
    values = {
        "name": "toy",
        "data": ToyData(),
        "model": ToyModel(),
        "objective": ToyObjective(),
        "optimiser": Optimiser("adam", 0.01, schedule="cosine", clip_norm=1.0),
        "budget": Budget(epochs=4, batch_size=4, checkpoint_every=3),
        "seeds": (1, 2),
        "source": Source("0000.00000", "Table 1", {"mse": 1.5}),
    }
    return Experiment(**{**values, **changes})
