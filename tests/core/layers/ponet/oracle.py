"""PoNet token by token from the equations: lists of the tokens that each pooling sees."""

from __future__ import annotations

import math

import torch


def ponet_oracle(parameters, config, x, context, mask):
    batch, tokens, dim = x.shape

    def project(name, vector):
        return parameters[f"{name}.weight"] @ vector + parameters[f"{name}.bias"]

    rows = []
    for b in range(batch):
        out = [torch.zeros(dim, dtype=x.dtype)] * tokens
        for episode in _episodes(mask, b, tokens):
            q, k, o, s, near = (
                [project(name, x[b, t]) for t in episode] for name in ("query", "key", "gate", "far", "near")
            )
            count = len(episode)
            for i, t in enumerate(episode):
                seen = range(i + 1) if config["causal"] else range(count)
                segment = [j for j in seen if j // config["segment"] == i // config["segment"]]
                window = range(i - 2, i + 1) if config["causal"] else range(i - 1, i + 2)
                pooled = _pool(config, q, k, seen) + torch.stack([s[j] for j in segment]).amax(0)
                local = torch.stack([near[j] for j in window if 0 <= j < count]).amax(0)
                out[t] = project("output", pooled * o[i] + local)
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _pool(config, q, k, seen):
    parts = []
    width = len(q[0]) // config["heads"]
    for h in range(config["heads"]):
        cut = slice(h * width, (h + 1) * width)
        if config["global_pooling"] == "running":
            means = {n: sum(q[j] for j in range(n + 1)) / (n + 1) for n in seen}
        else:
            means = dict.fromkeys(seen, sum(q[j] for j in seen) / len(seen))
        scores = [means[n][cut] @ k[n][cut] / math.sqrt(width) for n in seen]
        top = max(score.item() for score in scores)
        weights = [torch.exp(score - top) for score in scores]
        parts.append(sum(w * k[n][cut] for w, n in zip(weights, seen, strict=True)) / sum(weights))
    return torch.cat(parts)


def _episodes(mask, b, tokens):
    """Lists of real tokens, one for each episode."""
    found = [[]]
    for t in range(tokens):
        if mask.reset is not None and mask.reset[b, t]:
            found.append([])
        if mask.padding is None or mask.padding[b, t]:
            found[-1].append(t)
    return [episode for episode in found if episode]


ORACLES = {"ponet": ponet_oracle}
