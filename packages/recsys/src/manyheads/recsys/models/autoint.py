"""AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks (1810.11921).

    e' = relu(concat_h softmax(Q_h K_h') V_h + W_res e),   logit = w . concat e'_i  (+ tower: AutoInt+)

Q, K, V and W_res are shared by the fields and have no biases. W_res is the identity if the width does not change. The
published settings of BARS have no factor 1 / sqrt(E) in AutoInt; AutoInt+ has this factor and layer norm.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError
from manyheads.core.functional.attention import attention
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.common import Config, Tower, start

# Rows per slice of a training batch.
_ROWS = 512


class Interacting(nn.Module):
    """One interacting layer, ``(B, T, inputs)`` -> ``(B, T, outputs)``."""

    def __init__(self, inputs: int, outputs: int, heads: int, *, scale: bool, layer_norm: bool) -> None:
        super().__init__()
        self.heads, self.scale = heads, None if scale else 1.0
        self.query, self.key, self.value = (nn.Linear(inputs, outputs, bias=False) for _ in range(3))
        self.residual = nn.Linear(inputs, outputs, bias=False) if inputs != outputs else None
        self.norm = nn.LayerNorm(outputs) if layer_norm else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        mixed = attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)
        mixed = mixed + (x if self.residual is None else self.residual(x))
        return functional.relu(mixed if self.norm is None else self.norm(mixed))

    def weights(self, x: Tensor) -> Tensor:
        """Return the attention weights of the fields, ``(B, H, T, T)``."""
        q, k = self._heads(self.query(x)), self._heads(self.key(x))
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        return (scale * q @ k.mT).softmax(-1)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class AutoInt(nn.Module):
    """Interacting layers and a linear map, with a parallel tower if ``hidden`` is set (AutoInt+)."""

    def __init__(self, layout: Layout, config: AutoIntConfig) -> None:
        super().__init__()
        if config.heads < 1 or config.attention_dim % config.heads:
            raise ArgumentError(
                f"autoint: heads: found {config.heads}, expected a divisor of attention_dim = {config.attention_dim}"
            )
        if config.layers < 1:
            raise ArgumentError(f"autoint: layers: found {config.layers}, expected 1 or more")
        self.tokens = config.tokens(layout)
        widths = [config.dim] + [config.attention_dim] * config.layers
        self.layers = nn.Sequential(
            *(
                Interacting(i, o, config.heads, scale=config.scale, layer_norm=config.layer_norm)
                for i, o in itertools.pairwise(widths)
            )
        )
        tasks = len(layout.tasks)
        self.output = nn.Linear(self.tokens.tokens * config.attention_dim, tasks)
        start(self)
        self.tower = None
        if config.hidden:
            inputs = self.tokens.tokens * config.dim
            self.tower = Tower(inputs, config.hidden, tasks, dropout=config.dropout, batch_norm=config.batch_norm)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        tokens = self.tokens(ids, numbers)
        # rows are independent in these layers; slices fit into the cache, which halves the time of a training step
        rows = torch.cat([self.layers(part) for part in tokens.split(_ROWS)]) if self.training else self.layers(tokens)
        logits = self.output(rows.flatten(1))
        return logits if self.tower is None else logits + self.tower(tokens.flatten(1))

    def attention(self, ids: Tensor, numbers: Tensor) -> list[Tensor]:
        """Return the attention weights of each layer, ``(B, H, T, T)``."""
        x, found = self.tokens(ids, numbers), []
        for layer in self.layers:
            found.append(layer.weights(x))  # ty: ignore[not-callable]
            x = layer(x)
        return found


@dataclass(frozen=True)
class AutoIntConfig(Config):
    """AutoInt (1810.11921)."""

    layers: int = 6
    heads: int = 4
    attention_dim: int = 128
    scale: bool = False
    """Divide the scores by the root of the head width."""
    layer_norm: bool = False
    hidden: tuple[int, ...] = ()
    """Widths of the parallel tower of AutoInt+; none without."""
    dropout: float = 0.0
    """Dropout in the tower."""
    batch_norm: bool = True
    module = AutoInt
