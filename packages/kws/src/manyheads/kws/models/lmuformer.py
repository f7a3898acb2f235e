"""LMUFormer (2402.04882), as published and as it streams, with spikes and without.

    x = stem(frames);   for each block  x += mixer(x);  x += ffn(x);   logits = head(x)

    mixer   u = f(N W_u x + b_u),   m[t] = A' m[t - 1] + B' u[t] for each of K memories,
            h = f(N(W_m m + W_x x + b)),   N(W_o h + b_o)
    ffn     relu(N(W_2 gelu(N(W_1 x + b_1)) + b_2))                       without spikes
            W_2 S(N(W_1 S(N(x)) + b_1)) + b_2                              with
    head    W x + b;  with spikes W S(N(x)) + b

N batch norm, f ReLU; with spikes S, leaky integrate-and-fire neurons along the steps, stands for f, on m and at the
mixer's entry (threshold 0.5). Shapes: B batch, T steps, D channels, K memories, q order.

``published=True`` is the arithmetic of the paper's code: no N on u and h without spikes, batch norm after the ReLU of
the stem. Otherwise h has its N, and the stem's N comes before its ReLU. Differs from the paper: convolutions are
left-padded unless a look-ahead is asked for (5 frames centre all convolutions of the published size); more than one
memory, the "2d" stem and a stride are ours; the memory is linear and spikes after it, as in the code and unlike the
figure. The body of the paper could not be read.
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
from manyheads.kws.models.staged import Stage, Staged
from manyheads.kws.models.stem import Stem


@dataclass(frozen=True)
class LMUFormerConfig(NetworkConfig):
    """The family; the defaults are a small streaming network."""

    kind: ClassVar[str] = "lmuformer"

    stem: Literal["1d", "2d"] = "2d"
    channels: int = 64
    """Width D."""
    kernels: tuple[int, ...] = (5, 5, 3)
    """Of the "1d" stem."""
    stride: Literal[1, 2] = 2
    """Frames a step."""
    lookahead: int = 0
    """Frames that the stem may look ahead; a multiple of the stride."""
    depth: int = 1
    """Blocks."""
    order: int = 16
    """q: numbers that each memory holds."""
    window: int = 40
    """Steps that a memory reaches back."""
    memories: int = 8
    """K."""
    ratio: int = 3
    """Width of the feed-forward network over D."""
    spiking: bool = False
    dropout: float = 0.0
    """Before the head."""
    published: bool = False
    """The arithmetic of the paper's code."""

    def make(self, bins: int, labels: Sequence[str]) -> LMUFormer:
        return LMUFormer(self, bins, labels)


class Block(Stage):
    """Mixer and feed-forward network, each beside a residual path."""

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
        x = x + mixed
        y, ffn = self.ffn(x, state[1], passage, delay, rate)
        return x + y, (mixer, ffn)

    def products(self) -> list[Product]:
        return self.mixer.products() + self.ffn.products()

    def fold(self) -> None:
        self.mixer.fold()
        self.ffn.fold()


class LMUFormer(Staged):
    """See the module and :class:`LMUFormerConfig`.

    Raises:
        ArgumentError: sizes below 1, a stride other than 1 or 2, a look-ahead that the convolutions cannot take.
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
