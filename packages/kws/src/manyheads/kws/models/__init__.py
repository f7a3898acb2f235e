"""Keyword networks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.kws.models.baselines import LayerNetwork, LayerNetworkConfig, ResidualCNN, ResidualCNNConfig
from manyheads.kws.models.lmuformer import LMUFormer, LMUFormerConfig
from manyheads.kws.models.network import (
    Network,
    NetworkConfig,
    NetworkOutput,
    NetworkState,
    Product,
    from_fields,
)
from manyheads.kws.models.published import from_reference, published

CONFIGS: Mapping[str, type[NetworkConfig]] = {
    config.kind: config for config in (LMUFormerConfig, ResidualCNNConfig, LayerNetworkConfig)
}

__all__ = [
    "CONFIGS",
    "LMUFormer",
    "LMUFormerConfig",
    "LayerNetwork",
    "LayerNetworkConfig",
    "Network",
    "NetworkConfig",
    "NetworkOutput",
    "NetworkState",
    "Product",
    "ResidualCNN",
    "ResidualCNNConfig",
    "config_from_json",
    "from_reference",
    "published",
]


def config_from_json(data: Mapping[str, Any]) -> NetworkConfig:
    """Read a config from the output of :meth:`NetworkConfig.to_json`.

    Raises:
        ArgumentError: no kind, or a wrong field.
        UnknownNameError: an unknown kind.
    """
    values = dict(data)
    kind = values.pop("kind", None)
    if not isinstance(kind, str):
        raise ArgumentError(f"model config: kind: found {kind!r}, expected one of {', '.join(sorted(CONFIGS))}")
    if kind not in CONFIGS:
        raise UnknownNameError("network", kind, CONFIGS)
    return from_fields(CONFIGS[kind], values)
