"""Transformer-XL and GTrXL, token by token with a list of past inputs, from the equations."""

from __future__ import annotations

import math

import torch


def transformer_xl_oracle(parameters, config, x, context, mask):
    def token(past, now):
        return _attend(parameters, "", config, past, now, config["norm"])

    return _run(x, mask, config["memory"], token)


def gtrxl_oracle(parameters, config, x, context, mask):
    def token(past, now):
        attended = _attend(parameters, "attention.inner.", config, past, now, True)
        y = gate_oracle(config["gate"], parameters, "attention.gate.", now, attended.clamp(min=0))
        normed = _norm(y, parameters["mlp.norm.weight"], parameters["mlp.norm.bias"])
        inner = parameters["mlp.inner.0.weight"] @ normed + parameters["mlp.inner.0.bias"]
        made = parameters["mlp.inner.2.weight"] @ inner.clamp(min=0) + parameters["mlp.inner.2.bias"]
        return gate_oracle(config["gate"], parameters, "mlp.gate.", y, made.clamp(min=0))

    return _run(x, mask, config["memory"], token)


def gate_oracle(name, parameters, prefix, x, y):
    """One token: x, y (D,)."""

    def weight(key, part=0):
        return parameters[f"{prefix}{key}.weight"][part * len(x) : (part + 1) * len(x)]

    def logistic(value):
        return 1 / (1 + torch.exp(-value))

    def tanh(value):
        return (torch.exp(value) - torch.exp(-value)) / (torch.exp(value) + torch.exp(-value))

    bias = parameters.get(f"{prefix}bias")
    if name == "residual":
        return x + y
    if name == "input":
        return logistic(weight("weight") @ x) * x + y
    if name == "output":
        return x + logistic(weight("weight") @ x - bias) * y
    if name == "highway":
        opening = logistic(weight("weight") @ x + bias)
        return opening * x + (1 - opening) * y
    if name == "sigmoid-tanh":
        return x + logistic(weight("weights") @ y - bias) * tanh(weight("weights", 1) @ y)
    r = logistic(weight("from_output") @ y + weight("from_stream") @ x)
    z = logistic(weight("from_output", 1) @ y + weight("from_stream", 1) @ x - bias)
    h = tanh(weight("from_output", 2) @ y + weight("from_reset") @ (r * x))
    return (1 - z) * x + z * h


def _run(x, mask, memory, token):
    """``token(past, now)`` for each real token, with what it may see of its own episode."""
    rows = []
    for b in range(x.shape[0]):
        past, outputs = [], []
        for t in range(x.shape[1]):
            if mask.reset is not None and mask.reset[b, t]:
                past = []
            if mask.padding is not None and not mask.padding[b, t]:
                outputs.append(torch.zeros_like(x[b, t]))
                continue
            outputs.append(token(past[-memory:], x[b, t]))
            past.append(x[b, t])
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def _norm(x, weight, bias):
    mean = x.mean()
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean() + 1e-5) * weight + bias


def _attend(parameters, prefix, config, past, now, norm):
    dim, heads = config["dim"], config["heads"]
    width = config["head_width"] or dim // heads
    seen = [*past, now]
    if norm:
        seen = [_norm(z, parameters[f"{prefix}norm.weight"], parameters[f"{prefix}norm.bias"]) for z in seen]
    query = parameters[f"{prefix}query.weight"] @ seen[-1]
    half = (dim + 1) // 2
    parts = []
    for h in range(heads):
        cut = slice(h * width, (h + 1) * width)
        u, w = parameters[f"{prefix}content_bias"][h], parameters[f"{prefix}distance_bias"][h]
        scores, values = [], []
        for index, z in enumerate(seen):
            distance = len(seen) - 1 - index
            waves = [distance / 10000 ** (2 * (i % half) / dim) for i in range(dim)]
            place = torch.tensor([math.sin(a) if i < half else math.cos(a) for i, a in enumerate(waves)], dtype=z.dtype)
            key = (parameters[f"{prefix}key.weight"] @ z)[cut]
            r = (parameters[f"{prefix}distance.weight"] @ place)[cut]
            scores.append((((query[cut] + u) * key).sum() + ((query[cut] + w) * r).sum()) / math.sqrt(width))
            values.append((parameters[f"{prefix}value.weight"] @ z)[cut])
        weights = [torch.exp(score - max(s.item() for s in scores)) for score in scores]
        parts.append(sum(a / sum(weights) * value for a, value in zip(weights, values, strict=True)))
    return parameters[f"{prefix}output.weight"] @ torch.cat(parts)


ORACLES = {"transformer-xl": transformer_xl_oracle}
