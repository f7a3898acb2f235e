"""Deep Learning Recommendation Model (1906.00091).

d = bottom(numbers);   logit = top([d, e_i . e_j for all i < j, d among the e])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.common import Config, Tower
from manyheads.recsys.models.tokens import Tables


class DLRM(nn.Module):
    """Inner products of all pairs of embeddings; the numeric fields together give one embedding.

    A missing number becomes 0, the mean of a standardised field, with its missing flag set.
    """

    pairs: Tensor

    def __init__(self, layout: Layout, config: DLRMConfig) -> None:
        super().__init__()
        if not layout.names:
            raise ArgumentError("dlrm: fields: found numeric ones only, expected at least one categorical")
        self.tables = Tables(layout, config.dim, init_sd=config.init_sd, shared=config.shared_tables)
        fields, numbers = len(layout.names), len(layout.numeric)
        self.bottom = None
        if numbers:
            self.bottom = Tower(2 * numbers, config.bottom, config.dim, batch_norm=config.batch_norm)
            fields += 1
        pairs = torch.tril_indices(fields, fields, -1)
        self.register_buffer("pairs", pairs[0] * fields + pairs[1], persistent=False)
        inputs = pairs.shape[1] + (config.dim if numbers else 0)
        self.top = Tower(inputs, config.hidden, len(layout.tasks), dropout=config.dropout, batch_norm=config.batch_norm)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        tokens = self.tables(ids)
        dense = None
        if self.bottom is not None:
            flags = torch.isnan(numbers).to(numbers.dtype)
            dense = self.bottom(torch.cat([torch.nan_to_num(numbers, nan=0.0), flags], 1))
            tokens = torch.cat([tokens, dense.unsqueeze(1)], 1)
        dots = (tokens @ tokens.mT).flatten(1)[:, self.pairs]
        return self.top(dots if dense is None else torch.cat([dense, dots], 1))


@dataclass(frozen=True)
class DLRMConfig(Config):
    """DLRM (1906.00091); ``numeric_tokens`` is not used."""

    init_sd: float = 0.01
    """Standard deviation of the initial embeddings; larger than elsewhere, as products of tiny numbers train slowly."""
    bottom: tuple[int, ...] = (64,)
    hidden: tuple[int, ...] = (400, 400, 400)
    dropout: float = 0.2
    batch_norm: bool = True
    module = DLRM
