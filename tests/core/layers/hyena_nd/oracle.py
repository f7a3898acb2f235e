"""Hyena N-D cell by cell."""

from __future__ import annotations

import itertools
import math

import torch


def hyena_nd_oracle(parameters, config, x, context, mask):
    rank, order, dim, grid = config["axes"], config["order"], config["dim"], x.shape[1:-1]
    channels = dim * (order - 1)
    cells = list(itertools.product(*map(range, grid)))

    def embedding(j, size):
        t = j / (size - 1) if size > 1 else 0.0
        bands = config["bands"]
        turns = [1e-4 + (bands - 1 - 1e-4) * n / (bands - 1) if bands > 1 else 1e-4 for n in range(bands)]
        return [t, *(math.cos(2 * math.pi * g * t) for g in turns), *(-math.sin(2 * math.pi * g * t) for g in turns)]

    def network(which, features):
        h = torch.tensor(features, dtype=x.dtype)
        for level in ("first", "second", "third"):
            weight, bias = (parameters[f"networks.{which}.{level}.{part}"] for part in ("weight", "bias"))
            h = torch.sin(parameters[f"networks.{which}.frequency"] * (weight @ h + bias))
        return parameters[f"networks.{which}.last.weight"] @ h

    def decay(axis, j, size):
        if config["window"] == "none":
            return torch.ones(channels, dtype=x.dtype)
        t = j / (size - 1) if size > 1 else 0.0
        if config["window"] == "symmetric":
            return torch.exp(-j * parameters["decay"][0].abs())
        if config["window"] == "learned":
            return torch.exp(-t * parameters["decay"][axis].abs())
        slow, fast = math.log(100) / 1.5, math.log(100) / 0.3
        rates = [slow + (fast - slow) * c / max(channels - 1, 1) for c in range(channels)]
        return torch.exp(-t * torch.tensor(rates, dtype=x.dtype))

    def shift(which):
        return parameters["shift"][which] if "shift" in parameters else 0.0

    kernel = {}
    for cell in cells:
        if config["filter"] == "product":
            value = torch.ones(channels, dtype=x.dtype)
            for axis, (j, size) in enumerate(zip(cell, grid, strict=True)):
                value = value * network(axis, embedding(j, size)) * (decay(axis, j, size) + shift(axis))
        else:
            features, window = [], torch.ones(channels, dtype=x.dtype)
            for axis, (j, size) in enumerate(zip(cell, grid, strict=True)):
                features += embedding(j, size)
                window = window * decay(axis, j, size)
            value = network(0, features) * (window + shift(0))
        kernel[cell] = value

    def short(u):
        """``u``: cell -> vector."""
        weight, back = parameters["short.weight"], 2 if config["causal"] else 1
        out = {}
        for cell in cells:
            total = parameters["short.bias"]
            for tap in itertools.product(range(3), repeat=rank):
                source = tuple(at + place - back for at, place in zip(cell, tap, strict=True))
                if source in u:
                    total = total + weight[(slice(None), 0, *tap)] * u[source]
            out[cell] = total
        return out

    def recurrence(u, flipped):
        """In the orthant of the cells that are later on the flipped axes, earlier on the others."""
        v = {cell: u[cell][order * dim :] for cell in cells}
        for step in range(order - 1):
            gate = order - 1 - step
            part = slice(step * dim, (step + 1) * dim)
            v = {cell: v[cell] * u[cell][gate * dim : (gate + 1) * dim] for cell in cells}
            after = {}
            for p in cells:
                total = parameters["skip"][part] * v[p]
                for q in cells:
                    apart = tuple(b - a if f else a - b for a, b, f in zip(p, q, flipped, strict=True))
                    if min(apart) >= 0:
                        total = total + kernel[apart][part] * v[q]
                after[p] = total
            v = after
        return {cell: v[cell] * u[cell][:dim] for cell in cells}

    rows = []
    for row in x:
        u = short({cell: parameters["input.weight"] @ row[cell] + parameters["input.bias"] for cell in cells})
        if config["directions"] == "one":
            y = recurrence(u, (False,) * rank)
        else:
            y = dict.fromkeys(cells, parameters["mixing.bias"])
            for number, flipped in enumerate(itertools.product((False, True), repeat=rank)):
                one = recurrence(u, flipped)
                y = {cell: y[cell] + parameters["mixing.weight"][0, number] * one[cell] for cell in cells}
        out = [parameters["output.weight"] @ y[cell] + parameters["output.bias"] for cell in cells]
        rows.append(torch.stack(out).view(row.shape))
    return torch.stack(rows)


ORACLES = {"hyena-nd": hyena_nd_oracle}
