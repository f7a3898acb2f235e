"""Logistic regression and the Factorization Machine (S. Rendle, ICDM 2010).

LR: b + sum_i w_i        FM: LR + sum_{i<j} e_i . e_j
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.common import Config, Wide, pair_sum


class LogisticRegression(nn.Module):
    """Logistic regression: one weight per value of a field."""

    def __init__(self, layout: Layout, config: LRConfig) -> None:
        super().__init__()
        self.wide = Wide(layout, init_sd=config.init_sd)
        self.bias = nn.Parameter(torch.zeros(len(layout.tasks)))

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.wide(ids, numbers) + self.bias


@dataclass(frozen=True)
class LRConfig(Config):
    """Logistic regression; ``dim`` is not used."""

    module = LogisticRegression


class FactorizationMachine(nn.Module):
    """Logistic regression plus a pairwise term, which all tasks share."""

    def __init__(self, layout: Layout, config: FMConfig) -> None:
        super().__init__()
        self.wide = Wide(layout, init_sd=config.init_sd)
        self.bias = nn.Parameter(torch.zeros(len(layout.tasks)))
        self.tokens = config.tokens(layout)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.wide(ids, numbers) + self.bias + pair_sum(self.tokens(ids, numbers))


@dataclass(frozen=True)
class FMConfig(Config):
    """Factorization machine."""

    init_sd: float = 0.01
    """Standard deviation of the initial embeddings; larger than elsewhere, as products of tiny numbers train slowly."""
    module = FactorizationMachine
