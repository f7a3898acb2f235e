"""A Time Series is Worth 64 Words: Long-term Forecasting with Transformers (2211.14730): PatchTST, around any layer.

    z_c = (x_c - mean x_c) / sd x_c,   each channel c on its own (channel independence)
    h = blocks(patches(z_c) W + p),    blocks: post-norm with batch norm
    y_c = (flatten(h) V + b) sd x_c + mean x_c

Shapes: N windows, L look-back, H horizon, C channels.

Differs from the paper: the instance normalisation has no learnt affine transform. The authors' attention adds the
scores of the previous block (residual attention); this one does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from manyheads.core.backbones.stack import layer_for_grid
from manyheads.core.blocks.batch_norm import SequenceBatchNorm
from manyheads.core.blocks.embeddings import LearnedPositions, PatchEmbedding
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.forecasting.models.instance_norm import normalised
from manyheads.forecasting.models.networks import NetworkConfig


@dataclass(frozen=True)
class PatchesConfig(NetworkConfig):
    """An encoder of patches, with channel independence."""

    width: int = 16
    depth: int = 3
    expansion: float = 8.0
    dropout: float = 0.3
    patch: int = 16
    """Steps in a patch."""
    stride: int = 8
    """Steps between the starts of two patches."""

    def make(self, look_back: int, horizon: int, channels: int) -> Patches:
        return Patches(self, look_back, horizon)


class Patches(nn.Module):
    """PatchTST, ``(N, L, C)`` -> ``(N, H, C)``; the module docstring has the equations."""

    def __init__(self, config: PatchesConfig, look_back: int, horizon: int) -> None:
        super().__init__()
        if config.depth < 1:
            raise ArgumentError(f"patchtst: depth: found {config.depth}, expected 1 or more")
        width = min(config.patch, look_back)
        self.embedding = PatchEmbedding(width, min(config.stride, width), config.width)
        count = self.embedding.count(look_back)
        self.positions = LearnedPositions(count, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            ResidualBlock(
                layer_for_grid(config.layer, config.width, (count,), heads=config.heads, options=config.options),
                FeedForward(config.width, round(config.expansion * config.width)),
                norm="post",
                make_norm=SequenceBatchNorm,
                dropout=config.dropout,
            )
            for _ in range(config.depth)
        )
        self.head = nn.Linear(count * config.width, horizon)

    def forward(self, x_NLC: Tensor) -> Tensor:
        z_NLC, mean, deviation = normalised(x_NLC)
        windows, steps, channels = z_NLC.shape
        h = self.dropout(self.positions(self.embedding(z_NLC.transpose(1, 2).reshape(windows * channels, steps))))
        for block in self.blocks:
            h = block(h).y
        y_NHC = self.head(h.flatten(1)).view(windows, channels, -1).transpose(1, 2)
        return y_NHC * deviation + mean
