"""Multi-head softmax attention, token by token, from the equation."""

from __future__ import annotations

import math

import torch


def softmax_oracle(parameters, config, x, context, mask):
    batch, tokens, dim = x.shape
    heads, width = config["heads"], config["dim"] // config["heads"]

    def project(name, vector):
        out = parameters[f"{name}.weight"] @ vector
        bias = parameters.get(f"{name}.bias")
        return out if bias is None else out + bias

    rows = []
    for b in range(batch):
        source = x[b] if context is None else context[b]
        keys = [project("key", token) for token in source]
        values = [project("value", token) for token in source]
        if config["rotary"] is not None:
            keys = [_turn(key, _place(mask, b, s), width, config["rotary"]) for s, key in enumerate(keys)]
        outputs = []
        for t in range(tokens):
            if mask.padding is not None and not mask.padding[b, t]:
                outputs.append(torch.zeros(dim, dtype=x.dtype))
                continue
            query = project("query", x[b, t])
            if config["rotary"] is not None:
                query = _turn(query, _place(mask, b, t), width, config["rotary"])
            seen = [s for s in range(len(keys)) if _sees(config, mask, context is not None, b, t, s)]
            parts = []
            for h in range(heads):
                cut = slice(h * width, (h + 1) * width)
                if not seen:
                    parts.append(torch.zeros(width, dtype=x.dtype))
                    continue
                scores = [(query[cut] * keys[s][cut]).sum() / math.sqrt(width) for s in seen]
                top = max(score.item() for score in scores)
                weights = [torch.exp(score - top) for score in scores]
                total = sum(weights)
                parts.append(sum(w / total * values[s][cut] for w, s in zip(weights, seen, strict=True)))
            outputs.append(project("output", torch.cat(parts)))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def _place(mask, b, t):
    """The number of real tokens before this one."""
    return sum(1 for s in range(t) if mask.padding is None or bool(mask.padding[b, s]))


def _turn(vector, place, width, base):
    """Each pair of features of a head times a rotation matrix (2104.09864, equation 15)."""
    turned = []
    for i in range(0, len(vector), 2):
        angle = place * base ** (-(i % width) / width)
        rotation = torch.tensor(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=vector.dtype
        )
        turned.append(rotation @ vector[i : i + 2])
    return torch.cat(turned)


def _sees(config, mask, cross, b, t, s):
    if cross:
        return mask.context_padding is None or bool(mask.context_padding[b, s])
    if mask.padding is not None and not mask.padding[b, s]:
        return False
    if config["causal"] and s > t:
        return False
    low, high = min(s, t), max(s, t)
    if mask.reset is not None and mask.reset[b, low + 1 : high + 1].any():
        return False
    if mask.blocks is not None and mask.blocks[b, s] != mask.blocks[b, t]:
        return False
    for window in (config["window"], mask.window):
        between = range(low + 1, high + 1)
        real = sum(1 for i in between if mask.padding is None or bool(mask.padding[b, i]))
        if window is not None and real >= window:
            return False
    return True


ORACLES = {"softmax": softmax_oracle}
