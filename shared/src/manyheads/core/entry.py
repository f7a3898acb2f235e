"""The registration of a layer: its class and the configurations that are checked, drawn and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from manyheads.core.layer import Layer


@dataclass(frozen=True)
class Entry:
    """A layer's class and its configurations, without ``dim``. A module of ``core/layers`` registers its layers in
    ``ENTRIES``: name -> entry."""

    layer: type[Layer]
    examples: Mapping[str, Mapping[str, Any]]  # label -> configuration of the battery; the first is the plain one
    case: Mapping[str, Any] = field(default_factory=dict)  # what the battery needs to know: dim, grid, seed
    # tokens -> label -> configuration that the benchmark measures
    at_length: Callable[[int], Mapping[str, Mapping[str, Any]]] | None = None
