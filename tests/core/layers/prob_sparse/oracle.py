"""ProbSparse attention, query by query; the sample is hashed with Python's integers."""

from __future__ import annotations

import math

import torch

WORD = 2**32 - 1


def scramble(x):
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & WORD
    x = ((x ^ (x >> 15)) * 0x735A2D97) & WORD
    return x ^ (x >> 15)


def sampled_key(seed, query, place, tokens):
    start = scramble((seed & WORD) ^ 0x3C6EF372)
    return (scramble(scramble(start ^ query) ^ scramble(place + 0x1B873593)) * tokens) >> 32


def prob_sparse_oracle(parameters, config, x, context, mask):
    heads, width = config["heads"], config["dim"] // config["heads"]

    def project(name, vector):
        out = parameters[f"{name}.weight"] @ vector
        return out + parameters[f"{name}.bias"] if config["bias"] else out

    rows = []
    for b in range(x.shape[0]):
        kept = [t for t in range(x.shape[1]) if mask.padding is None or mask.padding[b, t]]
        n = len(kept)
        outputs = [torch.zeros(config["dim"], dtype=x.dtype) for _ in range(x.shape[1])]
        q, k, v = ([project(name, x[b, t]) for t in kept] for name in ("query", "key", "value"))
        budget = min(n, max(1, int(config["factor"] * math.ceil(math.log(n))))) if n else 0
        parts = [[] for _ in kept]
        for h in range(heads):
            cut = slice(h * width, (h + 1) * width)

            def score(t, s, cut=cut, q=q, k=k):
                return (q[t][cut] * k[s][cut]).sum() / math.sqrt(width)

            measures = []
            for t in range(n):
                found = [score(t, sampled_key(config["seed"], t, j, n)).item() for j in range(budget)]
                measures.append(max(found) - sum(found) / budget)
            chosen = sorted(range(n), key=lambda t, measures=measures: (-measures[t], t))[:budget]
            for t in range(n):
                seen = range(t + 1) if config["causal"] else range(n)
                if t in chosen:
                    weights = torch.stack([score(t, s) for s in seen]).softmax(0)
                else:
                    weights = [1.0 if config["running"] == "sum" and config["causal"] else 1.0 / len(seen)] * len(seen)
                parts[t].append(sum(w * v[s][cut] for w, s in zip(weights, seen, strict=True)))
        for t, place in enumerate(kept):
            outputs[place] = project("output", torch.cat(parts[t]))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


ORACLES = {"prob-sparse": prob_sparse_oracle}
