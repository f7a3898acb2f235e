"""Axial attention, token by token."""

from __future__ import annotations

import itertools

import torch


def axial_oracle(parameters, config, x, context, mask):
    grid = x.shape[1:-1]
    axis, heads, width = config["axis"] % len(grid), config["heads"], x.shape[-1] // config["heads"]
    cells = list(itertools.product(*(range(size) for size in grid)))
    place = {cell: index for index, cell in enumerate(cells)}

    def project(name, token):
        y = parameters[f"{name}.weight"] @ token
        return y + parameters[f"{name}.bias"] if config["bias"] else y

    rows = []
    for b in range(x.shape[0]):
        tokens = []
        for cell in cells:
            line = [(*cell[:axis], j, *cell[axis + 1 :]) for j in range(grid[axis])]
            if config["causal"]:
                line = [other for other in line if other[axis] <= cell[axis]]
            real = mask.padding is None or bool(mask.padding[b, place[cell]])
            if mask.padding is not None:
                line = [other for other in line if mask.padding[b, place[other]]]
            if not real:
                tokens.append(torch.zeros_like(x[b, 0].flatten(0, -2)[0]))
                continue
            q, parts = project("query", x[b][cell]), []
            for h in range(heads):
                cut = slice(h * width, (h + 1) * width)
                scores = torch.stack([q[cut] @ project("key", x[b][other])[cut] / width**0.5 for other in line])
                weights = torch.exp(scores - scores.max().detach())
                values = torch.stack([project("value", x[b][other])[cut] for other in line])
                parts.append((weights / weights.sum()) @ values)
            tokens.append(project("output", torch.cat(parts)))
        rows.append(torch.stack(tokens).view(x.shape[1:]))
    return torch.stack(rows)


ORACLES = {"axial": axial_oracle}
