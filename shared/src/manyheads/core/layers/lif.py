"""Surrogate Gradient Learning in Spiking Neural Networks (1901.09948): a layer of leaky integrate-and-fire neurons.

    h[t] = v[t - 1] + (x[t] - v[t - 1]) / tau,   y[t] = [h[t] >= threshold],   v[t] = h[t] (1 - y[t])

and its variants, with their gradients, in :mod:`manyheads.core.functional.lif`. The time of the neurons is the axis of
the tokens, as in LMUFormer (2402.04882): one spike a token at most. Shapes: B batch, T tokens, D neurons.

Cost: time ``O(T D)`` in T sequential steps, memory ``O(T D)``; a streamed token ``O(D)``, the state has D numbers.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from manyheads.core.functional.lif import Neuron, fire, spike_rate
from manyheads.core.functional.recurrent_mask import carried, recurrent_mask
from manyheads.core.layer import Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


class LIFState(NamedTuple):
    membrane: Tensor  # (B, D), float32 under lower precision


class LIF(Layer):
    """Leaky integrate-and-fire neurons, one a width; ``aux["spike_rate"]`` is the spikes a real token and neuron, with
    its surrogate gradient, so that it serves as a penalty.

    Raises:
        ArgumentError: tau that is not above 1 or not finite, threshold or alpha not above 0 or not finite, an unknown
            reset or surrogate.
    """

    info = LayerInfo(
        name="lif",
        title="Surrogate Gradient Learning in Spiking Neural Networks",
        arxiv="1901.09948",
        formula=(
            r"\begin{aligned} h_t &= v_{t-1} + \frac{x_t - v_{t-1}}{\tau}, \qquad"
            r" y_t = [\, h_t \ge \theta \,], \qquad v_t = h_t (1 - y_t) \end{aligned}"
        ),
        good_for="Spiking networks: neurons that turn a signal into spikes, trained by gradient.",
        not_for="Mixing across channels, and networks without spiking hardware: take lmu.",
        cost="time N D in N sequential steps, memory N D; a streamed token D",
        flops=lambda config, grid: 4.0 * grid[0] * config["dim"],
        causal=("strict",),
        state=("recurrent",),
        masks=("padding", "reset"),
        positional=True,
        full_context=False,  # a neuron sees its own width only, and forgets at a spike
        discontinuous=True,
        surrogate=True,
        vmaps=False,
        second_derivatives=False,
        deviations=(
            "here neurons without a synaptic current; the paper's have one of their own: the neuron of LMUFormer's "
            "code, which takes it from spikingjelly",
            "here the conventions of spikingjelly: a spike if the membrane equals the threshold, the input divided by "
            "tau (decay_input), the scales of the surrogates: spikes equal spikingjelly's, gradients agree within "
            "rounding",
            "here detach_reset is True by default, as LMUFormer sets it; in spikingjelly it is False: only gradients "
            "differ",
            "second derivatives raise an error",
            "padding, resets and streaming are ours",
        ),
    )

    tau: float = 2.0
    """Time constant of the leak, in tokens."""
    threshold: float = 1.0
    """The membrane potential at which a neuron fires."""
    reset: Literal["hard", "soft"] = "hard"
    """"hard" sets the membrane to 0 after a spike, "soft" subtracts the threshold."""
    decay_input: bool = True
    """The input is divided by tau too."""
    detach_reset: bool = True
    """No gradient passes through the reset."""
    surrogate: Literal["sigmoid", "atan", "triangle", "rectangular"] = "sigmoid"
    """The derivative that stands for that of the spike."""
    alpha: float | None = None
    """Scale of the surrogate, larger is narrower; None for the usual one."""

    def setup(self) -> None:
        self.neuron = Neuron(
            self.tau,
            self.threshold,
            self.reset,
            self.decay_input,
            self.detach_reset,
            self.surrogate,
            self.alpha,
        ).check("lif")

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        return LIFState(torch.zeros(batch, self.dim, device=device, dtype=carried(dtype)))

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        told = recurrent_mask(mask.padding, mask.reset)
        spikes, membrane = fire(told.pack(x), state.membrane, self.neuron, told)
        y = told.unpack(spikes)
        return LayerOutput(y, LIFState(membrane), {"spike_rate": spike_rate(y, mask.padding)})

    def aux_of_nothing(self, x: Tensor) -> dict[str, Tensor]:
        return {"spike_rate": x.sum()}
