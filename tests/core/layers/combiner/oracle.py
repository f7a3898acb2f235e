"""Combiner: for each token the set of tokens seen directly and the spans, by loops, from equations 7 to 9."""

from __future__ import annotations

import math

import torch


def _project(parameters, name, vector):
    out = parameters[f"{name}.weight"] @ vector
    bias = parameters.get(f"{name}.bias")
    return out if bias is None else out + bias


def _softmax(scores):
    top = max(score.item() for score in scores)
    weights = [torch.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def _expectation(i, direct, spans, q, k, v):
    """Direct tokens and spans under one normaliser; every span is a list of tokens."""
    scale = math.sqrt(len(q[0]))
    keys, values = [k[j] for j in direct], [v[j] for j in direct]
    for span in spans:
        top = torch.stack([q[j] for j in span]).amax(0)
        inside = _softmax([top @ k[j] / scale for j in span])
        keys.append(torch.stack([k[j] for j in span]).amax(0))
        values.append(sum(w * v[j] for w, j in zip(inside, span, strict=True)))
    weights = _softmax([q[i] @ key / scale for key in keys])
    return sum(w * value for w, value in zip(weights, values, strict=True))


def _fixed_plan(config, i, length):
    segment = config["segment"] or math.ceil(math.sqrt(length))
    parts = [list(range(a, min(a + segment, length))) for a in range(0, length, segment)]
    own = i // segment
    if config["causal"]:
        return [j for j in parts[own] if j <= i], parts[:own]
    return parts[own], parts[:own] + parts[own + 1 :]


def _logsparse_plan(config, i, length):
    spans, at = [], 0
    for level in reversed(range(i.bit_length())):
        if i >> level & 1:
            spans.append(list(range(at, at + 2**level)))
            at += 2**level
    assert at == i
    return [i], spans


def _episodes(mask, b, tokens):
    """Lists of real tokens, one for each episode."""
    found = [[]]
    for t in range(tokens):
        if mask.reset is not None and mask.reset[b, t]:
            found.append([])
        if mask.padding is None or mask.padding[b, t]:
            found[-1].append(t)
    return [episode for episode in found if episode]


def _sequence_oracle(plan):
    def oracle(parameters, config, x, context, mask):
        batch, tokens, dim = x.shape
        heads = config["heads"]
        width = dim // heads
        rows = []
        for b in range(batch):
            out = [torch.zeros(dim, dtype=x.dtype)] * tokens
            for episode in _episodes(mask, b, tokens):
                q, k, v = ([_project(parameters, n, x[b, t]) for t in episode] for n in ("query", "key", "value"))
                for i, t in enumerate(episode):
                    direct, spans = plan(config, i, len(episode))
                    parts = []
                    for h in range(heads):
                        cut = slice(h * width, (h + 1) * width)
                        parts.append(_expectation(i, direct, spans, *([p[cut] for p in part] for part in (q, k, v))))
                    out[t] = _project(parameters, "output", torch.cat(parts))
            rows.append(torch.stack(out))
        return torch.stack(rows)

    return oracle


combiner_fixed_oracle = _sequence_oracle(_fixed_plan)
combiner_logsparse_oracle = _sequence_oracle(_logsparse_plan)


def _axial_plan(plan, i, columns):
    """Row-major tokens; the direct ones and the spans of token ``i``."""
    row, column = divmod(i, columns)
    own = [row * columns + c for c in range(column + 1)]
    above = [r * columns + column for r in range(row)]
    if plan == "vertical":
        spans = [[r * columns + c for r in range(row)] for c in range(columns) if c != column]
    else:
        spans = [[r * columns + c for c in range(column)] for r in range(row)]
        spans += [[r * columns + c for c in range(column + 1, columns)] for r in range(row)]
    return own + above, [span for span in spans if span]


def combiner_axial_oracle(parameters, config, x, context, mask):
    batch, columns, dim = x.shape[0], x.shape[2], x.shape[3]
    heads = config["heads"]
    width = dim // heads
    cuts = [slice(h * width, (h + 1) * width) for h in range(heads)]
    out = []
    for b in range(batch):
        tokens = list(x[b].reshape(-1, dim))
        q, k, v = ([_project(parameters, n, token) for token in tokens] for n in ("query", "key", "value"))
        seen = [mask.padding is None or bool(mask.padding[b, i]) for i in range(len(tokens))]
        if config["plan"] == "rowmajor":
            names, held = _finished_rows(parameters, tokens, columns, cuts, q, k, v)
        for i in range(len(tokens)):
            if not seen[i]:
                out.append(torch.zeros(dim, dtype=x.dtype))
                continue
            parts = []
            for cut in cuts:
                if config["plan"] == "rowmajor":
                    first, column = i - i % columns, i % columns
                    own, above = range(first, i + 1), range(column, first, columns)
                    keys = [k[j][cut] for j in own] + [names[j][cut] for j in above]
                    values = [v[j][cut] for j in own] + [held[j][cut] for j in above]
                    weights = _softmax([q[i][cut] @ key / math.sqrt(width) for key in keys])
                    parts.append(sum(w * value for w, value in zip(weights, values, strict=True)))
                    continue
                direct, spans = _axial_plan(config["plan"], i, columns)
                spans = [[j for j in span if seen[j]] for span in spans]
                direct = [j for j in direct if seen[j]]
                cut_qkv = ([p[cut] for p in part] for part in (q, k, v))
                parts.append(_expectation(i, direct, [span for span in spans if span], *cut_qkv))
            out.append(_project(parameters, "output", torch.cat(parts)))
    return torch.stack(out).reshape(x.shape)


def _finished_rows(parameters, tokens, columns, cuts, q, k, v):
    """Attention of every token in its whole row, and the key that is made from it."""
    names, held = [], []
    for i, token in enumerate(tokens):
        row = range(i - i % columns, i - i % columns + columns)
        parts = []
        for cut in cuts:
            weights = _softmax([q[i][cut] @ k[j][cut] / math.sqrt(len(q[i][cut])) for j in row])
            parts.append(sum(w * v[j][cut] for w, j in zip(weights, row, strict=True)))
        held.append(torch.cat(parts))
        wide = token + _project(parameters, "row", held[-1])
        centred = wide - wide.mean()
        normed = centred / torch.sqrt(centred.square().mean() + 1e-5)
        names.append(_project(parameters, "row_key", normed * parameters["norm.weight"] + parameters["norm.bias"]))
    return names, held


ORACLES = {
    "combiner-fixed": combiner_fixed_oracle,
}
