"""The routing transformer's attention, token by token, from the equations."""

from __future__ import annotations

import math

import torch


def routing_oracle(parameters, config, x, context, mask):
    rows = []
    for b in range(x.shape[0]):
        kept = [t for t in range(x.shape[1]) if mask.padding is None or bool(mask.padding[b, t])]
        starts = [mask.reset is not None and bool(mask.reset[b, t]) for t in range(x.shape[1])]
        episodes, episode, place = [], 0, {}
        for t in range(x.shape[1]):
            episode += starts[t]
            if t in kept:
                place[t] = sum(1 for e in episodes if e == episode)
                episodes.append(episode)
        outputs = _row(parameters, config, x[b], kept, [place[t] for t in kept], episodes)
        zero = torch.zeros(x.shape[2], dtype=x.dtype)
        rows.append(torch.stack([outputs.get(t, zero) for t in range(x.shape[1])]))
    return torch.stack(rows)


def _row(parameters, config, x, kept, place, episodes):
    """``kept``: real tokens; ``place``, ``episodes``: position within the episode and number of the episode of each."""
    heads, local, width = config["heads"], config["local_heads"], config["dim"] // config["heads"]
    shared = config["shared_qk"]
    queries = [_heads(parameters["query.weight"] @ x[t], width) for t in kept]
    keys = [[] if "key.weight" not in parameters else _heads(parameters["key.weight"] @ x[t], width) for t in kept]
    values = [_heads(parameters["value.weight"] @ x[t], width) for t in kept]
    parts = [[] for _ in kept]
    for h in range(heads):
        v = [value[h] for value in values]
        if h < local:
            out = _local([q[h] for q in queries], [k[h] for k in keys], v, place, episodes, config)
        else:
            q = [_sphere(one[h]) for one in queries]
            k = q if shared else [_sphere(one[h]) for one in keys]
            centroids = parameters["centroids"][h - local]
            routed = _top_w if config["assignment"] == "top-w" else _latest_w
            out = routed(q, k, v, centroids, episodes, config)
        for i, one in enumerate(out):
            parts[i].append(one)
    return {t: parameters["output.weight"] @ torch.cat(part) for t, part in zip(kept, parts, strict=True)}


def _heads(vector, width):
    return [vector[i : i + width] for i in range(0, len(vector), width)]


def _sphere(vector):
    centred = vector - vector.mean()
    return centred / torch.sqrt((centred * centred).mean() + 1e-6)


def _softmax_mean(query, keys, values):
    scores = torch.stack([(query * key).sum() for key in keys]) / math.sqrt(len(query))
    weights = torch.exp(scores - scores.detach().max())
    return sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))


def _local(q, k, v, place, episodes, config):
    block, outputs = config["block"], []
    for i in range(len(q)):
        mine = place[i] // block
        near = (mine - 1, mine) if config["causal"] else (mine - 1, mine, mine + 1)
        seen = [
            j
            for j in range(len(k))
            if place[j] // block in near and episodes[j] == episodes[i] and (j <= i or not config["causal"])
        ]
        outputs.append(_softmax_mean(q[i], [k[j] for j in seen], [v[j] for j in seen]))
    return outputs


def _members(vectors, centroid, size):
    order = sorted(range(len(vectors)), key=lambda i: -(vectors[i] * centroid).sum().item())
    return sorted(order[:size])


def _top_w(q, k, v, centroids, episodes, config):
    found = [[] for _ in q]
    for centroid in centroids:
        asking, asked = _members(q, centroid, config["window"]), _members(k, centroid, config["window"])
        for i in asking:
            seen = [j for j in asked if j <= i or not config["causal"]]
            if seen:
                found[i].append(_softmax_mean(q[i], [k[j] for j in seen], [v[j] for j in seen]))
    return [sum(some) / len(some) if some else torch.zeros_like(one) for some, one in zip(found, v, strict=True)]


def _latest_w(q, k, v, centroids, episodes, config):
    cluster = [max(range(len(centroids)), key=lambda c, one=one: (one * centroids[c]).sum().item()) for one in q]
    outputs = []
    for i in range(len(q)):
        seen = [j for j in range(i + 1) if cluster[j] == cluster[i] and episodes[j] == episodes[i]]
        seen = seen[-config["window"] :]
        outputs.append(_softmax_mean(q[i], [k[j] for j in seen], [v[j] for j in seen]))
    return outputs


ORACLES = {"routing": routing_oracle}
