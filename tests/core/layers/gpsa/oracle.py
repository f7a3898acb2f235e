"""Gated positional self-attention, query by query and key by key."""

from __future__ import annotations

import itertools

import torch


def gpsa_oracle(parameters, config, x, context, mask):
    batch, height, breadth, dim = x.shape
    heads, width = config["heads"], dim // config["heads"]
    cells = list(itertools.product(range(height), range(breadth)))

    def project(name, token):
        y = parameters[f"{name}.weight"] @ token
        return y + parameters[f"{name}.bias"] if f"{name}.bias" in parameters else y

    def softmax(scores):
        weights = torch.exp(scores - scores.max().detach())
        return weights / weights.sum()

    rows = []
    for b in range(batch):
        real = [mask.padding is None or bool(mask.padding[b, n]) for n in range(len(cells))]
        seen = [cell for n, cell in enumerate(cells) if real[n]]
        tokens = []
        for n, (i, j) in enumerate(cells):
            if not real[n]:
                tokens.append(torch.zeros(dim, dtype=x.dtype))
                continue
            q, parts = project("query", x[b, i, j]), []
            for h in range(heads):
                cut, (w_x, w_y, w_d) = slice(h * width, (h + 1) * width), parameters["position"][h]
                content = [q[cut] @ project("key", x[b, k, m])[cut] / width**0.5 for k, m in seen]
                place = [w_x * (m - j) + w_y * (k - i) + w_d * ((m - j) ** 2 + (k - i) ** 2) for k, m in seen]
                gate = 1 / (1 + torch.exp(-parameters["gates"][h]))
                weights = (1 - gate) * softmax(torch.stack(content)) + gate * softmax(torch.stack(place))
                values = torch.stack([project("value", x[b, k, m])[cut] for k, m in seen])
                parts.append(weights @ values)
            tokens.append(project("output", torch.cat(parts)))
        rows.append(torch.stack(tokens).view(height, breadth, dim))
    return torch.stack(rows)


ORACLES = {"gpsa": gpsa_oracle}
