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

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from manyheads.core.blocks.feed_forward import FeedForward, GatedFeedForward
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    tokens = math.prod(grid)
    dim, along = config["dim"], config.get("axis") == "token"
    acted, rows = (tokens, dim) if along else (dim, tokens)
    gated = 6.0 * rows * acted * (config.get("hidden") or 2 * acted)
    return gated + (4.0 * tokens * dim * (config.get("hidden") or 2 * dim) if config.get("second_block", True) else 0.0)


class Activator(Layer):
    """A gated unit and a feed-forward network, with norms and residuals; along the channels it mixes no tokens.

    Raises:
        ArgumentError: a width below 1, an unknown axis, tokens missing or not wanted.
        UnknownNameError: an unknown activation.
    """

    info = LayerInfo(
        name="activator",
        title="Activator: GLU Activation Function as the Core Component of a Vision Transformer",
        arxiv="2405.15953",
        formula=(
            r"\begin{aligned} u &= x + W_3 \big( \mathrm{LN}_F(\mathrm{GELU}(W_1\, \mathrm{LN}_D\, x))"
            r" \odot \mathrm{LN}_F(W_2\, \mathrm{LN}_D\, x) \big) \\"
            r" y &= u + \mathrm{FFN}(\mathrm{LN}_D\, u) \end{aligned}"
        ),
        good_for="Vision models without attention; with axis='token', mixing a fixed number of patches.",
        not_for=(
            "Mixing tokens as published: it mixes none. Take softmax, or axis='token' for a fixed number of tokens."
        ),
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
        deviations=(
            "here axis='channel' mixes no tokens, as published: its mixing matrix is the identity, and a network of "
            "it sees a bag of patches; the paper calls the layer a replacement of attention",
            "axis='token' is ours: the gated unit along the tokens mixes them, and fixes their number",
            "here no dropout; the authors' code has 0.5 in the feed-forward network",
            "here the activation is GELU, as in the paper, or another by name",
            "here the patch embedding belongs to the model around the layer",
            "padding, resets, windows and blocks along the channels are ours (they change nothing there)",
        ),
    )

    hidden: int | None = argument(default=None, least=1)
    """F of both blocks; None for twice the width that each acts on, the authors' ratio."""
    axis: Literal["channel", "token"] = "channel"
    """"channel", as published: no token sees another. "token" (ours): the gated unit runs along the tokens."""
    tokens: int | None = None
    """The number of tokens of every input, with ``axis="token"`` only."""
    second_block: bool = True
    """False for the authors' variant without the feed-forward network ("only GEGLU")."""
    activation: str = "gelu"
    """Of the gate and of the feed-forward network: "gelu" as published, "silu", "relu" …"""

    def setup(self) -> None:
        dim, tokens = self.dim, self.tokens
        if (tokens is None) == (self.axis == "token") or (tokens is not None and tokens < 1):
            expected = "1 or more" if self.axis == "token" else "None"
            raise ArgumentError(f"activator: tokens: found {tokens} with axis={self.axis!r}, expected {expected}")
        acted, activation = dim if tokens is None else tokens, self.activation
        self.norm = nn.LayerNorm(dim)
        self.gated = GatedFeedForward(acted, self.hidden or 2 * acted, activation=activation, normed=True)
        self.feed_forward = (
            FeedForward(dim, self.hidden or 2 * dim, activation=activation) if self.second_block else None
        )

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
