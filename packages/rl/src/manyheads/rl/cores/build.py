"""Build a memory core by name: ``build_core("gtrxl", 64, depth=2, memory=64)``."""

from __future__ import annotations

from typing import Any

from torch import nn

from manyheads.core.backbones.stack import Stack, build_stack, make_layers
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layer import Layer
from manyheads.core.registry import LAYERS
from manyheads.rl.cores.core import Core, LayerCore
from manyheads.rl.cores.recurrent import RecurrentCore

OWN = ("none", "lstm", "gru")


def core_names() -> list[str]:
    """Return the names that :func:`build_core` takes: its own, and every layer with a strictly causal stream."""
    layers = (name for name, kind in LAYERS.items() if "strict" in kind.info.causal and kind.info.streaming)
    return [*OWN, *layers]


def build_core(name: str, width: int, *, depth: int = 1, **options: Any) -> Core:
    """Build a memory core.

    Args:
        name: "none", "lstm", "gru", "gtrxl" (``gate="residual"`` makes it TrXL-I), or any strictly causal layer with a
            state of bounded size; other layers than gtrxl stand in pre-norm residual blocks.
        width: D.
        depth: layers, one above another.
        options: arguments of the layer, such as ``memory=64``. A layer with an argument ``causal`` is built causal.

    Raises:
        UnknownNameError: an unknown name.
        ArgumentError: a layer that does not stream strictly causally, whose state grows, or that cannot start a new
            episode inside a batch; an argument that the core does not have.
    """
    if depth < 1 or width < 1:
        raise ArgumentError(f"core: found depth {depth} and width {width}, expected 1 or more")
    if name in OWN and options:
        raise ArgumentError(f"core {name!r}: {next(iter(options))}: found an argument of that name, expected none")
    if name == "none":
        return Core(width)
    if name == "lstm" or name == "gru":
        return RecurrentCore(width, name, depth=depth)
    if name not in LAYERS:
        raise UnknownNameError("core", name, core_names())
    known = {one.name for one in LAYERS[name].arguments}
    if "causal" in known:
        options = {"causal": True, **options}
    blocks: list[nn.Module]
    if name == "gtrxl":
        blocks = list(make_layers(name, width, depth, options))
    else:
        blocks = [build_stack(name, width, depth=depth, options=options)]
    for layer in [one for block in blocks for one in (block.layers if isinstance(block, Stack) else [block])]:
        assert isinstance(layer, Layer)
        _check(layer)
    return LayerCore(width, blocks)


def _check(layer: Layer) -> None:
    name, kind = layer.info.name, layer.state_kind
    if not layer.is_causal:
        raise ArgumentError(f"core: found {name!r}, which sees later steps, expected one of {', '.join(core_names())}")
    if kind == "none":
        raise ArgumentError(f"core: found {name!r}, which keeps no state as configured, expected one that streams")
    if kind == "growing":
        raise ArgumentError(
            f"core: found {name!r}, whose state grows with every step as configured, expected a bounded one: give a "
            "window or a memory, if it has such an argument"
        )
    if "reset" not in layer.masks:
        raise ArgumentError(
            f"core: found {name!r}, which cannot start an episode inside a batch, expected one that can"
        )
