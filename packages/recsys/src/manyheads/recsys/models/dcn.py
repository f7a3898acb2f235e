"""DCN V2: Improved Deep & Cross Network (2008.13535).

x_{l+1} = x_0 * (W_l x_l + b_l) + x_l,   x_0 = concat e        W_l full, or U_l V_l', or a mixture of low-rank maps:
x_{l+1} = x_0 * (sum_k g_k(x_l) U_k tanh(C_k tanh(V_k' x_l)) + b_l) + x_l,   g = softmax(G x_l)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.common import Config, Tower, start


class LowRankMixture(nn.Module):
    """Mixture of low-rank maps ``sum_k g_k(x) U_k tanh(C_k tanh(V_k' x)) + b``; with one expert ``U V' x + b``."""

    def __init__(self, width: int, rank: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.down = nn.Linear(width, experts * rank, bias=False)
        if experts > 1:
            self.core = nn.Parameter(torch.empty(experts, rank, rank).normal_(std=rank**-0.5))
            self.gate = nn.Linear(width, experts, bias=False)
        self.up = nn.Linear(experts * rank, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.experts == 1:
            return self.up(self.down(x))
        hidden = torch.tanh(self.down(x)).unflatten(1, (self.experts, -1))
        hidden = torch.tanh(torch.einsum("bkr,ksr->bks", hidden, self.core))
        return self.up((hidden * self.gate(x).softmax(1).unsqueeze(-1)).flatten(1))


class DCNv2(nn.Module):
    """Cross layers in parallel with a tower, or stacked below it; equations in the module."""

    def __init__(self, layout: Layout, config: DCNv2Config) -> None:
        super().__init__()
        if config.layers < 1:
            raise ArgumentError(f"dcnv2: layers: found {config.layers}, expected 1 or more")
        if config.experts > 1 and config.rank is None:
            raise ArgumentError(f"dcnv2: rank: found None with experts={config.experts}, expected 1 or more")
        self.tokens = config.tokens(layout)
        width, rank = self.tokens.tokens * config.dim, config.rank
        self.cross = nn.ModuleList(
            nn.Linear(width, width) if rank is None else LowRankMixture(width, rank, config.experts)
            for _ in range(config.layers)
        )
        self.tower = Tower(width, config.hidden, None, dropout=config.dropout, batch_norm=config.batch_norm)
        self.parallel = config.structure == "parallel"
        self.output = nn.Linear(self.tower.outputs + (width if self.parallel else 0), len(layout.tasks))
        start(self.cross)
        start(self.output)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        first = self.tokens(ids, numbers).flatten(1)
        x = first
        for layer in self.cross:
            x = first * layer(x) + x
        return self.output(torch.cat([x, self.tower(first)], 1) if self.parallel else self.tower(x))


@dataclass(frozen=True)
class DCNv2Config(Config):
    """DCN V2 (2008.13535)."""

    layers: int = 4
    rank: int | None = None
    """Rank of the cross matrices; None for full matrices."""
    experts: int = 1
    """Number of experts; more than one gives a gated mixture of low-rank cross layers."""
    structure: Literal["parallel", "stacked"] = "parallel"
    hidden: tuple[int, ...] = (400, 400, 400)
    dropout: float = 0.4
    batch_norm: bool = True
    module = DCNv2
