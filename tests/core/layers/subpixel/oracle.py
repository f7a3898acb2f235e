"""Self-excited subpixel-scale attention, sample by sample, each a sum over all pixels of its level."""

from __future__ import annotations

import torch


def hat(position, size):
    """The share of each pixel of an axis in a bilinear sample at ``position``."""
    distance = (position - torch.arange(size, dtype=torch.float64)).abs()
    return torch.where(distance < 1, 1 - distance, torch.zeros_like(distance))


def sample(level, x, y):
    """``level (height, width, E)`` at column x and row y, pixel (0, 0) at (0, 0)."""
    share = hat(y, level.shape[0]).unsqueeze(1) * hat(x, level.shape[1])
    return (share.unsqueeze(-1) * level).sum((0, 1))


def subpixel_oracle(parameters, config, x, context, mask):
    rows = []
    for b in range(x.shape[0]):
        real = torch.ones(x.shape[1:3], dtype=torch.bool)
        if mask.padding is not None:
            real = mask.padding[b].view(x.shape[1:3])
        rows.append(one_image(parameters, config, x[b], real))
    return torch.stack(rows)


def one_image(parameters, config, x, real):
    height, width, dim = x.shape
    heads, points = config["heads"], config["points"]
    part = dim // heads

    def project(name, token):
        return parameters[f"{name}.weight"] @ token + parameters[f"{name}.bias"]

    zero = torch.zeros(dim, dtype=x.dtype)
    values = [[project("value", x[i, j]) if real[i, j] else zero for j in range(width)] for i in range(height)]
    levels = [torch.stack([torch.stack(line) for line in values])]
    ends = [(width, height)]
    if config["global_token"]:
        tokens = [x[i, j] for i in range(height) for j in range(width) if real[i, j]]
        mean = torch.stack(tokens).mean(0) if tokens else zero
        levels.append(project("value", mean).view(1, 1, dim))
        columns = [j for j in range(width) if real[:, j].any()]
        lines = [i for i in range(height) if real[i].any()]
        ends.append((1 + max(columns, default=0), 1 + max(lines, default=0)))
    out = []
    for i in range(height):
        for j in range(width):
            if not real[i, j]:
                out.append(zero)
                continue
            offsets = project("offset", x[i, j]).view(heads, len(levels), points, 2)
            scores = project("score", x[i, j]).view(heads, len(levels), points)
            parts = []
            for h in range(heads):
                exponentials = torch.exp(scores[h] - scores[h].max().detach())
                weights = exponentials / exponentials.sum()
                total = torch.zeros(part, dtype=x.dtype)
                for n, level in enumerate(levels):
                    for k in range(points):
                        # The pixel centre, as a share of the real image, on a map of the size of this level.
                        size = (width, height) if n == 0 else (1, 1)
                        end = (width, height) if n == 0 else ends[1]
                        column = (j + 0.5) / end[0] * size[0] + offsets[h, n, k, 0] - 0.5
                        line = (i + 0.5) / end[1] * size[1] + offsets[h, n, k, 1] - 0.5
                        values_of_head = level[..., h * part : (h + 1) * part]
                        total = total + weights[n, k] * sample(values_of_head, column, line)
                parts.append(total)
            out.append(project("output", torch.cat(parts)))
    return torch.stack(out).view(height, width, dim)


ORACLES = {"subpixel": subpixel_oracle}
