"""Auto-Correlation by its sums, delay by delay, in evaluation."""

from __future__ import annotations

import math

import torch


def auto_correlation_oracle(parameters, config, x, context, mask):
    dim = config["dim"]
    groups = config["heads"] if config["per_head"] else 1
    width = dim // groups

    def project(name, vector):
        out = parameters[f"{name}.weight"] @ vector
        return out + parameters[f"{name}.bias"] if config["bias"] else out

    rows = []
    for b in range(x.shape[0]):
        kept = [t for t in range(x.shape[1]) if mask.padding is None or mask.padding[b, t]]
        n = len(kept)
        outputs = [torch.zeros(dim, dtype=x.dtype) for _ in range(x.shape[1])]
        read = ("query", "key", "value") if context is None else ("query",)
        q, k, v = ([project(name, x[b, t]) for t in kept] if name in read else [] for name in ("query", "key", "value"))
        if context is not None:
            nothing = [torch.zeros(dim, dtype=x.dtype)] * n
            k, v = (([project(name, token) for token in context[b]] + nothing)[:n] for name in ("key", "value"))
        parts = [[] for _ in kept]
        for g in range(groups if n else 0):
            cut = slice(g * width, (g + 1) * width)
            r = [sum((q[(t + tau) % n][cut] * k[t][cut]).sum() for t in range(n)) / width for tau in range(n)]
            count = min(n, max(1, int(config["factor"] * math.log(n))))
            delays = sorted(range(n), key=lambda tau, r=r: -r[tau].item())[:count]
            weights = torch.stack([r[tau] for tau in delays]).softmax(0)
            for t in range(n):
                parts[t].append(sum(w * v[(t + tau) % n][cut] for w, tau in zip(weights, delays, strict=True)))
        for t, place in enumerate(kept):
            outputs[place] = project("output", torch.cat(parts[t]))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


ORACLES = {"auto-correlation": auto_correlation_oracle}
