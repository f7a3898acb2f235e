"""Frequency-enhanced attention by the transform's definition, in complex numbers, frequency by frequency."""

from __future__ import annotations

import cmath
import math

import torch


def fourier_cross_oracle(parameters, config, x, context, mask):
    heads, width = config["heads"], config["dim"] // config["heads"]
    weight = torch.complex(parameters["real"], parameters["imaginary"])

    def project(name, vector):
        out = parameters[f"{name}.weight"] @ vector
        return out + parameters[f"{name}.bias"] if config["bias"] else out

    def coefficient(tokens, f):
        n = len(tokens)
        return sum(cmath.exp(-2j * cmath.pi * f * t / n) * token for t, token in enumerate(tokens))

    rows = []
    for b in range(x.shape[0]):
        n, s = x.shape[1], context.shape[1]
        q = [project("query", token) for token in x[b]]
        k, v = ([project(name, token) for token in context[b]] for name in ("key", "value"))
        here = [(m, f) for m, f in enumerate(parameters["frequencies"].tolist()) if 2 * f <= n]
        there = [f for f in parameters["context_frequencies"].tolist() if 2 * f <= s]
        parts = [[] for _ in q]
        for h in range(heads):
            cut = slice(h * width, (h + 1) * width)
            q_h, k_h, v_h = ([token[cut] for token in part] for part in (q, k, v))
            filtered = []
            for m, f in here:
                found = torch.zeros(width, dtype=torch.complex128)
                for g in there:
                    product = (coefficient(q_h, f) * coefficient(k_h, g)).sum()
                    found = found + torch.complex(product.real.tanh(), product.imag.tanh()) * coefficient(v_h, g)
                filtered.append((f, weight[m, h] @ found))
            for t in range(n):
                signal = torch.zeros(width, dtype=x.dtype)
                for f, value in filtered:
                    twice = 1 if f in (0, n - f) else 2  # the conjugate at n - f
                    turn = 2 * math.pi * f * t / n
                    signal = signal + twice * (value.real * math.cos(turn) - value.imag * math.sin(turn)) / n
                parts[t].append(signal)
        rows.append(torch.stack([project("output", torch.cat(part)) for part in parts]))
    return torch.stack(rows)


ORACLES = {"fourier-cross": fourier_cross_oracle}
