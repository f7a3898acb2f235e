"""The Fourier-enhanced block by the transform's definition, in complex numbers, over the whole spectrum."""

from __future__ import annotations

import cmath

import torch


def fourier_block_oracle(parameters, config, x, context, mask):
    heads, width = config["heads"], config["dim"] // config["heads"]
    weight = torch.complex(parameters["real"], parameters["imaginary"])
    frequencies = parameters["frequencies"].tolist()

    def project(name, vector):
        out = parameters[f"{name}.weight"] @ vector
        return out + parameters[f"{name}.bias"] if config["bias"] else out

    rows = []
    for b in range(x.shape[0]):
        kept = [t for t in range(x.shape[1]) if mask.padding is None or mask.padding[b, t]]
        n = len(kept)
        outputs = [torch.zeros(config["dim"], dtype=x.dtype) for _ in range(x.shape[1])]
        q = [project("query", x[b, t]) for t in kept]
        parts = [[] for _ in kept]
        for h in range(heads if n else 0):
            cut = slice(h * width, (h + 1) * width)
            spectrum = [torch.zeros(width, dtype=torch.complex128) for _ in range(n)]
            for m, f in enumerate(frequencies):
                if 2 * f > n:
                    continue
                found = sum(cmath.exp(-2j * cmath.pi * f * t / n) * q[t][cut] for t in range(n))
                filtered = weight[m, h] @ found
                # a real signal: half of it at f, the conjugate half at n - f
                spectrum[f] = spectrum[f] + filtered / 2
                spectrum[-f % n] = spectrum[-f % n] + filtered.conj() / 2
                if f not in (0, n - f):
                    spectrum[f], spectrum[-f % n] = spectrum[f] * 2, spectrum[-f % n] * 2
            for t in range(n):
                total = sum(cmath.exp(2j * cmath.pi * f * t / n) * spectrum[f] for f in range(n)) / n
                parts[t].append(total.real)
        for t, place in enumerate(kept):
            outputs[place] = project("output", torch.cat(parts[t]))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


ORACLES = {"fourier-block": fourier_block_oracle}
