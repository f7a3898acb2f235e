"""Baselines for LMUFormer: a small residual convolutional network, and a network around any layer of the core.

``ResidualCNN``: a stem, then causal blocks ``relu(x + N(conv(relu(N(conv(x))))))`` of kernel 3 with dilations 1, 2, 4 …

``LayerNetwork``: a stem, then blocks ``x += layer(N(x)); x += ffn(x)`` around a registered layer. ``softmax`` with a
window is the control for the Legendre memory.

N is batch norm. Both use the stem of LMUFormer. Both are without spikes, unless the layer spikes; batch norms inside
the layer are not folded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from manyheads.core.blocks.batch_norm import SequenceBatchNorm, affine_of
from manyheads.core.blocks.causal_convolution import CausalConvolution
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.layer import Layer
from manyheads.core.mask import Mask
from manyheads.core.registry import find_layer, list_layers
from manyheads.core.state import State
from manyheads.kws.models.mixer import FeedForward
from manyheads.kws.models.network import NetworkConfig, Passage, Product, step_macs
from manyheads.kws.models.sites import ChannelAffine, add_to, fold_norm, normalise
from manyheads.kws.models.staged import Stage, Staged
from manyheads.kws.models.stem import Stem

Option = bool | int | float | str
# Default arguments that make a layer strictly causal with a state of constant size.
OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "softmax": {"heads": 4, "causal": True, "window": 48},
    "transformer-xl": {"heads": 4, "memory": 48},
    "gtrxl": {"heads": 4, "memory": 48},
}


@dataclass(frozen=True)
class ResidualCNNConfig(NetworkConfig):
    """A small causal residual network. The receptive field of four blocks is 60 steps, 1.2 s at stride 2."""

    kind: ClassVar[str] = "residual-cnn"

    stem: Literal["1d", "2d"] = "2d"
    channels: int = 48
    kernels: tuple[int, ...] = (5, 5, 3)
    """Kernel sizes of the "1d" stem."""
    stride: Literal[1, 2] = 2
    """Frames per step."""
    lookahead: int = 0
    """Look-ahead of the stem in frames."""
    depth: int = 4
    """Number of blocks; the n-th has dilation 2^(n - 1)."""
    dropout: float = 0.0

    def make(self, bins: int, labels: Sequence[str]) -> ResidualCNN:
        return ResidualCNN(self, bins, labels)


class ConvolutionBlock(Stage):
    """Residual block: ``relu(x + N(conv(relu(N(conv(x))))))``."""

    def __init__(self, name: str, channels: int, dilation: int) -> None:
        super().__init__()
        self.name = name
        self.first = CausalConvolution(channels, channels, 3, dilation=dilation, bias=False)
        self.second = CausalConvolution(channels, channels, 3, dilation=dilation, bias=False)
        self.first_norm: nn.Module = SequenceBatchNorm(channels)
        self.second_norm: nn.Module = SequenceBatchNorm(channels)

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> State:
        convolutions = (self.first, self.second)
        return tuple(c.init_state(batch, device=device, dtype=dtype) for c in convolutions)

    def forward(self, x: Tensor, state: State, passage: Passage, delay: int, rate: int) -> tuple[Tensor, State]:
        first, second = state
        x, real = passage.blank(x, delay, rate), passage.real(x.shape[1], delay, rate)
        y, first = self.first(x, first)
        y = passage.blank(torch.relu(normalise(self.first_norm, y, real)), delay, rate)
        y, second = self.second(y, second)
        return torch.relu(x + normalise(self.second_norm, y, real)), (first, second)

    def products(self) -> list[Product]:
        return [Product(f"{self.name}.{n + 1}", step_macs(c), None) for n, c in enumerate((self.first, self.second))]

    def fold(self) -> None:
        self.first_norm = fold_norm(self.first, self.first_norm)
        self.second_norm = fold_norm(self.second, self.second_norm)


class ResidualCNN(Staged):
    """See the module and :class:`ResidualCNNConfig`."""

    def __init__(self, config: ResidualCNNConfig, bins: int, labels: Sequence[str]) -> None:
        super().__init__(config, bins, labels, stride=config.stride, lookahead=config.lookahead)
        if config.depth < 1 or config.channels < 1:
            raise ArgumentError(
                f"residual-cnn: found depth {config.depth} and {config.channels} channels, expected 1 or more"
            )
        self.stem = _stem(config, bins)
        self.blocks = nn.ModuleList(
            ConvolutionBlock(f"block{n + 1}", config.channels, 2**n) for n in range(config.depth)
        )
        self.add_head(config.channels, dropout=config.dropout)


@dataclass(frozen=True)
class LayerNetworkConfig(NetworkConfig):
    """A network around any registered layer that is strictly causal and has a state of constant size."""

    kind: ClassVar[str] = "layer"

    layer: str = "softmax"
    """Name of the layer, from ``manyheads list --causal strict --streaming``."""
    options: dict[str, Option] = field(default_factory=dict)
    """Arguments of the layer; they replace the defaults that make it causal with a constant state."""
    stem: Literal["1d", "2d"] = "2d"
    channels: int = 64
    kernels: tuple[int, ...] = (5, 5, 3)
    """Kernel sizes of the "1d" stem."""
    stride: Literal[1, 2] = 2
    """Frames per step."""
    lookahead: int = 0
    """Look-ahead of the stem in frames."""
    depth: int = 1
    """Number of blocks."""
    ratio: int = 3
    """Width of the feed-forward network divided by the channels."""
    dropout: float = 0.0

    def make(self, bins: int, labels: Sequence[str]) -> LayerNetwork:
        return LayerNetwork(self, bins, labels)

    def renamed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # in release 0.1 the block itself contained norm and layer
        new = {"norm": "mixer.layer_norm", "layer": "mixer.layer"}
        old = re.compile(r"^(blocks\.\d+)\.(norm|layer)\.")
        return {old.sub(lambda m: f"{m[1]}.{new[m[2]]}.", name): tensor for name, tensor in tensors.items()}


class LayerBlock(Stage):
    """A residual block with batch norm around the layer, then a residual feed-forward network as in LMUFormer, with its
    norms after the linear maps."""

    def __init__(self, prefix: str, layer: Layer, channels: int, ratio: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.mixer = ResidualBlock(layer, None, make_norm=SequenceBatchNorm)
        self.ffn = FeedForward(prefix, channels, ratio * channels, spiking=False)

    def init_state(self, batch: int, *, device: torch.device | None, dtype: torch.dtype | None) -> State:
        return self.mixer.init_state(batch, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: State, passage: Passage, delay: int, rate: int) -> tuple[Tensor, State]:
        real = passage.real(x.shape[1], delay, rate)
        x, state, aux = self.mixer(x, state, mask=None if real is None else Mask(padding=real))
        for name, value in aux.items():
            if name.startswith("spike_rate"):
                passage.rates[f"{self.prefix}{name}"] = value
        y, _ = self.ffn(x, ((), ()), passage, delay, rate)
        return add_to(x, y), state

    def products(self) -> list[Product]:
        layer = self.mixer.layer
        flops = layer.info.flops(layer.config, (1,))
        return [Product(f"{self.prefix}{layer.info.name}", round(flops / 2), None), *self.ffn.products()]

    def fold(self) -> None:
        if isinstance(self.mixer.layer_norm, SequenceBatchNorm):
            self.mixer.layer_norm = ChannelAffine(*affine_of(self.mixer.layer_norm))
        self.ffn.fold()


class LayerNetwork(Staged):
    """See the module and :class:`LayerNetworkConfig`.

    Raises:
        UnknownNameError: a layer that the core does not have.
        ArgumentError: a layer that is not strictly causal as configured, a growing state, or unknown arguments.
    """

    def __init__(self, config: LayerNetworkConfig, bins: int, labels: Sequence[str]) -> None:
        super().__init__(config, bins, labels, stride=config.stride, lookahead=config.lookahead)
        self.stem = _stem(config, bins)
        prefixes = [f"block{n + 1}." if config.depth > 1 else "" for n in range(config.depth)]
        self.blocks = nn.ModuleList(
            LayerBlock(prefix, streaming_layer(config), config.channels, config.ratio) for prefix in prefixes
        )
        self.add_head(config.channels, dropout=config.dropout)


def streaming_layer(config: LayerNetworkConfig) -> Layer:
    """Build the layer; raise :class:`ArgumentError` if it is not strictly causal with a state of constant size."""
    options = {**OPTIONS.get(config.layer, {}), **config.options}
    kind = find_layer(config.layer)
    layer = kind(config.channels, **options)
    if not layer.is_causal or layer.state_kind not in ("recurrent", "window"):
        able = sorted(info.name for info in list_layers(causal="strict", streaming=True))
        raise ArgumentError(
            f"layer: found {config.layer!r} with {options or 'its defaults'}, causality {layer.causality!r}, state "
            f"{layer.state_kind!r}; expected a strictly causal one whose state does not grow: {', '.join(able)}, the "
            "attentions with causal=True and a window"
        )
    return layer


def _stem(config: ResidualCNNConfig | LayerNetworkConfig, bins: int) -> Stem:
    return Stem(
        bins,
        config.channels,
        form=config.stem,
        kernels=config.kernels,
        stride=config.stride,
        lookahead=config.lookahead,
        spiking=False,
        published=False,
    )
