"""LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units (2402.04882): the cell with spikes.

    u[t] = S(N(W_u x[t] + b_u)),   m[t] = A' m[t - 1] + B' u[t],   s[t] = S(N(m[t])),
    y[t] = S(N(W_m s[t] + W_x x[t] + b))

with S leaky integrate-and-fire neurons along the tokens (:mod:`manyheads.core.functional.lif`) and N batch
normalisation, one of each a site; A', B' as in ``lmu``. Shapes: B batch, T tokens, D width, q order.

Cost: time ``O(T q^2 + T D (q + D))`` in matrix products and T sequential steps of the neurons, memory
``O(T (q + D))``; a streamed token ``O(q^2 + D (q + D))``, the state has ``1 + 2 q + D`` numbers.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.blocks.batch_norm import SequenceBatchNorm
from manyheads.core.blocks.legendre_memory import LegendreMemory
from manyheads.core.fields import argument
from manyheads.core.functional.legendre import memory_flops
from manyheads.core.functional.lif import Neuron, fire, spike_rate
from manyheads.core.functional.recurrent_mask import RecurrentMask, carried, recurrent_mask
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


class SpikingLMUState(NamedTuple):
    """Float32 under lower precision."""

    memory: Tensor  # (B, q)
    input_membrane: Tensor  # (B, 1)
    memory_membrane: Tensor  # (B, q)
    output_membrane: Tensor  # (B, D)


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim = config["dim"]
    order = config.get("order") or 2 * dim
    neurons = 1 + order + dim
    return 2.0 * tokens * dim * (1 + order + dim) + memory_flops(order, tokens) + 6.0 * tokens * neurons


class SpikingLegendreMemoryUnit(Layer):
    """The spiking Legendre memory unit; see the module for equation and shapes.

    ``aux`` holds the spikes per real token and neuron at each site: ``spike_rate_input``, ``spike_rate_memory``,
    ``spike_rate_output``. A fresh layer may be silent: its running statistics are 0 and 1 until it has been trained or
    :meth:`calibrate` d.

    Raises:
        ArgumentError: order or window below 1, tau that is not above 1 or not finite, threshold not above 0, an unknown
            surrogate.
    """

    info = LayerInfo(
        name="spiking-lmu",
        title="LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory Units",
        arxiv="2402.04882",
        formula=(
            r"\begin{aligned} u_t &= S(N(W_u x_t + b_u)), \qquad m_t = \bar A\, m_{t-1} + \bar B\, u_t, \qquad"
            r" s_t = S(N(m_t)) \\ y_t &= S(N(W_m s_t + W_x x_t + b)) \end{aligned}"
        ),
        good_for="Spiking networks for long signals, such as keyword spotting on neuromorphic hardware.",
        not_for="Ordinary processors: the neurons run step by step. Take lmu, which runs in parallel.",
        cost="time N q^2 + N D (q + D) and N sequential steps, memory N (q + D); a streamed token q^2 + D (q + D)",
        flops=_flops,
        at_length=lambda n: {"plain": {"window": max(n, 256) if n >= 128 else n}},
        causal=("strict",),
        state=("recurrent",),
        masks=("padding", "reset"),
        positional=True,
        full_context=False,  # a neuron forgets at a spike
        discontinuous=True,
        surrogate=True,
        vmaps=False,
        second_derivatives=False,
        deviations=(
            "the body of the paper could not be read: the equations are those of its published code, and the "
            "parameters of lmu and spiking-lmu complete the counts of the published models (1,621,796 and 1,689,894)",
            "here the memory is linear and spikes after it, as in the authors' code; the paper's figure feeds the "
            "spikes back, for which no parallel form exists",
            "here the recurrent form equals the parallel one in evaluation; the recurrent form of the authors' code "
            "leaves norm and neurons of the memory out, and so differs from its parallel form",
            "here the batch normalisation of training takes the statistics of real tokens only; the authors' code "
            "those of the whole batch: chunks then differ from the whole, and calibrate sets the running statistics",
            "here the order is by default 2 dim at a window of 128, as in the authors' code, and an order above the "
            "window gives a warning: the surplus holds nothing more about the window",
            "here the caller adds the normalisation and neurons at the entry of the mixer (layer lif) and the "
            "convolution after it; in the paper they are part of the mixer",
            "here W_m and W_x are two matrices side by side; in the paper they are one, W_h [m; x]: the same function",
            "padding, resets and streaming are ours",
        ),
    )

    order: int = argument(factory=lambda layer: 2 * layer.dim)
    """q, the numbers that are remembered; by default ``2 * dim``, as in the paper. An order above ``window`` gives a
    warning: the surplus adds no linear information."""
    window: int = 128
    """theta, the tokens that the memory reaches back."""
    tau: float = 2.0
    """Time constant of the neurons' leak, in tokens."""
    threshold: float = 1.0
    """The membrane potential at which a neuron fires; it is then set to 0, without a gradient through this."""
    surrogate: Literal["sigmoid", "atan", "triangle", "rectangular"] = "sigmoid"
    """The derivative that stands for that of the spike; "sigmoid" as in the paper's code."""

    def setup(self) -> None:
        dim = self.dim
        self.neuron = Neuron(tau=self.tau, threshold=self.threshold, surrogate=self.surrogate).check("spiking-lmu")
        self.memory = LegendreMemory(self.order, self.window, owner="spiking-lmu")
        self.encoder = nn.Linear(dim, 1)
        self.readout = nn.Linear(self.order, dim, bias=False)
        self.skip = nn.Linear(dim, dim)
        self.input_norm = SequenceBatchNorm(1)
        self.memory_norm = SequenceBatchNorm(self.order)
        self.output_norm = SequenceBatchNorm(dim)

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        widths = (self.order, 1, self.order, self.dim)
        return SpikingLMUState(*(torch.zeros(batch, w, device=device, dtype=carried(dtype)) for w in widths))

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        told = recurrent_mask(mask.padding, mask.reset)
        x = told.pack(x)
        u, input_membrane = self._site(self.input_norm, self.encoder(x), state.input_membrane, told)
        memory = self.memory(u.squeeze(2), state.memory, told.segments)
        s, memory_membrane = self._site(self.memory_norm, memory, state.memory_membrane, told)
        h = self.readout(s.to(self.readout.weight.dtype)) + self.skip(x)
        y, output_membrane = self._site(self.output_norm, h, state.output_membrane, told)
        sites = {"input": u, "memory": s, "output": y}
        return LayerOutput(
            told.unpack(y.to(x.dtype)),
            SpikingLMUState(told.last(memory, state.memory), input_membrane, memory_membrane, output_membrane),
            {f"spike_rate_{name}": spike_rate(spikes, told.real) for name, spikes in sites.items()},
        )

    def aux_of_nothing(self, x: Tensor) -> dict[str, Tensor]:
        return {f"spike_rate_{name}": x.sum() for name in ("input", "memory", "output")}

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor], *, mask: Mask | None = None) -> dict[str, Tensor]:
        """Set the running statistics of the three sites to the mean of those of ``batches`` of ``(B, T, D)``.

        Returns the spike rates of the last batch. A single tensor is one batch. ``mask`` holds for every batch.
        """
        norms, was_training = (self.input_norm, self.memory_norm, self.output_norm), self.training
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.train()
        rates: dict[str, Tensor] = {}
        try:
            for x in (batches,) if isinstance(batches, Tensor) else batches:
                rates = self(x, mask=mask).aux
        finally:
            self.train(was_training)
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        return rates

    def _site(self, norm: SequenceBatchNorm, x: Tensor, membrane: Tensor, told: RecurrentMask) -> tuple[Tensor, Tensor]:
        return fire(norm(x.to(membrane.dtype), told.real), membrane, self.neuron, told)
