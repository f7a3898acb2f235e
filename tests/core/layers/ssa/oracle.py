"""Softmax attention over given sources, token by token; over all of them where none are given."""

from __future__ import annotations

import math

import torch


def ssa_oracle(parameters, config, x, context, mask, sources=None):
    """``sources[b][t]`` are the positions that query t may use beside its own; None for all of them."""
    batch, tokens, dim = x.shape
    heads, width = config["heads"], config["dim"] // config["heads"]

    def project(name, vector):
        return parameters[f"{name}.weight"] @ vector + parameters.get(f"{name}.bias", 0.0)

    rows = []
    for b in range(batch):
        queries, keys, values = ([project(name, one) for one in x[b]] for name in ("query", "key", "value"))
        outputs = []
        for t in range(tokens):
            if mask.padding is not None and not mask.padding[b, t]:
                outputs.append(torch.zeros(dim, dtype=x.dtype))
                continue
            among = range(tokens) if sources is None else {*sources[b][t], t}
            seen = [s for s in sorted(among) if _sees(config, mask, b, t, s)]
            parts = []
            for h in range(heads):
                cut = slice(h * width, (h + 1) * width)
                scores = torch.stack([(queries[t][cut] * keys[s][cut]).sum() / math.sqrt(width) for s in seen])
                weights = torch.exp(scores - scores.detach().max())
                weights = weights / weights.sum()
                parts.append(sum(weight * values[s][cut] for weight, s in zip(weights, seen, strict=True)))
            outputs.append(project("output", torch.cat(parts)))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def _sees(config, mask, b, t, s):
    if mask.padding is not None and not mask.padding[b, s]:
        return False
    if config["causal"] and s > t:
        return False
    low, high = min(s, t), max(s, t)
    if mask.reset is not None and mask.reset[b, low + 1 : high + 1].any():
        return False
    if mask.blocks is not None and mask.blocks[b, s] != mask.blocks[b, t]:
        return False
    real = sum(1 for i in range(low + 1, high + 1) if mask.padding is None or bool(mask.padding[b, i]))
    return mask.window is None or real < mask.window


ORACLES = {"ssa": ssa_oracle}
