"""Hybrid-scale and self-guided attention, cell by cell and group by group."""

from __future__ import annotations

import itertools
import math

import torch


def softmax(scores):
    powers = torch.exp(torch.stack(scores) - max(s.item() for s in scores))
    return powers / powers.sum()


def normed(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5) * weight + bias


class Parts:
    """The parameters of one of the two attentions, of one image."""

    def __init__(self, parameters, prefix, image):
        self.parameters, self.prefix, self.image = parameters, prefix, image
        self.height, self.width, self.dim = image.shape
        self.cells = list(itertools.product(range(self.height), range(self.width)))

    def __getitem__(self, name):
        return self.parameters[f"{self.prefix}.{name}"]

    def linear(self, name, token):
        y = self[f"{name}.weight"] @ token
        bias = f"{self.prefix}.{name}.bias"
        return y + self.parameters[bias] if bias in self.parameters else y

    def local_position(self, cell):
        total = self["positions.convolve.large.bias"]
        for a, b in itertools.product((-1, 0, 1), repeat=2):
            row, column = cell[0] + a, cell[1] + b
            if 0 <= row < self.height and 0 <= column < self.width:
                moved = self.linear("positions.project", self.image[row, column])
                total = total + self["positions.convolve.large.weight"][:, 0, a + 1, b + 1] * moved
        return total


def hybrid(parameters, config, image):
    part = Parts(parameters, "hybrid", image)
    ratio, window, heads = config["ratio"], config["window"], {"fine": config["heads"] // 2}
    heads["coarse"] = config["heads"] - heads["fine"]
    head = part.dim // config["heads"]
    blocks = list(itertools.product(range(math.ceil(part.height / ratio)), range(math.ceil(part.width / ratio))))
    coarse = {}
    for block in blocks:
        total = part["coarse.bias"]
        for a, b in itertools.product(range(ratio), repeat=2):
            row, column = block[0] * ratio + a, block[1] * ratio + b
            if row < part.height and column < part.width:
                total = total + part["coarse.weight"][:, :, a, b] @ image[row, column]
        z = normed(total, part["coarse_norm.weight"], part["coarse_norm.bias"])
        coarse[block] = z * 0.5 * (1 + torch.erf(z / 2**0.5))
    of_block, of_cell = dict.fromkeys(blocks, 0.0), dict.fromkeys(part.cells, 0.0)
    mixed = {}
    for i in part.cells:
        near = [j for j in part.cells if all(a // window == b // window for a, b in zip(i, j, strict=True))]
        outputs = {"coarse": [], "fine": []}
        for kind, h in [("coarse", h) for h in range(heads["coarse"])] + [("fine", h) for h in range(heads["fine"])]:
            cut = slice(h * head, (h + 1) * head)
            places = blocks if kind == "coarse" else near
            tokens = [coarse[j] if kind == "coarse" else image[j] for j in places]
            q = part.linear(f"{kind}_query", image[i])[cut]
            weights = softmax([q @ part.linear(f"{kind}_key", token)[cut] / head**0.5 for token in tokens])
            outputs[kind].append(weights @ torch.stack([part.linear(f"{kind}_value", token)[cut] for token in tokens]))
            received, queries = (of_block, len(part.cells)) if kind == "coarse" else (of_cell, len(near))
            for j, weight in zip(places, weights, strict=True):
                received[j] += weight.item() / (heads[kind] * queries)
        joined = torch.cat(outputs["coarse"] + outputs["fine"])
        mixed[i] = part.linear("output", joined + part.local_position(i))
    significance = {i: of_block[i[0] // ratio, i[1] // ratio] + of_cell[i] for i in part.cells}
    return torch.stack([mixed[i] for i in part.cells]).view_as(image), significance


def guided(parameters, config, image, significance):
    part = Parts(parameters, "guided", image)
    heads, head, count = config["heads"], part.dim // config["heads"], len(part.cells)
    ranked = sorted(part.cells, key=lambda cell: significance[cell])
    shares = (0.25, 0.5, 0.25) if len(config["groups"]) == 3 else (0.5, 0.5)
    tokens, start = [], 0.0
    for index, (share, size) in enumerate(zip(shares, config["groups"], strict=True)):
        members = ranked[math.floor(start * count) : math.floor((start + share) * count)]
        start += share
        for first in range(0, len(members), size):
            total = part[f"merges.{index}.bias"]
            for place, cell in enumerate(members[first : first + size]):
                total = total + part[f"merges.{index}.weight"][0, place] * image[cell]
            tokens.append(total.expand(part.dim))
    outputs = []
    for i in part.cells:
        q, joined = part.linear("query", image[i]), []
        for h in range(heads):
            cut = slice(h * head, (h + 1) * head)
            weights = softmax([q[cut] @ part.linear("key", token)[cut] / head**0.5 for token in tokens])
            joined.append(weights @ torch.stack([part.linear("value", token)[cut] for token in tokens]))
        outputs.append(part.linear("output", torch.cat(joined) + part.local_position(i)))
    return torch.stack(outputs).view_as(image)


def sg_attention_oracle(parameters, config, x, context, mask):
    images = []
    for image in x:
        u, significance = hybrid(parameters, config, image)
        z = normed(image + u, parameters["norm.weight"], parameters["norm.bias"])
        images.append(u + guided(parameters, config, z, significance))
    return torch.stack(images)


ORACLES = {"sg-attention": sg_attention_oracle}
