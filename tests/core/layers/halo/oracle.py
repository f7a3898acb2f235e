"""Halo attention, cell by cell over the whole grid, with the offsets looked up one by one."""

from __future__ import annotations

import itertools

import torch


def halo_oracle(parameters, config, x, context, mask):
    height, width = x.shape[1:3]
    block, halo, heads = config["block"], config["halo"], config["heads"]
    head = x.shape[-1] // heads
    zero_border = config["border"] == "zero"
    most = block + halo - 1

    def project(name, token):
        y = parameters[f"{name}.weight"] @ token
        return y + parameters[f"{name}.bias"] if config["bias"] else y

    def is_real(b, cell):
        row, column = cell
        if not (0 <= row < height and 0 <= column < width):
            return False
        return mask.padding is None or bool(mask.padding[b, row * width + column])

    images = []
    for b in range(x.shape[0]):
        tokens = []
        for i in itertools.product(range(height), range(width)):
            if not is_real(b, i):
                tokens.append(torch.zeros_like(x[0, 0, 0]))
                continue
            # the block of i spans first … first + block - 1 along each axis
            first = [place - place % block for place in i]
            window = itertools.product(*(range(start - halo, start + block + halo) for start in first))
            q, parts = project("query", x[b][i]), []
            cells = [j for j in window if zero_border or is_real(b, j)]
            for h in range(heads):
                cut = slice(h * head, (h + 1) * head)
                scores, values = [], []
                for j in cells:
                    inside = is_real(b, j)
                    key = project("key", x[b][j])[cut] if inside else torch.zeros_like(q[cut])
                    values.append(project("value", x[b][j])[cut] if inside else torch.zeros_like(q[cut]))
                    far = parameters["rows"][j[0] - i[0] + most] + parameters["columns"][j[1] - i[1] + most]
                    scores.append(q[cut] @ key / head**0.5 + q[cut] @ far)
                weights = torch.stack(scores)
                weights = torch.exp(weights - weights.max().detach())
                parts.append((weights / weights.sum()) @ torch.stack(values))
            tokens.append(project("output", torch.cat(parts)))
        images.append(torch.stack(tokens).view(x.shape[1:]))
    return torch.stack(images)


ORACLES = {"halo": halo_oracle}
