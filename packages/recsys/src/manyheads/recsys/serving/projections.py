"""Queries, keys and values of a layer, with what a request's own tokens give computed once.

All three kinds are linear in the normed tokens, row by row or as a composite of all rows. Tokens are ordered
``[candidate's, request's]``; ``request`` takes the request's rows, ``(S, 1, D)``, and ``forward`` adds the candidates',
``(C, B, D)``. With no request rows the projection is the layer's own.

Shapes: T = C + S tokens, Q queries (the last rows), H heads, E head width, r rank. Given are ``q (B, H, Q, E)`` with
the scale of the scores in it, ``k (B, H, E, T)`` and ``v (B, H, T, E)``: composites write these layouts as they are
multiplied, by the order of their columns, and nothing is transposed. The norm's gain and shift are in the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.layers.hiformer import Heterogeneous, Hiformer
from manyheads.core.layers.softmax import SoftmaxAttention

State = tuple[Tensor, ...]


def constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().contiguous().clone(), requires_grad=False)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product and a sum: ONNX Runtime makes one operation of them where the weight is a matrix."""
    return x @ weight + bias


class Composite(nn.Module):
    """Hiformer's: ``vec(N) W + b``, or ``(vec(N) L) R + b`` of which only ``vec(N) L`` is split."""

    def __init__(self, layer: Hiformer, order: list[int], candidates: int) -> None:
        super().__init__()
        tokens, dim, heads = layer.fields, layer.dim, layer.heads
        width = dim // heads
        self.shape = (heads, layer.queries, width, tokens)
        self.rank, self.split = layer.rank, candidates * dim
        gain, shift = layer.norm.weight.detach(), layer.norm.bias.detach()
        rows = order if layer.queries == tokens else list(range(layer.queries))
        self.names = ("query", "key", "values")
        ups = []
        for name, places in zip(self.names, (rows, order, order), strict=True):
            module: nn.Linear = getattr(layer, name)
            weight = module.weight.detach().unflatten(0, (-1, heads, width))[places]
            bias = module.bias.detach().unflatten(0, (-1, heads, width))[places]
            if name == "query":
                weight, bias = weight * width**-0.5, bias * width**-0.5
            axes = (1, 2, 0) if name == "key" else (1, 0, 2)
            ups.append((weight.permute(*axes, 3).flatten(0, 2).T, bias.permute(axes).flatten()))
        if layer.rank is None:
            firsts = [self._split_input(weight, bias, gain, shift, order) for weight, bias in ups]
            self.upper, self.lower, self.bias = (
                nn.ParameterList(constant(p) for p in part) for part in zip(*firsts, strict=True)
            )
        else:
            upper, lower, bias = self._split_input(
                layer.down.weight.detach().T, torch.zeros(3 * layer.rank), gain, shift, order
            )
            self.upper, self.lower, self.bias = (nn.ParameterList([constant(p)]) for p in (upper, lower, bias))
            self.up = nn.ParameterList(constant(weight) for weight, _ in ups)
            self.up_bias = nn.ParameterList(constant(bias) for _, bias in ups)

    def _split_input(
        self, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, order: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(T D, O)`` with the norm's gain in it, as the candidates' rows and the request's, and the bias."""
        cube = weight.unflatten(0, (-1, gain.shape[0]))[order]
        bias = bias + torch.einsum("tdo,d->o", cube, shift)
        flat = (cube * gain[:, None]).flatten(0, 1)
        return flat[: self.split], flat[self.split :], bias

    def request(self, normed: Tensor) -> State:
        flat = normed.transpose(0, 1).flatten(1)
        return tuple(affine(flat, w, b) for w, b in zip(self.lower, self.bias, strict=True))

    def forward(self, normed: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        flat = normed.transpose(0, 1).reshape(-1, self.split)
        given = state or tuple(self.bias)
        first = [affine(flat, w, s) for w, s in zip(self.upper, given, strict=True)]
        if self.rank is not None:
            z, r = first[0], self.rank
            first = [
                affine(z[:, n * r : (n + 1) * r], w, b)
                for n, (w, b) in enumerate(zip(self.up, self.up_bias, strict=True))
            ]
        heads, queries, width, tokens = self.shape
        q, k, v = first
        return q.view(-1, heads, queries, width), k.view(-1, heads, width, tokens), v.view(-1, heads, tokens, width)


class Rowwise(nn.Module):
    """Each token by a matrix of its own, ``(T, D, O)``, or all by one, ``(D, O)``."""

    def __init__(
        self, layer: Heterogeneous | ResidualBlock, order: list[int], candidates: int, dim: int, queries: int
    ) -> None:
        super().__init__()
        self.own = isinstance(layer, Heterogeneous)
        norm: Any = layer.norm if isinstance(layer, Heterogeneous) else layer.layer_norm
        gain, shift = norm.weight.detach(), norm.bias.detach()
        tokens = self.tokens = len(order)
        self.dim = dim
        if isinstance(layer, Heterogeneous):
            self.heads = layer.heads
            rows = order if queries == tokens else list(range(queries))
            query = layer.query.weight.detach()[rows], layer.query.bias.detach()[rows].unsqueeze(1)
            both = layer.key_value.weight.detach()[order], layer.key_value.bias.detach()[order].unsqueeze(1)
        else:
            attention = layer.layer
            assert isinstance(attention, SoftmaxAttention)
            self.heads = attention.heads
            query = attention.query.weight.detach(), attention.query.bias.detach()
            names = (attention.key, attention.value)
            both = tuple(torch.cat([getattr(m, part).detach() for m in names]) for part in ("weight", "bias"))
        self.queries, self.candidates = queries, candidates
        self.asked = max(0, queries - (tokens - candidates))  # queries among the candidates' tokens
        scale = (dim // self.heads) ** -0.5
        parts = []
        for (weight, bias), factor in ((query, scale), (both, 1.0)):
            extra = weight @ shift
            bias = bias + (extra.unsqueeze(1) if self.own else extra)
            parts += [constant((weight * gain).mT * factor), constant(bias * factor)]
        self.query, self.query_bias, self.both, self.both_bias = parts

    def _rows(self, normed: Tensor, keys: slice, queries: slice) -> tuple[Tensor, Tensor, Tensor]:
        """``(n, B, D)`` -> ``(B, H, ., E)`` three times."""
        both, both_bias, query, query_bias = self.both, self.both_bias, self.query, self.query_bias
        if self.own:
            both, both_bias, query, query_bias = both[keys], both_bias[keys], query[queries], query_bias[queries]
        wanted = queries.stop - queries.start
        key, value = affine(normed, both, both_bias).split(self.dim, -1)
        asked = affine(normed[keys.stop - keys.start - wanted :], query, query_bias)
        return self._by_head(asked), self._by_head(key), self._by_head(value)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)

    def request(self, normed: Tensor) -> State:
        keys, queries = slice(self.candidates, self.tokens), slice(self.asked, self.queries)
        return self._rows(normed, keys, queries)

    def forward(self, normed: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        if not state:
            q, k, v = self._rows(normed, slice(0, self.tokens), slice(0, self.queries))
            return q, k.transpose(2, 3), v
        q, k, v = self._rows(normed, slice(0, self.candidates), slice(0, self.asked))
        rows = normed.shape[1]
        joined = [torch.cat([a, b.expand(rows, -1, -1, -1)], 2) for a, b in zip((q, k, v), state, strict=True)]
        return joined[0], joined[1].transpose(2, 3), joined[2]
