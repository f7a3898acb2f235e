"""FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction (2304.00902).

    x = tower_1(2 sigma(gate_1(context_1)) * e),   y = tower_2(2 sigma(gate_2(context_2)) * e),   e = concat e_i
    logit = w_x x + b_x + w_y y + b_y + sum_h x_h' W_h y_h        x_h, y_h: the H heads of x and y

The context of a gate is a separate embedding of chosen fields, or a learned vector if no field is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.common import Config, Tower, start
from manyheads.recsys.models.tokens import Tables


class FeatureGate(nn.Module):
    """Gate ``2 sigma(W_2 relu(W_1 c))`` of the context ``c``: ``(B, C)`` ids -> ``(B, outputs)``."""

    def __init__(
        self, layout: Layout, fields: tuple[str, ...], dim: int, hidden: int, outputs: int, init_sd: float
    ) -> None:
        super().__init__()
        self.context = Tables(layout, dim, init_sd=init_sd, fields=fields) if fields else None
        self.constant = None if fields else nn.Parameter(torch.zeros(1, dim))
        self.gate = nn.Sequential(nn.Linear(dim * max(1, len(fields)), hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        start(self.gate)

    def forward(self, ids: Tensor) -> Tensor:
        if self.context is not None:
            return 2.0 * torch.sigmoid(self.gate(self.context(ids).flatten(1)))
        return 2.0 * torch.sigmoid(self.gate(self.constant))


class FinalMLP(nn.Module):
    """Two gated towers and a bilinear fusion of their outputs; equations in the module."""

    def __init__(self, layout: Layout, config: FinalMLPConfig) -> None:
        super().__init__()
        for hidden in (config.first, config.second):
            if not hidden or hidden[-1] % config.heads:
                raise ArgumentError(
                    f"final-mlp: heads: found {config.heads}, expected a divisor of the last widths of both towers, "
                    f"{list(config.first)} and {list(config.second)}"
                )
        self.tokens, self.heads = config.tokens(layout), config.heads
        width, tasks = self.tokens.tokens * config.dim, len(layout.tasks)
        sides = ((config.first, config.first_context), (config.second, config.second_context))
        self.gates = nn.ModuleList(
            FeatureGate(layout, context, config.dim, config.gate_hidden, width, config.init_sd) for _, context in sides
        )
        self.towers = nn.ModuleList(
            Tower(width, hidden, None, dropout=config.dropout, batch_norm=config.batch_norm) for hidden, _ in sides
        )
        self.linear = nn.ModuleList(nn.Linear(hidden[-1], tasks) for hidden, _ in sides)
        start(self.linear)
        shape = (tasks, self.heads, config.first[-1] // self.heads, config.second[-1] // self.heads)
        self.bilinear = nn.Parameter(torch.empty(shape))
        flat = shape[1] * shape[2] * shape[3]
        nn.init.normal_(self.bilinear, std=(2.0 / (flat + tasks)) ** 0.5)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        flat = self.tokens(ids, numbers).flatten(1)
        x, y = (tower(flat * gate(ids)) for tower, gate in zip(self.towers, self.gates, strict=True))
        x_BHI, y_BHJ = (part.unflatten(1, (self.heads, -1)) for part in (x, y))
        pairs = torch.einsum("bhi,khij,bhj->bk", x_BHI, self.bilinear, y_BHJ)
        return self.linear[0](x) + self.linear[1](y) + pairs


@dataclass(frozen=True)
class FinalMLPConfig(Config):
    """FinalMLP (2304.00902)."""

    first: tuple[int, ...] = (400,)
    second: tuple[int, ...] = (100,)
    heads: int = 5
    first_context: tuple[str, ...] = ()
    """Context fields of the first gate, such as the user."""
    second_context: tuple[str, ...] = ()
    """Context fields of the second gate, such as the item."""
    gate_hidden: int = 400
    dropout: float = 0.4
    batch_norm: bool = True
    module = FinalMLP
