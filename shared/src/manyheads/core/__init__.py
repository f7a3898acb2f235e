"""Attention and token-mixing layers with one interface.

    from manyheads.core import create
    layer = create("softmax", dim=64, heads=4, causal=True, window=128)
    y, state, aux = layer(x)

Names are imported when they are used, so that ``manyheads.core.errors`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Layer": "layer",
    "LayerInfo": "layer",
    "LayerOutput": "layer",
    "Mask": "mask",
    "create": "registry",
    "find_layer": "registry",
    "list_layers": "registry",
    "check_layer": "testing",
    "ManyheadsError": "errors",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
