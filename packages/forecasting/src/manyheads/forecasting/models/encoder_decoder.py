"""Transformer and Informer (1706.03762, 2012.07436) as forecasters: encoder and decoder, around any layer.

    E = LN(blocks(embed(x) + p)),   Informer: distilling between the blocks halves the number of tokens
    D = LN(blocks([embed(x_{L-label+1} … x_L, 0 … 0) + p] | E)),   y = the last H tokens of D W + b

Blocks are post-norm with GELU. The layer of the decoder is causal if it has a causal form. The cross-attention to E is
softmax attention.

Shapes: N windows, L look-back, H horizon, C channels.

Differs from the papers: no calendar features are embedded, so that the model fits any series. The cross-attention of
Informer is full attention, as in its own code (the code of 2205.13504 uses ProbSparse attention).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyheads.core.backbones.stack import layer_for_grid
from manyheads.core.blocks.distilling import Distilling
from manyheads.core.blocks.embeddings import SinusoidalPositions, ValueEmbedding
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.forecasting.models.networks import DecoderConfig


@dataclass(frozen=True)
class EncoderDecoderConfig(DecoderConfig):
    """An encoder of the look-back, and a decoder of the label (its last steps) and the horizon."""

    distil: bool = False
    """Halve the number of tokens between the blocks of the encoder."""

    def make(self, look_back: int, horizon: int, channels: int) -> EncoderDecoder:
        return EncoderDecoder(self, look_back, horizon, channels)


class EncoderDecoder(nn.Module):
    """Transformer or Informer, ``(N, L, C)`` -> ``(N, H, C)``; the module docstring has the equations."""

    def __init__(self, config: EncoderDecoderConfig, look_back: int, horizon: int, channels: int) -> None:
        super().__init__()
        self.label = label = config.label_of(look_back)
        self.horizon, dim = horizon, config.width
        self.encoder_embedding, self.decoder_embedding = ValueEmbedding(channels, dim), ValueEmbedding(channels, dim)
        self.positions, self.dropout = SinusoidalPositions(dim), nn.Dropout(config.dropout)
        tokens, blocks, between = look_back, [], []
        for index in range(config.depth):
            blocks.append(self._block(config, tokens))
            if config.distil and index < config.depth - 1:
                between.append(Distilling(dim))
                tokens = (tokens + 1) // 2
        self.encoder, self.distilling = nn.ModuleList(blocks), nn.ModuleList(between)
        self.decoder = nn.ModuleList(
            self._block(config, label + horizon, decoder=True) for _ in range(config.decoder_depth)
        )
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.head = nn.Linear(dim, channels)

    @staticmethod
    def _block(config: EncoderDecoderConfig, tokens: int, *, decoder: bool = False) -> ResidualBlock:
        dim, heads = config.width, config.heads
        layer = layer_for_grid(config.layer, dim, (tokens,), heads=heads, causal=decoder, options=config.options)
        return ResidualBlock(
            layer,
            FeedForward(dim, round(config.expansion * dim)),
            cross=SoftmaxAttention(dim, heads=heads, context_dim=dim, bias=True) if decoder else None,
            norm="post",
            dropout=config.dropout,
        )

    def forward(self, x_NLC: Tensor) -> Tensor:
        encoded = self.dropout(self.positions(self.encoder_embedding(x_NLC)))
        for index, block in enumerate(self.encoder):
            encoded = block(encoded).y
            if index < len(self.distilling):
                encoded = self.distilling[index](encoded)
        encoded = self.encoder_norm(encoded)
        known = x_NLC[:, x_NLC.shape[1] - self.label :]
        decoder_input = torch.cat([known, known.new_zeros(len(known), self.horizon, known.shape[2])], 1)
        decoded = self.dropout(self.positions(self.decoder_embedding(decoder_input)))
        for block in self.decoder:
            decoded = block(decoded, context=encoded).y
        return self.head(self.decoder_norm(decoded[:, -self.horizon :]))
