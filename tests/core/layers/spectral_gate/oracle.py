"""The spectral gate as a sum of shifted images, its kernel as a sum of cosines."""

from __future__ import annotations

import math

import torch


def spectral_gate_oracle(parameters, config, x, context, mask):
    rows, columns = x.shape[1:3]
    real, imaginary = parameters["weight"].unbind(-1)
    y = torch.zeros_like(x)
    for a in range(rows):
        for b in range(columns):
            tap = torch.zeros_like(x[0, 0, 0])
            for f in range(rows):
                for g in range(columns // 2 + 1):
                    # every frequency but those of the first and of a last even column stands for its mirror too
                    count = 1 if g == 0 or 2 * g == columns else 2
                    turns = 2 * math.pi * (f * a / rows + g * b / columns)
                    tap = tap + count * (real[f, g] * math.cos(turns) - imaginary[f, g] * math.sin(turns))
            y = y + tap / (rows * columns) * torch.roll(x, (a, b), (1, 2))
    return y


ORACLES = {"spectral-gate": spectral_gate_oracle}
