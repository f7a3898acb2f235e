"""FFNified attention, channel by channel, place by place and tap by tap; batch norm as in evaluation."""

from __future__ import annotations

import itertools
import math

import torch


def gelu(value):
    return value * (1 + torch.erf(value / math.sqrt(2))) / 2


def batch_normed(parameters, name, values):
    mean, variance = parameters[f"{name}.running_mean"], parameters[f"{name}.running_var"]
    return (values - mean) / torch.sqrt(variance + 1e-5) * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def queries(parameters, config, token):
    q = parameters["query.weight"] @ token
    if config["norm"] == "none":
        return q + parameters["query.bias"]
    if config["norm"] == "batch":
        return batch_normed(parameters, "query_norm", q)
    centred = q - q.mean()
    normed = centred / torch.sqrt((centred**2).mean() + 1e-5)
    return normed * parameters["query_norm.weight"] + parameters["query_norm.bias"]


def convolved(parameters, name, tokens, cell, delay):
    """The sum over the taps that lie on a token; the causal form reads its centre ``delay`` steps earlier."""
    total = 0
    for branch in ("large", "small"):
        if f"{name}.{branch}.weight" not in parameters:
            continue
        weight = parameters[f"{name}.{branch}.weight"]
        part = torch.zeros(weight.shape[0], dtype=weight.dtype)
        for u, v in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
            place = (cell[0] + u - weight.shape[2] // 2, cell[1] + v - weight.shape[3] // 2 - delay)
            if place in tokens:
                part = part + torch.stack([weight[c, 0, u, v] * tokens[place][c] for c in range(len(part))])
        if f"{name}.{branch}.bias" in parameters:
            part = part + parameters[f"{name}.{branch}.bias"]
        if f"{name}.{branch}_norm.weight" in parameters:
            part = batch_normed(parameters, f"{name}.{branch}_norm", part)
        total = total + part
    return total


def image(parameters, config, tokens, causal):
    """``tokens`` and the result are place -> token."""
    delays = [(config[name] - 1) // 2 if causal else 0 for name in ("kernel", "value_kernel")]
    q = {cell: queries(parameters, config, token) for cell, token in tokens.items()}
    a = {cell: gelu(convolved(parameters, "keys", q, cell, delays[0])) for cell in q}
    return {cell: convolved(parameters, "values", a, cell, delays[1]) for cell in a}


def ffnified_oracle(parameters, config, x, context, mask):
    batch, height, width, dim = x.shape
    rows = []
    for b in range(batch):
        cells = list(itertools.product(range(height), range(width)))
        kept = [cell for n, cell in enumerate(cells) if mask.padding is None or mask.padding[b, n]]
        found = image(parameters, config, {cell: x[b][cell] for cell in kept}, causal=False)
        nothing = torch.zeros(dim, dtype=x.dtype)
        rows.append(torch.stack([found.get(cell, nothing) for cell in cells]).view(height, width, dim))
    return torch.stack(rows)


def ffnified_sequence_oracle(parameters, config, x, context, mask):
    rows = []
    for b in range(x.shape[0]):
        episodes = [[]]
        for t in range(x.shape[1]):
            if mask.reset is not None and mask.reset[b, t]:
                episodes.append([])
            if mask.padding is None or mask.padding[b, t]:
                episodes[-1].append(t)
        outputs = {}
        for times in episodes:
            tokens = {(0, place): x[b, t] for place, t in enumerate(times)}
            found = image(parameters, config, tokens, config["causal"])
            outputs |= {t: found[0, place] for place, t in enumerate(times)}
        nothing = torch.zeros(x.shape[2], dtype=x.dtype)
        rows.append(torch.stack([outputs.get(t, nothing) for t in range(x.shape[1])]))
    return torch.stack(rows)


ORACLES = {"ffnified": ffnified_oracle, "ffnified-sequence": ffnified_sequence_oracle}
