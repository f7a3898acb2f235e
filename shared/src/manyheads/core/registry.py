"""Layers by name: every module of ``core/layers`` registers its layers in ``ENTRIES``.

The module of a layer is imported when the layer is asked for. It is looked for under the layer's own name, then under
the name without its last words (``combiner-fixed`` in ``combiner.py``), then in all modules.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from manyheads.core import layers
from manyheads.core.arguments import checked
from manyheads.core.entry import Entry
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layer import Causality, Layer, LayerInfo


class _Layers(Mapping[str, Entry]):
    """Every registered layer by name, in the order of the modules; what is not needed is not imported."""

    def __getitem__(self, name: str) -> Entry:
        words = str(name).replace("-", "_").split("_")
        for count in range(len(words), 0, -1):
            module = "_".join(words[:count])
            if module in _modules() and name in (entries := _entries_of(module)):
                return entries[name]
        return _all_entries()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_all_entries())

    def __len__(self) -> int:
        return len(_all_entries())


@cache
def _modules() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(layers.__path__)))


def _entries_of(module: str) -> Mapping[str, Entry]:
    return getattr(importlib.import_module(f"{layers.__name__}.{module}"), "ENTRIES", {})


@cache
def _all_entries() -> Mapping[str, Entry]:
    found: dict[str, Entry] = {}
    for module in _modules():
        for name, entry in _entries_of(module).items():
            if name in found or entry.layer.info.name != name:
                raise RuntimeError(
                    f"layers/{module}.py: found the entry {name!r} of a layer named {entry.layer.info.name!r}, "
                    "expected one entry a layer, under its own name"
                )
            found[name] = entry
    return found


LAYERS: Mapping[str, Entry] = _Layers()

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
