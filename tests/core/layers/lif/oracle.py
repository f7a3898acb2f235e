"""Leaky integrate-and-fire neurons, step by step, with spikes in straight-through form: the value is the step, the
gradient that of the surrogate's antiderivative."""

from __future__ import annotations

import math

import torch

SCALES = {"sigmoid": 4.0, "atan": 2.0, "triangle": 1.0, "rectangular": 1.0}


def spike(h, threshold, surrogate, alpha):
    y = (SCALES[surrogate] if alpha is None else alpha) * (h - threshold)
    if surrogate == "sigmoid":
        soft = 1 / (1 + torch.exp(-y))
    elif surrogate == "atan":
        soft = torch.atan(math.pi / 2 * y) / math.pi
    elif surrogate == "triangle":
        soft = y.clamp(-1, 1) - y.clamp(-1, 1) * y.clamp(-1, 1).abs() / 2
    else:
        soft = y.clamp(-0.5, 0.5)
    hard = torch.tensor([1.0 if value >= threshold else 0.0 for value in h.flatten().tolist()], dtype=h.dtype)
    return hard.view(h.shape) + soft - soft.detach()


def neuron_step(x, v, config):
    """One step of neurons ``x``, ``v`` of any shape -> spikes and the membranes after the reset."""
    tau, threshold = config["tau"], config["threshold"]
    h = v + (x - v) / tau if config.get("decay_input", True) else v - v / tau + x
    s = spike(h, threshold, config["surrogate"], config.get("alpha"))
    back = s.detach() if config.get("detach_reset", True) else s
    v = h - threshold * back if config.get("reset", "hard") == "soft" else h * (1 - back)
    return s, v


def lif_oracle(parameters, config, x, context, mask):
    rows = []
    for b in range(x.shape[0]):
        v, outputs = torch.zeros(config["dim"], dtype=x.dtype), []
        for t in range(x.shape[1]):
            if mask.reset is not None and mask.reset[b, t]:
                v = torch.zeros_like(v)
            if mask.padding is not None and not mask.padding[b, t]:
                outputs.append(torch.zeros_like(v))
                continue
            s, v = neuron_step(x[b, t], v, config)
            outputs.append(s)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


ORACLES = {"lif": lif_oracle}
