"""The Legendre memory unit, without and with spikes, token by token: its constants by a power series of their own."""

from __future__ import annotations

import math

import torch

from tests.core.layers.lif.oracle import neuron_step


def delay_system(order, window):
    """Zero-order hold of the Legendre delay system: the power series of the exponential, halved and squared."""
    joined = torch.zeros(order + 1, order + 1, dtype=torch.float64)
    for i in range(order):
        for j in range(order):
            joined[i, j] = (2 * i + 1) / window * (-1.0 if i < j else (-1.0) ** (i - j + 1))
        joined[i, order] = (2 * i + 1) / window * (-1.0) ** i
    halvings = max(0, math.ceil(math.log2(joined.abs().sum(1).max().item()))) + 2
    small = joined / 2**halvings
    term = total = torch.eye(order + 1, dtype=torch.float64)
    for k in range(1, 20):
        term = term @ small / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total[:order, :order], total[:order, order]


def linear(parameters, name, vector):
    out = parameters[f"{name}.weight"] @ vector
    bias = parameters.get(f"{name}.bias")
    return out if bias is None else out + bias


def normed(parameters, name, vector):
    scaled = (vector - parameters[f"{name}.running_mean"]) / (parameters[f"{name}.running_var"] + 1e-5).sqrt()
    return scaled * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def run(x, mask, fresh, step):
    """``step(x_t, state) -> (y_t, state)`` along every row, with padding and resets."""
    rows = []
    for b in range(x.shape[0]):
        state, outputs = fresh, []
        for t in range(x.shape[1]):
            if mask.reset is not None and mask.reset[b, t]:
                state = fresh
            if mask.padding is not None and not mask.padding[b, t]:
                outputs.append(torch.zeros_like(x[b, t]))
                continue
            y, state = step(x[b, t], state)
            outputs.append(y)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def lmu_oracle(parameters, config, x, context, mask):
    order, channels = config["order"] or config["dim"], config["channels"]
    a, b = delay_system(order, config["window"])
    f = {"relu": lambda z: z.clamp(min=0), "tanh": torch.tanh, "identity": lambda z: z}[config["activation"]]

    def step(x_t, memories):
        u = f(linear(parameters, "encoder", x_t))
        memories = [a @ memory + b * u[c] for c, memory in enumerate(memories)]
        y = f(linear(parameters, "readout", torch.cat(memories)) + linear(parameters, "skip", x_t))
        return y, memories

    return run(x, mask, [torch.zeros(order, dtype=x.dtype)] * channels, step)


def spiking_lmu_oracle(parameters, config, x, context, mask):
    dim = config["dim"]
    order = config["order"] or 2 * dim
    a, b = delay_system(order, config["window"])

    def step(x_t, state):
        memory, v_input, v_memory, v_output = state
        u, v_input = neuron_step(normed(parameters, "input_norm", linear(parameters, "encoder", x_t)), v_input, config)
        memory = a @ memory + b * u
        s, v_memory = neuron_step(normed(parameters, "memory_norm", memory), v_memory, config)
        h = linear(parameters, "readout", s) + linear(parameters, "skip", x_t)
        y, v_output = neuron_step(normed(parameters, "output_norm", h), v_output, config)
        return y, (memory, v_input, v_memory, v_output)

    fresh = tuple(torch.zeros(width, dtype=x.dtype) for width in (order, 1, order, dim))
    return run(x, mask, fresh, step)


ORACLES = {"lmu": lmu_oracle}
