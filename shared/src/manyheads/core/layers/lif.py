"""Surrogate Gradient Learning in Spiking Neural Networks (1901.09948): a layer of leaky integrate-and-fire neurons.

    h[t] = v[t - 1] + (x[t] - v[t - 1]) / tau,   y[t] = [h[t] >= threshold],   v[t] = h[t] (1 - y[t])

and its variants, with their gradients, in :mod:`manyheads.core.functional.lif`. The time of the neurons is the axis of
the tokens, as in LMUFormer (2402.04882): one spike a token at most. Shapes: B batch, T tokens, D neurons.

Cost: time ``O(T D)`` in T sequential steps, memory ``O(T D)``; a streamed token ``O(D)``, the state has D numbers.

Differs from the paper: it reviews neurons with a synaptic current of their own and surrogates in general; this is the
neuron without one, as LMUFormer's code takes it from spikingjelly, with its conventions (a spike where the membrane
equals the threshold, ``decay_input``, the scales of the surrogates). Padding, resets and streaming are ours.
"""

from __future__ import annotations

from typing import NamedTuple

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

    Args:
        dim: neurons D.
        tau: time constant of the leak in tokens.
        threshold: the membrane at which a neuron fires.
        reset: "hard" sets the membrane to 0 after a spike, "soft" takes the threshold off it.
        decay_input: the input is divided by tau too.
        detach_reset: no gradient passes through the reset.
        surrogate: "sigmoid", "atan", "triangle" or "rectangular".
        alpha: the surrogate's scale, larger is narrower; None for the usual one.

    Raises:
        ArgumentError: tau that is not above 1 or not finite, threshold or alpha not above 0 or not finite,
            another reset.
        UnknownNameError: another surrogate.
    """

    info = LayerInfo(
        name="lif",
        title="Surrogate Gradient Learning in Spiking Neural Networks",
        arxiv="1901.09948",
        good_for="Spiking networks: neurons that turn a signal into spikes, trained by gradient.",
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
        deviations=("without a synaptic current", "conventions of spikingjelly, which LMUFormer's code uses"),
    )

    def __init__(
        self,
        dim: int,
        *,
        tau: float = 2.0,
        threshold: float = 1.0,
        reset: str = "hard",
        decay_input: bool = True,
        detach_reset: bool = True,
        surrogate: str = "sigmoid",
        alpha: float | None = None,
    ) -> None:
        neuron = Neuron(tau, threshold, reset, decay_input, detach_reset, surrogate, alpha)
        super().__init__(dim, **neuron._asdict())
        self.neuron = neuron.check("lif")

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        return LIFState(torch.zeros(batch, self.dim, device=device, dtype=carried(dtype)))

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        told = recurrent_mask(mask.padding, mask.reset)
        spikes, membrane = fire(told.pack(x), state.membrane, self.neuron, told)
        y = told.unpack(spikes)
        return LayerOutput(y, LIFState(membrane), {"spike_rate": spike_rate(y, mask.padding)})

    def aux_of_nothing(self, x: Tensor) -> dict[str, Tensor]:
        return {"spike_rate": x.sum()}
