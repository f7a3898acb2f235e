"""Autoformer and FEDformer (2106.13008, 2201.12740) as forecasters: series decomposition, around any layer.

    encoder    blocks that remove the trend (moving average) after each sublayer, then the seasonal norm
    decoder    seasonal part starts as [seasonal(x)_{L-label+1 … L}, 0 … 0]
               trend starts as [trend(x)_{L-label+1 … L}, mean x … mean x]
               each block removes a trend t_m of width D and adds Conv_3(t_m) to the trend
    y = seasonal W + b + trend, the last H steps

The cross-attention of the decoder is Auto-Correlation in Autoformer and frequency-enhanced attention in FEDformer; with
any other layer it is softmax attention.

Shapes: N windows, L look-back, H horizon, C channels.

Differs from the papers: no calendar features are embedded, so that the model fits any series.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyheads.core.backbones.stack import layer_for_grid
from manyheads.core.blocks.decomposition import DecompositionBlock, SeasonalNorm, SeriesDecomposition
from manyheads.core.blocks.embeddings import ValueEmbedding
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.layer import Layer
from manyheads.core.layers.auto_correlation import AutoCorrelation
from manyheads.core.layers.fourier_cross import FourierCrossAttention
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.forecasting.models.networks import DecoderConfig


@dataclass(frozen=True)
class DecomposedConfig(DecoderConfig):
    """Encoder and decoder with series decomposition into a seasonal part and a trend."""

    windows: tuple[int, ...] = (25,)
    """Lengths of the moving averages that give the trend."""

    def make(self, look_back: int, horizon: int, channels: int) -> Decomposed:
        return Decomposed(self, look_back, horizon, channels)


class Decomposed(nn.Module):
    """Autoformer or FEDformer, ``(N, L, C)`` -> ``(N, H, C)``; the module docstring has the equations."""

    def __init__(self, config: DecomposedConfig, look_back: int, horizon: int, channels: int) -> None:
        super().__init__()
        self.label = label = config.label_of(look_back)
        self.horizon, dim = horizon, config.width
        self.decompose = SeriesDecomposition(*config.windows)
        self.encoder_embedding, self.decoder_embedding = ValueEmbedding(channels, dim), ValueEmbedding(channels, dim)
        self.dropout = nn.Dropout(config.dropout)
        decoder_steps = label + horizon
        self.encoder = nn.ModuleList(_block(config, look_back) for _ in range(config.depth))
        self.decoder = nn.ModuleList(
            _block(config, decoder_steps, cross=_cross(config, decoder_steps, look_back))
            for _ in range(config.decoder_depth)
        )
        self.trends = nn.ModuleList(
            nn.Conv1d(dim, channels, 3, padding=1, padding_mode="circular", bias=False) for _ in self.decoder
        )
        self.encoder_norm, self.decoder_norm = SeasonalNorm(dim), SeasonalNorm(dim)
        self.head = nn.Linear(dim, channels)

    def forward(self, x_NLC: Tensor) -> Tensor:
        seasonal, trend = self.decompose(x_NLC)
        encoded = self.dropout(self.encoder_embedding(x_NLC))
        for block in self.encoder:
            encoded, _ = block(encoded)
        encoded = self.encoder_norm(encoded)
        first = x_NLC.shape[1] - self.label
        mean = x_NLC.mean(1, keepdim=True).expand(-1, self.horizon, -1)
        trend = torch.cat([trend[:, first:], mean], 1)
        decoded = torch.cat([seasonal[:, first:], torch.zeros_like(mean)], 1)
        decoded = self.dropout(self.decoder_embedding(decoded))
        for block, project in zip(self.decoder, self.trends, strict=True):
            decoded, removed = block(decoded, encoded)
            trend = trend + project(removed.transpose(1, 2)).transpose(1, 2)
        return (self.head(self.decoder_norm(decoded)) + trend)[:, -self.horizon :]


def _block(config: DecomposedConfig, tokens: int, *, cross: Layer | None = None) -> DecompositionBlock:
    layer = layer_for_grid(config.layer, config.width, (tokens,), heads=config.heads, options=config.options)
    hidden = round(config.expansion * config.width)
    feed_forward = FeedForward(config.width, hidden, bias=False)
    return DecompositionBlock(layer, feed_forward, config.windows, cross=cross, dropout=config.dropout)


def _cross(config: DecomposedConfig, tokens: int, context: int) -> Layer:
    dim, heads = config.width, config.heads
    if config.layer == "auto-correlation":
        return AutoCorrelation(dim, heads=heads, context_dim=dim)
    if config.layer == "fourier-block":
        return FourierCrossAttention(dim, heads=heads, context_dim=dim, length=tokens, context_length=context)
    return SoftmaxAttention(dim, heads=heads, context_dim=dim, bias=True)
