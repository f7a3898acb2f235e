"""Low-rank factorised attention over a gated recurrent encoder, state by state, from the equations."""

from __future__ import annotations

import torch


def lama_oracle(parameters, config, x, context, mask):
    batch, tokens, dim = x.shape
    rows = []
    for b in range(batch):
        outputs = [torch.zeros(dim, dtype=x.dtype)] * tokens
        for episode in _episodes(mask, b, tokens):
            encoded = _encode(parameters, config, [x[b, t] for t in episode])
            for place, t in enumerate(episode):
                seen = encoded[: place + 1] if config["causal"] else encoded
                if config["window"]:
                    seen = seen[-config["window"] :]
                outputs[t] = parameters["output.weight"] @ _pool(parameters, config, seen)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def _episodes(mask, b, tokens):
    episodes = [[]]
    for t in range(tokens):
        if mask.reset is not None and mask.reset[b, t]:
            episodes.append([])
        if mask.padding is None or mask.padding[b, t]:
            episodes[-1].append(t)
    return [episode for episode in episodes if episode]


def _encode(parameters, config, tokens):
    ahead = _gru(parameters, "", tokens)
    if config["causal"]:
        return ahead
    back = _gru(parameters, "_reverse", tokens[::-1])[::-1]
    return [torch.cat(pair) for pair in zip(ahead, back, strict=True)]


def _gru(parameters, suffix, tokens):
    w_in, w_state = parameters[f"encoder.unit.weight_ih_l0{suffix}"], parameters[f"encoder.unit.weight_hh_l0{suffix}"]
    b_in, b_state = parameters[f"encoder.unit.bias_ih_l0{suffix}"], parameters[f"encoder.unit.bias_hh_l0{suffix}"]
    units = w_state.shape[1]
    h, states = torch.zeros(units, dtype=w_in.dtype), []
    for x in tokens:
        given, own = w_in @ x + b_in, w_state @ h + b_state
        r = 1 / (1 + torch.exp(-(given[:units] + own[:units])))
        z = 1 / (1 + torch.exp(-(given[units : 2 * units] + own[units : 2 * units])))
        n = torch.tanh(given[2 * units :] + r * own[2 * units :])
        h = (1 - z) * n + z * h
        states.append(h)
    return states


def _pool(parameters, config, seen):
    """Each head has its full matrix q_k p_k'."""
    heads = config["heads"]
    c = parameters["learned"] if config["context"] == "learned" else sum(seen) / len(seen)
    columns = []
    for h in seen:
        f = []
        for k in range(heads):
            affinity = torch.outer(parameters["q"][:, k], parameters["p"][:, k])
            f.append(torch.tanh(h @ affinity @ c))
        length = torch.sqrt(sum(value * value for value in f) + 1e-12)
        columns.append([value / length for value in f])
    pooled = []
    for k in range(heads):
        factor = torch.exp(parameters["log_sharpness"][k]) if config["temperature"] else 1.0
        weights = [torch.exp(factor * (column[k] - 1)) for column in columns]
        pooled.append(sum(w * h for w, h in zip(weights, seen, strict=True)) / sum(weights))
    return torch.cat(pooled)


ORACLES = {"lama": lama_oracle}
