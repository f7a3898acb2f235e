"""Heterogeneous and composite attention, field by field, each projection applied as the equation writes it."""

from __future__ import annotations

import math

import torch


def heterogeneous_oracle(parameters, config, x, context, mask):
    """k and v of field j by its own matrices; the parameters hold both one above the other."""
    dim, fields = config["dim"], config["fields"]
    first = fields - (config["queries"] or fields)

    def project(tokens):
        queries = {
            t: parameters["query.weight"][t - first] @ tokens[t] + parameters["query.bias"][t - first]
            for t in range(first, fields)
        }
        both = [parameters["key_value.weight"][t] @ tokens[t] + parameters["key_value.bias"][t] for t in range(fields)]
        return queries, [part[:dim] for part in both], [part[dim:] for part in both]

    return _block(parameters, config, x, mask, project)


def hiformer_oracle(parameters, config, x, context, mask):
    """Every q, k and v from the record as a whole."""
    dim, fields, rank = config["dim"], config["fields"], config["rank"]
    first = fields - (config["queries"] or fields)

    def project(tokens):
        record = torch.cat(tokens)
        made = []
        for i, name in enumerate(("query", "key", "values")):
            source = record
            if rank is not None:
                source = torch.stack([(parameters["down.weight"][i * rank + j] * record).sum() for j in range(rank)])
            whole = parameters[f"{name}.weight"] @ source + parameters[f"{name}.bias"]
            made.append([whole[t * dim : (t + 1) * dim] for t in range(len(whole) // dim)])
        queries = {first + i: q for i, q in enumerate(made[0])}
        return queries, made[1], made[2]

    return _block(parameters, config, x, mask, project)


def _block(parameters, config, x, mask, project):
    dim, fields, heads = config["dim"], config["fields"], config["heads"]
    width = dim // heads
    first = fields - (config["queries"] or fields)

    def normed(name, token):
        centred = token - token.mean()
        scaled = centred / torch.sqrt((centred * centred).mean() + 1e-5)
        return scaled * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]

    def of_field(name, t, vector):
        return parameters[f"{name}.weight"][t - first] @ vector + parameters[f"{name}.bias"][t - first]

    rows = []
    for b in range(x.shape[0]):
        real = [mask.padding is None or bool(mask.padding[b, t]) for t in range(fields)]
        zero = torch.zeros(dim, dtype=x.dtype)
        tokens = [normed("norm", x[b, t]) if real[t] else zero for t in range(fields)]
        queries, keys, values = project(tokens)
        outputs = []
        for t in range(fields):
            if not real[t]:
                outputs.append(zero)
                continue
            if t < first:
                outputs.append(x[b, t])
                continue
            parts = []
            for h in range(heads):
                cut = slice(h * width, (h + 1) * width)
                seen = [s for s in range(fields) if real[s]]
                scores = torch.stack([(queries[t][cut] * keys[s][cut]).sum() / math.sqrt(width) for s in seen])
                weights = scores.exp() / scores.exp().sum()
                parts.append(sum(w * values[s][cut] for w, s in zip(weights, seen, strict=True)))
            row = x[b, t] + of_field("output", t, torch.cat(parts))
            hidden = of_field("inner", t, normed("inner_norm", row))
            hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
            outputs.append(row + of_field("outer", t, hidden))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


ORACLES = {"heterogeneous": heterogeneous_oracle, "hiformer": hiformer_oracle}
