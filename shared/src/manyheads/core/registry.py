"""Layers by name: every class in a module of ``core/layers`` that has an ``info`` of its own is registered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyheads.core import layers
from manyheads.core.arguments import checked
from manyheads.core.discovery import Discovered
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layer import Causality, Layer, LayerInfo

LAYERS: Mapping[str, type[Layer]] = Discovered(layers, Layer)

__all__ = ["LAYERS", "create", "find_layer", "list_layers"]


@checked
def find_layer(name: str) -> type[Layer]:
    """The class of the layer of that name; raises :class:`UnknownNameError` with the nearest."""
    if name not in LAYERS:
        raise UnknownNameError("layer", name, LAYERS)
    return LAYERS[name]


@checked
def create(name: str, dim: int, **config: Any) -> Layer:
    """A layer by name: ``create("softmax", dim=64, heads=4, causal=True)``."""
    return find_layer(name)(dim, **config)


@checked
def list_layers(
    *, causal: Causality | None = None, streaming: bool | None = None, grid_rank: int | None = None
) -> list[LayerInfo]:
    """Return the infos of the layers that can be ``causal``, that stream or do not, and that take ``grid_rank``."""
    if grid_rank is not None and grid_rank < 1:
        raise ArgumentError(f"list_layers: grid_rank: found {grid_rank}, expected 1 or more")
    infos = [layer.info for layer in LAYERS.values()]
    return [
        info
        for info in infos
        if (causal is None or causal in info.causal)
        and (streaming is None or info.streaming is streaming)
        and (grid_rank is None or grid_rank in info.grid_ranks)
    ]
