"""Layers by name, and what they can do."""

from __future__ import annotations

from typing import Any

from manyheads.core.arguments import checked
from manyheads.core.entries import LAYERS, Entry
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layer import Causality, Layer, LayerInfo

__all__ = ["LAYERS", "Entry", "create", "find_layer", "list_layers"]


@checked
def find_layer(name: str) -> Entry:
    """The entry of that name; raises :class:`UnknownNameError` with the nearest."""
    if name not in LAYERS:
        raise UnknownNameError("layer", name, LAYERS)
    return LAYERS[name]


@checked
def create(name: str, dim: int, **config: Any) -> Layer:
    """A layer by name: ``create("softmax", dim=64, heads=4, causal=True)``."""
    return find_layer(name).layer(dim, **config)


@checked
def list_layers(
    *, causal: Causality | None = None, streaming: bool | None = None, grid_rank: int | None = None
) -> list[LayerInfo]:
    """What the layers can do, filtered: those that can be ``causal``, that (do not) stream, that take ``grid_rank``."""
    if grid_rank is not None and grid_rank < 1:
        raise ArgumentError(f"list_layers: grid_rank: found {grid_rank}, expected 1 or more")
    infos = [entry.layer.info for entry in LAYERS.values()]
    return [
        info
        for info in infos
        if (causal is None or causal in info.causal)
        and (streaming is None or info.streaming is streaming)
        and (grid_rank is None or grid_rank in info.grid_ranks)
    ]
