"""The Activator, token by token (or, along the tokens, channel by channel), from the equations."""

from __future__ import annotations

import math

import torch


def activator_oracle(parameters, config, x, context, mask):
    batch, *grid, dim = x.shape
    flat = x.reshape(batch, math.prod(grid), dim)
    rows = []
    for b in range(batch):
        if config["axis"] == "token":
            normed = torch.stack([_norm(parameters, "norm", token) for token in flat[b]])
            mixed = torch.stack([_gated(parameters, config, normed[:, c]) for c in range(dim)], 1)
        else:
            mixed = torch.stack([_gated(parameters, config, _norm(parameters, "norm", token)) for token in flat[b]])
        outputs = []
        for t in range(flat.shape[1]):
            y = flat[b, t] + mixed[t]
            if config["second_block"]:
                hidden = _affine(parameters, "feed_forward.up", _norm(parameters, "norm", y))
                y = y + _affine(parameters, "feed_forward.down", _act(config, hidden))
            real = mask.padding is None or bool(mask.padding[b, t])
            outputs.append(y if real else torch.zeros(dim, dtype=x.dtype))
        rows.append(torch.stack(outputs))
    return torch.stack(rows).reshape(x.shape)


def _gated(parameters, config, z):
    gate = _act(config, _affine(parameters, "gated.gate", z))
    up = _affine(parameters, "gated.up", z)
    return _affine(
        parameters, "gated.down", _norm(parameters, "gated.norm", gate) * _norm(parameters, "gated.norm", up)
    )


def _affine(parameters, name, z):
    return parameters[f"{name}.weight"] @ z + parameters[f"{name}.bias"]


def _norm(parameters, name, z):
    centred = z - z.sum() / z.numel()
    scaled = centred / torch.sqrt((centred * centred).sum() / z.numel() + 1e-5)
    return scaled * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def _act(config, z):
    if config["activation"] == "gelu":
        return z * (1 + torch.erf(z / math.sqrt(2))) / 2
    return z / (1 + torch.exp(-z))  # silu


ORACLES = {"activator": activator_oracle}
