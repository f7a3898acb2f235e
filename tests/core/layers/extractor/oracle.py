"""The Extractors, a double loop over tokens, from the equations."""

from __future__ import annotations

import math

import torch


def extractor_oracle(parameters, config, x, context, mask):
    batch, tokens, dim = x.shape
    rows = []
    for b in range(batch):
        episode, outputs = [], []
        for t in range(tokens):
            if mask.reset is not None and mask.reset[b, t]:
                episode = []
            if mask.padding is not None and not mask.padding[b, t]:
                outputs.append(torch.zeros(dim, dtype=x.dtype))
                continue
            episode.append(x[b, t])
            count = len(episode)
            total = 0.0
            for i, token in enumerate(episode):
                at = count - 1 - i if config.get("index") == "lag" else i
                total = total + _brought(parameters, token, at)
            y = (parameters["adjust.weight"] @ x[b, t]) * total / math.sqrt(count)
            outputs.append(y if "output.weight" not in parameters else parameters["output.weight"] @ y)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def _brought(parameters, token, at):
    if "extract.weight" not in parameters:
        return token @ parameters["weight"][at]
    shared = parameters["extract.weight"] @ token
    return shared * parameters["weight"][at] if "weight" in parameters else shared


ORACLES = {
    "extractor-she": extractor_oracle,
    "extractor-he": extractor_oracle,
    "extractor-we": extractor_oracle,
    "extractor-me": extractor_oracle,
}
