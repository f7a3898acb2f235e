"""LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units (2402.04882): the cell without
spikes, which is the parallel unit of Parallelizing Legendre Memory Unit Training (2102.11417).

    u[t] = f(W_u x[t] + b_u),   m[t] = A' m[t - 1] + B' u[t],   y[t] = f(W_m m[t] + W_x x[t] + b)

A', B' are the Legendre delay system of order q and window theta, zero-order hold, not trained
(:mod:`manyheads.core.functional.legendre`). Shapes: B batch, T tokens, D width, C channels, q order.

Cost: time ``O(T C q^2 + T D (C q + D))``, all of it matrix products, memory ``O(T (C q + D))``; a streamed token
``O(C q^2 + C q D + D^2)``, the state has C q numbers.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.blocks.legendre_memory import LegendreMemory
from manyheads.core.fields import argument
from manyheads.core.functional.legendre import memory_flops
from manyheads.core.functional.recurrent_mask import carried, recurrent_mask
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "identity": nn.Identity(),
}


class LMUState(NamedTuple):
    memory: Tensor  # (B, C, q), float32 under lower precision


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, channels = config["dim"], config.get("channels", 1)
    order = config.get("order") or dim
    dense = dim * channels + channels * order * dim + dim * dim
    return 2.0 * tokens * dense + channels * memory_flops(order, tokens)


def _at_length(tokens: int) -> dict[str, dict[str, Any]]:
    if tokens < 128:
        return {
            "plain": {"window": tokens},
            "window": {"order": min(32, max(2, tokens // 4)), "window": max(2, tokens // 2)},
        }
    return {"plain": {"window": max(tokens, 128)}, "window": {"order": 32}}


class LegendreMemoryUnit(Layer):
    """The Legendre memory unit; see the module for equation and shapes.

    Raises:
        ArgumentError: order, window or channels below 1, an unknown activation.
    """

    info = LayerInfo(
        name="lmu",
        title="LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units",
        arxiv="2402.04882",
        formula=(
            r"\begin{aligned} u_t &= f(W_u x_t + b_u), \qquad m_t = \bar A\, m_{t-1} + \bar B\, u_t \\"
            r" y_t &= f(W_m m_t + W_x x_t + b) \end{aligned}"
        ),
        good_for="Long signals sampled evenly, on small devices: a state of constant size that remembers a window.",
        not_for="Looking up tokens by content: it weighs them by time only. Take softmax with a window.",
        cost="time N q^2 + N D (q + D), memory N (q + D), with order q; a streamed token q^2 + D (q + D)",
        flops=_flops,
        at_length=_at_length,
        causal=("strict",),
        state=("recurrent",),
        masks=("padding", "reset"),
        positional=True,
        full_context=False,  # a ReLU that is shut passes nothing on
        deviations=(
            "the body of the paper could not be read: the equations are those of its published code, and the "
            "parameters of lmu and spiking-lmu complete the counts of the published models (1,621,796 and 1,689,894)",
            "here the parallel form works in blocks with a tree over them, for any length, initial state and resets; "
            "the authors' code convolves by FFT at one length, 128 for sequence and window: the same function, on a "
            "CPU slower than the FFT below about a thousand tokens and faster above",
            "here the order is by default dim at a window of 128, as in the authors' code, and an order above the "
            "window gives a warning: the surplus holds nothing more about the window",
            "here more than one channel on request; the paper has one scalar for each token: no effect by default",
            "here W_m and W_x are two matrices side by side; in the paper they are one, W_h [m; x]: the same function",
            "the width of the output is that of the input",
            "padding, resets and streaming are ours",
        ),
    )

    order: int = argument(factory=lambda layer: layer.dim)
    """q, the numbers that each channel remembers; by default ``dim``, as in the paper. An order above ``window`` warns:
    the surplus adds no linear information."""
    window: int = 128
    """theta, the tokens that the memory reaches back."""
    activation: Literal["relu", "tanh", "identity"] = "relu"
    """f; "relu" as in the paper."""
    channels: int = argument(default=1, least=1)
    """C, scalar inputs with a memory each."""

    def setup(self) -> None:
        self.activate = ACTIVATIONS[self.activation]
        self.memory = LegendreMemory(self.order, self.window, owner="lmu")
        self.encoder = nn.Linear(self.dim, self.channels)
        self.readout = nn.Linear(self.channels * self.order, self.dim, bias=False)
        self.skip = nn.Linear(self.dim, self.dim)

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        return LMUState(self.memory.initial(batch, self.channels, device=device, dtype=dtype))

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        told = recurrent_mask(mask.padding, mask.reset)
        x = told.pack(x)
        u = self.activate(self.encoder(x)).mT.flatten(0, 1)  # (B C, T)
        segments = None if told.segments is None else told.segments.repeat_interleave(self.channels, 0)
        memory = self.memory(u, state.memory.flatten(0, 1), segments)  # (B C, T, q)
        memory = memory.unflatten(0, (-1, self.channels)).transpose(1, 2)  # (B, T, C, q)
        y = self._read(memory.flatten(2), x)
        return LayerOutput(told.unpack(y), LMUState(told.last(memory, state.memory)))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One step ``(B, D)`` without blocks: five products."""
        if not self._is_plain(x_t, state):
            return super().step(x_t, state)
        memory = self.memory.step(self.activate(self.encoder(x_t)), state.memory)
        return self._read(memory.flatten(1), x_t), LMUState(memory)

    def _is_plain(self, x_t: Tensor, state: State) -> bool:
        """Nothing to convert and nothing wrong."""
        if not isinstance(x_t, Tensor) or type(state) is not LMUState or not isinstance(state.memory, Tensor):
            return False
        weight, memory = self.skip.weight, state.memory
        fits = x_t.dim() == 2 and x_t.shape[1] == self.dim and memory.shape == (len(x_t), self.channels, self.order)
        alike = x_t.dtype == weight.dtype and memory.dtype == carried(x_t.dtype)
        return fits and alike and x_t.device == weight.device == memory.device

    def _read(self, memory: Tensor, x: Tensor) -> Tensor:
        return self.activate(self.readout(memory.to(self.readout.weight.dtype)) + self.skip(x))
