"""Stabilizing Transformers for Reinforcement Learning (1910.06764), GTrXL: one layer of the gated Transformer-XL.

    Y  = g(E, ReLU(A(LN([SG(memory), E])))),   A: relative attention over memory and tokens, queries from the tokens
    E' = g'(Y, ReLU(MLP(LN(Y)))),              MLP: linear, ReLU, linear

The memory holds past E as they came; the norm covers them too. With ``gate="residual"`` this is TrXL-I. Shapes: B
batch, T tokens, M memory, D width, H heads, E head width, F hidden width of the MLP.

Cost: as ``transformer-xl``, and ``O(T D F + T D^2)`` for MLP and gates; a state of ``M D`` numbers.

Differs from the paper: the paper's text was read without its formulas, so that the equations of the gates other than
the GRU come from secondary sources. Episode boundaries, empty slots and the window are as in ``transformer-xl``. F is
``4 D`` unless given, as the paper's is not known here; its counts of parameters fit gates of width 512, not the 256 of
its text (docs/deviations.md). Queries come from the tokens after the norm; in DI-engine's code from those before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from manyheads.core.blocks.gated_residual import GatedResidual
from manyheads.core.errors import ArgumentError
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput, head_count
from manyheads.core.layers.transformer_xl import TransformerXL
from manyheads.core.mask import Mask
from manyheads.core.state import State

_MATRICES = {"residual": 0, "input": 1, "output": 1, "highway": 1, "sigmoid-tanh": 2, "gru": 6}


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, hidden = config["dim"], config.get("hidden") or 4 * config["dim"]
    gates = 2 * 2.0 * tokens * dim * dim * _MATRICES[config.get("gate", "gru")]
    return TransformerXL.info.flops(config, grid) + 4.0 * tokens * dim * hidden + gates


class GTrXL(Layer):
    """One layer of GTrXL; see the module for equation and shapes.

    Args:
        dim: width D.
        heads: H; divides ``dim`` without a ``head_width``. None for the largest power of two up to 8 that does.
        head_width: E; ``dim / heads`` by default. The paper's agents have ``dim=256, heads=8, head_width=64``.
        memory: M, how many tokens before it each token sees, and the slots of the state.
        hidden: F; ``4 dim`` by default.
        gate: ``"gru"``, ``"input"``, ``"output"``, ``"highway"``, ``"sigmoid-tanh"``, or ``"residual"`` for TrXL-I.
        gate_bias: where the gates' bias starts; by default 2 for ``"gru"``, 1 for the others.
        memory_gradient: let the gradient through the state; the definition stops it there.

    Raises:
        ArgumentError: a number below 1; heads that do not divide ``dim`` without a ``head_width``; a bias of a gate
            that has none.
        UnknownNameError: a gate that does not exist.
    """

    info = LayerInfo(
        name="gtrxl",
        title="Stabilizing Transformers for Reinforcement Learning",
        arxiv="1910.06764",
        good_for="Agents with memory in reinforcement learning: gates keep the start of training stable.",
        cost="time N M D + N D^2 (gates and MLP too), memory N D; a streamed token M H D with M slots",
        flops=_flops,
        at_length=lambda n: {"plain": {"heads": 2, "memory": 128}},
        causal=("strict",),
        state=("window",),
        masks=("padding", "reset"),
        positional=True,
        full_context=False,
        deviations=(
            "a window of memory + 1 tokens for every token, so that step by step and segment agree",
            "empty slots and earlier episodes are masked",
            "hidden width of the MLP is 4 D unless given, the paper's is not known here",
            "queries come from the tokens after the norm; in DI-engine's code from those before it",
        ),
    )

    def __init__(
        self,
        dim: int,
        *,
        heads: int | None = None,
        head_width: int | None = None,
        memory: int = 128,
        hidden: int | None = None,
        gate: str = "gru",
        gate_bias: float | None = None,
        memory_gradient: bool = False,
    ) -> None:
        if heads is None or head_width is None:
            heads = head_count("gtrxl", dim, heads)
        super().__init__(
            dim,
            heads=heads,
            head_width=head_width,
            memory=memory,
            hidden=hidden,
            gate=gate,
            gate_bias=gate_bias,
            memory_gradient=memory_gradient,
        )
        if hidden is not None and hidden < 1:
            raise ArgumentError(f"gtrxl: hidden: found {hidden}, expected 1 or more")
        for name, value in (("heads", heads), ("memory", memory), ("head_width", head_width)):
            if value is not None and value < 1:
                raise ArgumentError(f"gtrxl: {name}: found {value}, expected 1 or more")
        width = 4 * dim if hidden is None else hidden
        attention = TransformerXL(
            dim, heads=heads, head_width=head_width, memory=memory, memory_gradient=memory_gradient, norm=True
        )
        mlp = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim))
        self.attention = GatedResidual(dim, attention, gate=gate, gate_bias=gate_bias, norm=False)
        self.mlp = GatedResidual(dim, mlp, gate=gate, gate_bias=gate_bias)
        self.memory, self.memory_gradient = memory, memory_gradient

    @property
    def state_carries_gradient(self) -> bool:
        return self.memory_gradient

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        return self.attention.init_state(batch, device=device, dtype=dtype)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        attended, state, _ = self.attention(x, state, mask=mask)
        return LayerOutput(self.mlp(attended).y, state)
