"""Activator: GLU Activation Function as the Core Component of a Vision Transformer (2405.15953).

    u = x + W3 ( LN_F(GELU(W1 LN_D x)) o LN_F(W2 LN_D x) )        y = u + FFN(LN_D u)

One norm of width D serves both blocks, one of width F both branches, as in the authors' code.

**This layer mixes no tokens.** Along the channels, as published, every output depends on its own token alone: the
mixing matrix is the identity, and a network of such layers sees a bag of patches. ``axis="token"`` is an extension of
ours that runs the gated unit along the tokens (as MLP-Mixer does its first network), which mixes them but fixes their
number.

Shapes: B batch, N tokens, D width, F hidden width.

Cost: time ``O(N D F)``, memory ``O(N F)``; parameters ``3 D F``, and ``2 D F`` for the second block, plus biases and
norms. Along the tokens N takes the place of D in the first block.

Differs from the paper: the token axis is ours; no dropout (the authors' code has 0.5 in the feed-forward network); the
patch embedding belongs to the model around it.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from manyheads.core.blocks.feed_forward import FeedForward, GatedFeedForward
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State

AXES = ("channel", "token")


def _flops(config: dict[str, Any], grid: Grid) -> float:
    tokens = math.prod(grid)
    dim, along = config["dim"], config.get("axis") == "token"
    acted, rows = (tokens, dim) if along else (dim, tokens)
    gated = 6.0 * rows * acted * (config.get("hidden") or 2 * acted)
    return gated + (4.0 * tokens * dim * (config.get("hidden") or 2 * dim) if config.get("second_block", True) else 0.0)


class Activator(Layer):
    """A gated unit and a feed-forward network, with norms and residuals; along the channels it mixes no tokens.

    Args:
        dim: width D.
        hidden: F of both blocks; None for twice the width that each acts on, the authors' ratio.
        axis: "channel", as published: no token sees another; "token" (ours): the gated unit runs along the tokens.
        tokens: their number, with ``axis="token"`` only.
        second_block: False for the authors' variant without the feed-forward network ("only GEGLU").
        activation: of the gate and of the feed-forward network: "gelu" as published, "silu", "relu" …

    Raises:
        ArgumentError: a width below 1, tokens missing or not wanted.
        UnknownNameError: an unknown axis or activation.
    """

    info = LayerInfo(
        name="activator",
        title="Activator: GLU Activation Function as the Core Component of a Vision Transformer",
        arxiv="2405.15953",
        good_for="Vision models without attention; along the tokens it mixes patches of a fixed number.",
        cost="time N D F, memory N F; no token mixing along the channels",
        flops=_flops,
        at_length=lambda n: {"plain": {}, "token": {"axis": "token", "tokens": n, "hidden": 128}},
        grid_ranks=(1, 2),
        causal=("strict", "no"),
        masks=("padding", "reset", "window", "blocks"),
        positional=True,  # along the tokens; along the channels a permutation of them permutes the output
        full_context=False,
        sizes=("tokens",),
        lengths="any along the channels; along the tokens the number that the layer was built with",
        deviations=("axis='token' is ours", "no dropout"),
    )

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        axis: str = "channel",
        tokens: int | None = None,
        second_block: bool = True,
        activation: str = "gelu",
    ) -> None:
        super().__init__(dim, hidden=hidden, axis=axis, tokens=tokens, second_block=second_block, activation=activation)
        if axis not in AXES:
            raise UnknownNameError("axis of activator", axis, AXES)
        if hidden is not None and hidden < 1:
            raise ArgumentError(f"activator: hidden: found {hidden}, expected 1 or more")
        if (tokens is None) == (axis == "token") or (tokens is not None and tokens < 1):
            expected = "1 or more" if axis == "token" else "None"
            raise ArgumentError(f"activator: tokens: found {tokens} with axis={axis!r}, expected {expected}")
        self.axis = axis
        acted = dim if tokens is None else tokens
        self.norm = nn.LayerNorm(dim)
        self.gated = GatedFeedForward(acted, hidden or 2 * acted, activation=activation, normed=True)
        self.feed_forward = FeedForward(dim, hidden or 2 * dim, activation=activation) if second_block else None

    @property
    def causality(self) -> Causality:
        return "strict" if self.axis == "channel" else "no"

    @property
    def masks(self) -> tuple[str, ...]:
        return self.info.masks if self.axis == "channel" else ()

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        grid, x = x.shape[1:-1], x.flatten(1, -2)
        normed = self.norm(x)
        y = x + (self.gated(normed) if self.axis == "channel" else self.gated(normed.mT).mT)
        if self.feed_forward is not None:
            y = y + self.feed_forward(self.norm(y))
        return LayerOutput(y.unflatten(1, grid))
