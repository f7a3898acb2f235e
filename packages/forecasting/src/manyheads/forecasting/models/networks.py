"""The registry of networks, their configs, and any registered layer of the core inside them.

A network is one file with a frozen config and one entry of :data:`NETWORKS`. ``config.make(look_back, horizon,
channels)`` returns a module from ``(N, L, C)`` to ``(N, H, C)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.lab.domain import load

if TYPE_CHECKING:
    from torch import nn

    from manyheads.lab.training.experiment import Splits

_HERE = "manyheads.forecasting.models"


@dataclass(frozen=True)
class NetworkConfig:
    """The config fields of every network."""

    layer: str = "softmax"
    """The layer that mixes the tokens, a name of ``manyheads list``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the layer; they override those that the network sets."""
    width: int = 32
    """Width of a token."""
    depth: int = 2
    """Blocks of the encoder."""
    expansion: float = 2.0
    """Hidden width of the feed-forward network, as a multiple of the width."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.1
    """Dropout rate."""

    def make(self, look_back: int, horizon: int, channels: int) -> nn.Module:
        """Build the module, with weights from torch's global random generator.

        Raises :class:`ArgumentError` for a config that cannot be built.
        """
        raise NotImplementedError

    def build(self, splits: Splits) -> nn.Module:
        """Build the module for the windows of an experiment."""
        return self.make(*(splits.facts[name] for name in ("look_back", "horizon", "channels")))


@dataclass(frozen=True)
class DecoderConfig(NetworkConfig):
    """The config fields of every network with a decoder."""

    decoder_depth: int = 1
    """Blocks of the decoder."""
    label: int | None = None
    """Known steps at the start of the decoder input (label length); half of the look-back by default."""

    def label_of(self, look_back: int) -> int:
        """The label length in steps.

        Raises :class:`ArgumentError` for a label longer than the look-back, and for depths below 1.
        """
        label = look_back // 2 if self.label is None else self.label
        if not 0 <= label <= look_back or min(self.depth, self.decoder_depth) < 1:
            raise ArgumentError(
                f"{self.layer}: found label {label}, depth {self.depth} and decoder_depth {self.decoder_depth}, "
                f"expected a label of 0 to the look-back {look_back} and depths of 1 or more"
            )
        return label


@dataclass(frozen=True)
class NetworkSpec:
    """An entry of the registry of networks."""

    title: str
    paper: str  # arXiv id
    config: str  # "module:class"
    look_back: int = 96  # default look-back in steps, at most
    settings: Mapping[str, Any] = field(default_factory=dict)  # config fields
    published: Mapping[str, Any] = field(default_factory=dict)  # config fields of the published size


_LARGE = {"width": 512, "heads": 8, "expansion": 4.0, "dropout": 0.05}
NETWORKS: Mapping[str, NetworkSpec] = {
    "transformer": NetworkSpec(
        "Transformer, encoder and decoder",
        "1706.03762",
        f"{_HERE}.encoder_decoder:EncoderDecoderConfig",
        96,
        {},
        _LARGE,
    ),
    "informer": NetworkSpec(
        "Informer: ProbSparse attention, distilling",
        "2012.07436",
        f"{_HERE}.encoder_decoder:EncoderDecoderConfig",
        96,
        {"layer": "prob-sparse", "distil": True},
        _LARGE,
    ),
    "autoformer": NetworkSpec(
        "Autoformer: Auto-Correlation, decomposition",
        "2106.13008",
        f"{_HERE}.decomposed:DecomposedConfig",
        96,
        {"layer": "auto-correlation"},
        _LARGE,
    ),
    "fedformer": NetworkSpec(
        "FEDformer: Fourier blocks, decomposition",
        "2201.12740",
        f"{_HERE}.decomposed:DecomposedConfig",
        96,
        {"layer": "fourier-block", "windows": (24,)},
        _LARGE,
    ),
    "patchtst": NetworkSpec(
        "PatchTST: patches, channel independence",
        "2211.14730",
        f"{_HERE}.patches:PatchesConfig",
        336,
        {},
        {"width": 128, "heads": 16, "depth": 3, "dropout": 0.2},
    ),
    "itransformer": NetworkSpec(
        "iTransformer: a token for each channel",
        "2310.06625",
        f"{_HERE}.inverted:InvertedConfig",
        96,
        {},
        {"width": 512, "heads": 8, "expansion": 1.0},
    ),
}


def find_network(name: str) -> NetworkSpec:
    """Look a network up by name. Raises :class:`UnknownNameError` with the nearest name."""
    if name not in NETWORKS:
        raise UnknownNameError("network", name, NETWORKS)
    return NETWORKS[name]


def network_config(name: str, *, published: bool = False, **changes: Any) -> NetworkConfig:
    """The config of a network: a size for two CPU cores or the published size, with ``changes``.

    Raises :class:`UnknownNameError`, and :class:`ArgumentError` for a field that the config does not have.
    """
    spec = find_network(name)
    kind = load(spec.config)
    known = {f.name for f in fields(kind)}
    unknown = [key for key in changes if key not in known]
    if unknown:
        raise ArgumentError(
            f"{name}: {unknown[0]}: found a setting that it does not have, expected one of {sorted(known)}"
        )
    return kind(**{**spec.settings, **(spec.published if published else {}), **changes})
