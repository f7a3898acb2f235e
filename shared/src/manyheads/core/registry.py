"""Layers by name: every class in a module of ``core/layers`` that has an ``info`` of its own is registered.

A module is imported when one of its layers is asked for. It is looked for under the layer's own name, then under the
name without its last words (``combiner-fixed`` in ``combiner.py``), then in all modules.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from manyheads.core import layers
from manyheads.core.arguments import checked
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layer import Causality, Layer, LayerInfo


class _Layers(Mapping[str, type[Layer]]):
    """Every registered layer by name, in the order of the modules; what is not needed is not imported."""

    def __getitem__(self, name: str) -> type[Layer]:
        words = str(name).replace("-", "_").split("_")
        for count in range(len(words), 0, -1):
            module = "_".join(words[:count])
            if module in _modules() and name in (found := _layers_of(module)):
                return found[name]
        return _all_layers()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_all_layers())

    def __len__(self) -> int:
        return len(_all_layers())


@cache
def _modules() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(layers.__path__)))


@cache
def _layers_of(module: str) -> Mapping[str, type[Layer]]:
    """The layers that the module itself defines, in its order."""
    full = f"{layers.__name__}.{module}"
    kinds = [kind for kind in vars(importlib.import_module(full)).values() if isinstance(kind, type)]
    own = [k for k in kinds if issubclass(k, Layer) and k.__module__ == full and "info" in vars(k)]
    return {kind.info.name: kind for kind in own}


@cache
def _all_layers() -> Mapping[str, type[Layer]]:
    found: dict[str, type[Layer]] = {}
    for module in _modules():
        for name, kind in _layers_of(module).items():
            if name in found:
                raise RuntimeError(
                    f"layers/{module}.py: {kind.__name__}: found the name {name!r}, which {found[name].__module__} has "
                    "too, expected a name of its own"
                )
            found[name] = kind
    return found


LAYERS: Mapping[str, type[Layer]] = _Layers()

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
