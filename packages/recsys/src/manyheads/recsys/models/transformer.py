"""Transformers over fields: vanilla, heterogeneous, Hiformer (2311.05884), each alone or beside a tower ("+").

    X = [e_1 … e_T, t_1 … t_K],   layers,   logit_k = w_k . LayerNorm(X)_{T + k} + b_k   (+ tower(concat e)_k)

One learned token a task is added to the fields' and read by its head. As only these tokens feed a head, the last layer
computes their rows alone, exactly and with the parameters of these rows only. The layers with weights of their own for
each field come from ``manyheads.core``; the vanilla one has the same block with weights shared by the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.field_linear import FieldLinear
from manyheads.core.errors import ArgumentError
from manyheads.core.layers.hiformer import Heterogeneous, Hiformer
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.common import Config, Tower
from manyheads.recsys.models.global_batch import Dropout

LayerName = Literal["vanilla", "heterogeneous", "hiformer"]


class VanillaLayer(nn.Module):
    """A pre-norm Transformer layer whose weights all fields share; ``last`` computes the last ``queries`` rows only."""

    def __init__(self, dim: int, *, heads: int, expansion: int, queries: int) -> None:
        super().__init__()
        self.queries = queries
        self.norm = nn.LayerNorm(dim)
        self.attention = SoftmaxAttention(dim, heads=heads, bias=True, context_dim=dim)
        self.inner_norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, expansion * dim)
        self.outer = nn.Linear(expansion * dim, dim)

    def last(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` -> ``(B, queries, D)``."""
        normed = self.norm(x)
        rows = x[:, -self.queries :] + self.attention(normed[:, -self.queries :], context=normed).y
        return rows + self.outer(functional.gelu(self.inner(self.inner_norm(rows))))

    def weights(self, x: Tensor) -> Tensor:
        """What :meth:`last` attends to, ``(B, H, queries, T)``."""
        normed = self.norm(x)
        return mixing_matrix(self.attention, normed[:, -self.queries :], context=normed)


class FieldTransformer(nn.Module):
    """Layers over the fields' tokens and the tasks'; see the module."""

    def __init__(self, layout: Layout, config: TransformerConfig) -> None:
        super().__init__()
        if config.layers < 1:
            raise ArgumentError(f"{config.layer}: layers: found {config.layers}, expected 1 or more")
        if config.rank is not None and config.layer != "hiformer":
            raise ArgumentError(f"{config.layer}: rank: found {config.rank}, expected None: only hiformer has one")
        if config.heads < 1 or config.dim % config.heads:
            raise ArgumentError(
                f"{config.layer}: heads: found {config.heads}, expected a divisor of dim = {config.dim}"
            )
        self.tokens = config.tokens(layout)
        tasks, dim = len(layout.tasks), config.dim
        self.flat = config.head == "flatten"
        total = self.tokens.tokens + (0 if self.flat else tasks)
        self.task_tokens = None if self.flat else nn.Parameter(torch.randn(tasks, dim) * 0.02)
        self.positions = nn.Parameter(torch.zeros(total, dim)) if config.positions else None
        self.dropout = Dropout(config.dropout)
        pruned = tasks if config.prune and not self.flat else total
        self.layers = nn.ModuleList(
            _layer(config, total, pruned if index == config.layers - 1 else total) for index in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(total * dim, tasks) if self.flat else FieldLinear(tasks, dim, 1)
        self.tower = None
        if config.tower:
            inputs = self.tokens.tokens * dim
            self.tower = Tower(inputs, config.tower, tasks, dropout=config.tower_dropout, batch_norm=config.batch_norm)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        fields = self.tokens(ids, numbers)
        x = self._sequence(fields)
        for layer in self.layers:
            x = layer.last(x)  # ty: ignore[not-callable]
        if self.task_tokens is None:
            logits = self.head(self.norm(x).flatten(1))
        else:
            logits = self.head(self.norm(x[:, -self.task_tokens.shape[0] :])).squeeze(-1)
        return logits if self.tower is None else logits + self.tower(fields.flatten(1))

    def attention(self, ids: Tensor, numbers: Tensor) -> list[Tensor]:
        """What each layer attends to, ``(B, H, Q, T + K)``: Q is K, the task tokens' rows, in a pruned layer."""
        x, found = self._sequence(self.tokens(ids, numbers)), []
        for layer in self.layers:
            found.append(layer.weights(x) if isinstance(layer, VanillaLayer) else mixing_matrix(layer, x))  # ty: ignore[invalid-argument-type]
            x = layer.last(x)  # ty: ignore[not-callable]
        return found

    def _sequence(self, fields: Tensor) -> Tensor:
        """The fields' tokens, then the tasks': ``(B, T + K, D)``."""
        x = fields
        if self.task_tokens is not None:
            x = torch.cat([x, self.task_tokens.expand(x.shape[0], -1, -1)], 1)
        if self.positions is not None:
            x = x + self.positions
        return self.dropout(x)


def _layer(config: TransformerConfig, tokens: int, queries: int) -> nn.Module:
    if config.layer == "vanilla":
        return VanillaLayer(config.dim, heads=config.heads, expansion=config.expansion, queries=queries)
    if config.layer == "heterogeneous":
        return Heterogeneous(config.dim, fields=tokens, heads=config.heads, expansion=config.expansion, queries=queries)
    return Hiformer(
        config.dim, fields=tokens, rank=config.rank, heads=config.heads, expansion=config.expansion, queries=queries
    )


@dataclass(frozen=True)
class TransformerConfig(Config):
    """A Transformer over fields."""

    dim: int = 16
    layer: LayerName = "hiformer"
    layers: int = 2
    heads: int = 2
    expansion: int = 2
    """Width of the feed-forward part over the width."""
    rank: int | None = None
    """hiformer: rank of the composite projections; full without."""
    head: Literal["task", "flatten"] = "task"
    """flatten: a linear map over all fields' rows instead of task tokens; nothing is pruned then."""
    prune: bool = True
    """Compute only the tasks' rows in the last layer; the other rows feed nothing."""
    positions: bool = False
    """A learned vector for each field; vanilla layers cannot tell fields apart otherwise."""
    dropout: float = 0.0
    """Of the tokens."""
    tower: tuple[int, ...] = ()
    """Widths of a tower beside the layers."""
    tower_dropout: float = 0.2
    batch_norm: bool = True
    module = FieldTransformer
