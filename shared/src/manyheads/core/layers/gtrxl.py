"""Stabilizing Transformers for Reinforcement Learning (1910.06764), GTrXL: one layer of the gated Transformer-XL.

    R = g(X, ReLU(A(LN([SG(memory), X])))),   A: relative attention over memory and tokens, queries from the tokens
    Y = g'(R, ReLU(MLP(LN(R)))),              MLP: linear, ReLU, linear;   g, g': gates

The memory holds past X before the norm; the norm covers memory and tokens. SG stops the gradient. With
``gate="residual"`` this is TrXL-I.

Shapes: B batch, T tokens, M memory, D width, H heads, E head width, F hidden width of the MLP.

Cost: as ``transformer-xl``, plus ``O(T D F + T D^2)`` for MLP and gates.

It streams; the state is a window, the last M inputs, ``M D`` numbers.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyheads.core.blocks.gated_residual import GatedResidual
from manyheads.core.fields import argument
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.layers.transformer_xl import TransformerXL, check_heads, shared_width
from manyheads.core.mask import Mask
from manyheads.core.state import State

Gate = Literal["residual", "input", "output", "highway", "sigmoid-tanh", "gru"]
# D x D matrices of each gate
_MATRICES = {"residual": 0, "input": 1, "output": 1, "highway": 1, "sigmoid-tanh": 2, "gru": 6}


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim = config["dim"]
    gates = 2 * 2.0 * tokens * dim * dim * _MATRICES[config["gate"]]
    return TransformerXL.info.flops(config, grid) + 4.0 * tokens * dim * config["hidden"] + gates


class GTrXL(Layer):
    """One layer of GTrXL; see the module for equation and shapes.

    Raises:
        ArgumentError: a number below 1; heads that do not divide ``dim`` without a ``head_width``; an unknown gate; a
            bias of a gate that has none.
    """

    info = LayerInfo(
        name="gtrxl",
        title="Stabilizing Transformers for Reinforcement Learning",
        arxiv="1910.06764",
        formula=(
            r"\begin{aligned} R &= g\big(X, \mathrm{ReLU}(A(\mathrm{LN}([\mathrm{SG}(\text{memory}), X])))\big) \\"
            r" Y &= g'\big(R, \mathrm{ReLU}(\mathrm{MLP}(\mathrm{LN}(R)))\big) \end{aligned}"
        ),
        good_for="Agents with memory in reinforcement learning: gates keep the start of training stable.",
        not_for="Training that is stable without gates: with its MLP it takes 2 to 4 times the time of transformer-xl.",
        cost="time N M D + N D^2 (gates and MLP too), memory N D; a streamed token M H D with M slots",
        flops=_flops,
        at_length=lambda n: {"plain": {"heads": 2, "memory": min(128, max(2, n // 2))}},
        causal=("strict",),
        state=("window",),
        masks=("padding", "reset"),
        positional=True,
        full_context=False,
        deviations=(
            "the paper's text was read without its formulas: those of the GRU gate agree in five public codes, those "
            "of the other gates come from a secondary source; the input gate has no bias, as in the paper",
            "here each token sees at most the M tokens before it, and empty slots and tokens of an earlier episode "
            "are masked, as in transformer-xl; the paper does not spell this out",
            "here the hidden width F of the MLP is 4 D unless given; the paper's is not known",
            'the paper\'s text says "embedding 256" for 12 layers with 8 heads of 64, but its counts of parameters '
            "(TrXL-I 28.6 M, with output gates 34.9 M, with GRU gates 66.4 M) need gates of width 512: the "
            "differences are 6.3 M and 37.8 M, and 24 output gates of width 512 have 6.30 M, 24 GRU gates 37.76 M (of "
            "width 256: 1.6 M and 9.4 M)",
            "F = 1,024 is inferred from these counts: with D = 512 the layers then have 28.37, 34.67 and 66.13 M, "
            "which leaves .2 to .3 M for encoder and heads in all three",
            "the paper's thin model, with half the heads and half the width, has 22.4 M parameters and is not "
            "reproduced: D = 256, 4 heads and F = 1,024 give 19.70 M",
            "here queries, keys and values come from the tokens after the norm; DI-engine's code takes the queries "
            "from those before it: another function",
        ),
    )

    heads: int = argument(factory=lambda layer: gcd(layer.dim, 8))
    """H; divides ``dim`` without a ``head_width``. By default the largest power of two up to 8 that divides ``dim``."""
    head_width: int = argument(factory=shared_width, least=1, check=check_heads)
    """E; ``dim / heads`` by default. The paper's agents have ``dim=256, heads=8, head_width=64``."""
    memory: int = argument(default=128, least=1)
    """M, the number of earlier tokens that each token sees, and of the slots in the state."""
    hidden: int = argument(factory=lambda layer: 4 * layer.dim, least=1)
    """F; ``4 dim`` by default."""
    gate: Gate = "gru"
    """The gates g and g'; ``"residual"`` is the plain sum, TrXL-I."""
    gate_bias: float | None = None
    """Initial value of the gates' bias; None for 2 with ``"gru"`` and 1 with the other gates."""
    memory_gradient: bool = False
    """Let the gradient through the state; the definition stops it there."""

    def setup(self) -> None:
        dim = self.dim
        attention = TransformerXL(
            dim,
            heads=self.heads,
            head_width=self.head_width,
            memory=self.memory,
            memory_gradient=self.memory_gradient,
            norm=True,
        )
        mlp = nn.Sequential(nn.Linear(dim, self.hidden), nn.ReLU(), nn.Linear(self.hidden, dim))
        self.attention = GatedResidual(dim, attention, gate=self.gate, gate_bias=self.gate_bias, norm=False)
        self.mlp = GatedResidual(dim, mlp, gate=self.gate, gate_bias=self.gate_bias)

    @property
    def state_carries_gradient(self) -> bool:
        return self.memory_gradient

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        return self.attention.init_state(batch, device=device, dtype=dtype)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        attended, state, _ = self.attention(x, state, mask=mask)
        return LayerOutput(self.mlp(attended).y, state)
