"""LMUFormer (2402.04882), as published and for streaming, with and without spikes.

    x = stem(frames);   for each block  x += mixer(x);  x += ffn(x);   logits = head(x)

    mixer   u = f(N W_u x + b_u),   m[t] = A' m[t - 1] + B' u[t] for each of K memories,
            h = f(N(W_m m + W_x x + b)),   N(W_o h + b_o)
    ffn     relu(N(W_2 gelu(N(W_1 x + b_1)) + b_2))                       without spikes
            W_2 S(N(W_1 S(N(x)) + b_1)) + b_2                              with
    head    W x + b;  with spikes W S(N(x)) + b

N is batch norm, f is ReLU, S are leaky integrate-and-fire neurons along the steps. With spikes, S replaces f and is
also applied to m and to the input of the mixer (threshold 0.5). Shapes: B batch, T steps, D channels, K memories,
q order.

``published=True`` is the arithmetic of the authors' code: u and h have no N without spikes, and the batch norm of the
stem follows its ReLU. Otherwise h has an N, and the batch norm of the stem precedes its ReLU.

Differs from the paper:

- Convolutions are padded on the left, unless a look-ahead is given. A look-ahead of 5 frames centres all convolutions
  of the published network.
- More than one memory, the "2d" stem and the stride are additions.
- The memory is linear and spikes follow it, as in the code; the figure of the paper differs.
- The text of the paper was not available; the source is the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.state import State
from manyheads.kws.models.mixer import FeedForward, LegendreMixer
from manyheads.kws.models.network import NetworkConfig, Passage, Product
from manyheads.kws.models.sites import add_to
from manyheads.kws.models.staged import Stage, Staged
from manyheads.kws.models.stem import Stem


@dataclass(frozen=True)
class LMUFormerConfig(NetworkConfig):
    """LMUFormer; the defaults give a small streaming network."""

    kind: ClassVar[str] = "lmuformer"

    stem: Literal["1d", "2d"] = "2d"
    channels: int = 64
    """Width D."""
    kernels: tuple[int, ...] = (5, 5, 3)
    """Kernel sizes of the "1d" stem."""
    stride: Literal[1, 2] = 2
    """Frames per step."""
    lookahead: int = 0
    """Look-ahead of the stem in frames; a multiple of the stride."""
    depth: int = 1
    """Number of blocks."""
    order: int = 16
    """Order q of the Legendre memories."""
    window: int = 40
    """Window theta of the Legendre memories, in steps."""
    memories: int = 8
    """Number of memories K."""
    ratio: int = 3
    """Width of the feed-forward network divided by D."""
    spiking: bool = False
    dropout: float = 0.0
    """Dropout before the head."""
    published: bool = False
    """Use the arithmetic of the authors' code."""

    def make(self, bins: int, labels: Sequence[str]) -> LMUFormer:
        return LMUFormer(self, bins, labels)


class Block(Stage):
    """Mixer and feed-forward network, each with a residual connection."""

    def __init__(self, prefix: str, config: LMUFormerConfig) -> None:
        super().__init__()
        self.mixer = LegendreMixer(
            prefix,
            config.channels,
            order=config.order,
            window=config.window,
            memories=config.memories,
            spiking=config.spiking,
            norm=not config.published,
        )
        self.ffn = FeedForward(prefix, config.channels, config.ratio * config.channels, spiking=config.spiking)

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> State:
        made = {"device": device, "dtype": dtype}
        return self.mixer.init_state(batch, **made), self.ffn.init_state(batch, **made)

    def forward(self, x: Tensor, state: State, passage: Passage, delay: int, rate: int) -> tuple[Tensor, State]:
        mixed, mixer = self.mixer(x, state[0], passage, delay, rate)
        x = add_to(x, mixed)
        y, ffn = self.ffn(x, state[1], passage, delay, rate)
        return add_to(x, y), (mixer, ffn)

    def products(self) -> list[Product]:
        return self.mixer.products() + self.ffn.products()

    def fold(self) -> None:
        self.mixer.fold()
        self.ffn.fold()

    def freeze_clips(self, steps: int) -> None:
        self.mixer.freeze_clips(steps)


class LMUFormer(Staged):
    """See the module and :class:`LMUFormerConfig`.

    Raises:
        ArgumentError: sizes below 1, a stride other than 1 or 2, or a look-ahead beyond that of the convolutions.
    """

    config: LMUFormerConfig

    def __init__(self, config: LMUFormerConfig, bins: int, labels: Sequence[str]) -> None:
        super().__init__(config, bins, labels, stride=config.stride, lookahead=config.lookahead)
        for name in ("channels", "depth", "order", "window", "memories", "ratio"):
            if getattr(config, name) < 1:
                raise ArgumentError(f"lmuformer: {name}: found {getattr(config, name)}, expected 1 or more")
        self.stem = Stem(
            bins,
            config.channels,
            form=config.stem,
            kernels=config.kernels,
            stride=config.stride,
            lookahead=config.lookahead,
            spiking=config.spiking,
            published=config.published,
        )
        prefixes = [f"block{n + 1}." if config.depth > 1 else "" for n in range(config.depth)]
        self.blocks = nn.ModuleList(Block(prefix, config) for prefix in prefixes)
        self.add_head(config.channels, spiking=config.spiking, dropout=config.dropout)
