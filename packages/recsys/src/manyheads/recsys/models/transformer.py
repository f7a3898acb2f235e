"""Transformers over fields: vanilla, heterogeneous and Hiformer (2311.05884), alone or with a parallel tower ("+").

    X = [e_1 … e_T, t_1 … t_K],   layers,   logit_k = w_k . LayerNorm(X)_{T + k} + b_k   (+ tower(concat e)_k)

One learned token per task is appended to the tokens of the fields; the head of the task reads this token. The last
layer computes only the rows of the task tokens, because no head reads the other rows. The result is exact, and the
layer has only the parameters of these rows. All layers come from ``manyheads.core``: two layers with separate weights
for each field, and the residual block with weights shared by all fields (vanilla).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.field_linear import FieldLinear
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.layers.hiformer import Heterogeneous, Hiformer
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.common import Config, Tower
from manyheads.recsys.models.global_batch import Dropout

LayerName = Literal["vanilla", "heterogeneous", "hiformer"]


class FieldTransformer(nn.Module):
    """A Transformer over the tokens of the fields and the tasks; equations in the module."""

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
        self.queries = [*[total] * (config.layers - 1), pruned]
        self.layers = nn.ModuleList(_layer(config, total, queries) for queries in self.queries)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(total * dim, tasks) if self.flat else FieldLinear(tasks, dim, 1)
        self.tower = None
        if config.tower:
            inputs = self.tokens.tokens * dim
            self.tower = Tower(inputs, config.tower, tasks, dropout=config.tower_dropout, batch_norm=config.batch_norm)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        fields = self.tokens(ids, numbers)
        x = self._sequence(fields)
        for layer, queries in zip(self.layers, self.queries, strict=True):
            x = _last(layer, x, queries)
        if self.task_tokens is None:
            logits = self.head(self.norm(x).flatten(1))
        else:
            logits = self.head(self.norm(x[:, -self.task_tokens.shape[0] :])).squeeze(-1)
        return logits if self.tower is None else logits + self.tower(fields.flatten(1))

    def attention(self, ids: Tensor, numbers: Tensor) -> list[Tensor]:
        """Return the attention weights of each layer, ``(B, H, Q, T + K)``; Q = K (task tokens) in a pruned layer."""
        x, found = self._sequence(self.tokens(ids, numbers)), []
        for layer, queries in zip(self.layers, self.queries, strict=True):
            found.append(_weights(layer, x, queries))
            x = _last(layer, x, queries)
        return found

    def _sequence(self, fields: Tensor) -> Tensor:
        """Return the tokens of the fields, then those of the tasks, ``(B, T + K, D)``."""
        x = fields
        if self.task_tokens is not None:
            x = torch.cat([x, self.task_tokens.expand(x.shape[0], -1, -1)], 1)
        if self.positions is not None:
            x = x + self.positions
        return self.dropout(x)


def _layer(config: TransformerConfig, tokens: int, queries: int) -> ResidualBlock | Heterogeneous | Hiformer:
    dim, heads = config.dim, config.heads
    if config.layer == "vanilla":
        attention = SoftmaxAttention(dim, heads=heads, bias=True, context_dim=dim)
        return ResidualBlock(attention, FeedForward(dim, config.expansion * dim))
    if config.layer == "heterogeneous":
        return Heterogeneous(dim, fields=tokens, heads=heads, expansion=config.expansion, queries=queries)
    return Hiformer(dim, fields=tokens, rank=config.rank, heads=heads, expansion=config.expansion, queries=queries)


def _last(layer: nn.Module, x: Tensor, queries: int) -> Tensor:
    """Return the last ``queries`` rows of the output, ``(B, T, D)`` -> ``(B, queries, D)``."""
    if isinstance(layer, ResidualBlock):
        return layer.last(x, queries)
    assert isinstance(layer, Heterogeneous | Hiformer)
    return layer.last(x)


def _weights(layer: nn.Module, x: Tensor, queries: int) -> Tensor:
    """Return the attention weights of the last ``queries`` rows, ``(B, H, queries, T)``."""
    if isinstance(layer, ResidualBlock):
        normed = layer.layer_norm(x)
        return mixing_matrix(layer.layer, normed[:, -queries:], context=normed)
    assert isinstance(layer, Heterogeneous | Hiformer)
    return mixing_matrix(layer, x)


@dataclass(frozen=True)
class TransformerConfig(Config):
    """A Transformer over fields."""

    dim: int = 16
    layer: LayerName = "hiformer"
    layers: int = 2
    heads: int = 2
    expansion: int = 2
    """Width of the feed-forward network divided by ``dim``."""
    rank: int | None = None
    """hiformer: rank of the composite projections; None for full rank."""
    head: Literal["task", "flatten"] = "task"
    """task: task tokens; flatten: a linear map of the rows of all fields, without task tokens and pruning."""
    prune: bool = True
    """Compute only the rows of the task tokens in the last layer; no head reads the other rows."""
    positions: bool = False
    """Add a learned vector per field; without it, vanilla layers cannot distinguish fields."""
    dropout: float = 0.0
    """Dropout of the tokens."""
    tower: tuple[int, ...] = ()
    """Widths of the parallel tower; none without."""
    tower_dropout: float = 0.2
    batch_norm: bool = True
    module = FieldTransformer

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.layer != "vanilla":
            return dict(tensors)
        old = re.compile(rf"^(layers\.\d+)\.({'|'.join(_NEW_NAMES)})\.")
        return {old.sub(lambda m: f"{m[1]}.{_NEW_NAMES[m[2]]}.", name): tensor for name, tensor in tensors.items()}


# Names of the vanilla layer in release 0.1, and their names in the residual block.
_NEW_NAMES = {
    "norm": "layer_norm",
    "attention": "layer",
    "inner_norm": "feed_forward_norm",
    "inner": "feed_forward.up",
    "outer": "feed_forward.down",
}
