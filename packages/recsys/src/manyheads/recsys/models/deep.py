"""Networks over the concatenated embeddings, with and without a factorization machine.

DNN: tower(concat e)        DeepFM (1703.04247): sum_i w_i + sum_{i<j} e_i . e_j + tower(concat e)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.common import Config, Tower, Wide, pair_sum


class DNN(nn.Module):
    """A tower over the concatenated embeddings."""

    def __init__(self, layout: Layout, config: DNNConfig) -> None:
        super().__init__()
        self.tokens = config.tokens(layout)
        self.tower = Tower(
            self.tokens.tokens * config.dim,
            config.hidden,
            len(layout.tasks),
            dropout=config.dropout,
            batch_norm=config.batch_norm,
        )

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.tower(self.tokens(ids, numbers).flatten(1))


@dataclass(frozen=True)
class DNNConfig(Config):
    """A tower over the concatenated embeddings."""

    hidden: tuple[int, ...] = (400, 400, 400)
    dropout: float = 0.2
    batch_norm: bool = True
    module = DNN


class DeepFM(DNN):
    """A factorization machine and a tower with shared embeddings; the pairwise term is shared by all tasks."""

    def __init__(self, layout: Layout, config: DeepFMConfig) -> None:
        super().__init__(layout, config)
        self.wide = Wide(layout, init_sd=config.init_sd)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        tokens = self.tokens(ids, numbers)
        return self.wide(ids, numbers) + pair_sum(tokens) + self.tower(tokens.flatten(1))


@dataclass(frozen=True)
class DeepFMConfig(DNNConfig):
    """DeepFM (1703.04247)."""

    module = DeepFM
