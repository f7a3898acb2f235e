"""iTransformer: Inverted Transformers Are Effective for Time Series Forecasting (2310.06625), around any layer.

    z_c = (x_c - mean x_c) / sd x_c,   one token for each channel c: h_c = z_c W + b
    y_c = (LN(blocks(h))_c V + b) sd x_c + mean x_c

The layer mixes channels; the feed-forward network works along time. Blocks are post-norm.

Shapes: N windows, L look-back, H horizon, C channels.

Differs from the paper: calendar features are not tokens, so that the model fits any series.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from manyheads.core.backbones.stack import layer_for_grid
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.forecasting.models.instance_norm import normalised
from manyheads.forecasting.models.networks import NetworkConfig


@dataclass(frozen=True)
class InvertedConfig(NetworkConfig):
    """An encoder whose tokens are the channels."""

    width: int = 128
    expansion: float = 1.0

    def make(self, look_back: int, horizon: int, channels: int) -> Inverted:
        return Inverted(self, look_back, horizon, channels)


class Inverted(nn.Module):
    """iTransformer, ``(N, L, C)`` -> ``(N, H, C)``; the module docstring has the equations."""

    def __init__(self, config: InvertedConfig, look_back: int, horizon: int, channels: int) -> None:
        super().__init__()
        if config.depth < 1:
            raise ArgumentError(f"itransformer: depth: found {config.depth}, expected 1 or more")
        dim = config.width
        self.embedding, self.dropout = nn.Linear(look_back, dim), nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                layer_for_grid(config.layer, dim, (channels,), heads=config.heads, options=config.options),
                FeedForward(dim, round(config.expansion * dim)),
                norm="post",
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, horizon)

    def forward(self, x_NLC: Tensor) -> Tensor:
        z_NLC, mean, deviation = normalised(x_NLC)
        h = self.dropout(self.embedding(z_NLC.transpose(1, 2)))
        for block in self.blocks:
            h = block(h).y
        return self.head(self.norm(h)).transpose(1, 2) * deviation + mean
