"""ReLU attention with frozen weights, pair by pair, from the equation. v_m has one row an output."""

from __future__ import annotations

import torch


def random_feature_oracle(parameters, config, x, context, mask):
    batch, tokens, dim = x.shape
    weight = parameters["weight"].to(x.dtype)
    heads, width = weight.shape[0], weight.shape[2]
    read_out = parameters["output.weight"].reshape(dim, heads, width)
    one = torch.ones(1, dtype=x.dtype)
    rows = []
    for b in range(batch):
        keys = x[b] if context is None else context[b]
        outputs = []
        for t in range(tokens):
            y = torch.zeros(dim, dtype=x.dtype)
            if mask.padding is None or mask.padding[b, t]:
                query = torch.cat([x[b, t], one])
                seen = [s for s in range(len(keys)) if _sees(config, mask, context is not None, b, t, s)]
                for m in range(heads):
                    for s in seen:
                        key = torch.cat([keys[s], one])
                        inner = (weight[m] * torch.outer(query, key)).sum()
                        if inner > 0:
                            y = y + inner * (read_out[:, m] @ key) / len(seen)
            outputs.append(y)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


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
    between = range(low + 1, high + 1)
    real = sum(1 for i in between if mask.padding is None or bool(mask.padding[b, i]))
    return mask.window is None or real < mask.window


ORACLES = {"random-feature": random_feature_oracle}
