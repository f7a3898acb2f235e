"""Query, key and value projections for serving: the part of the request's tokens is computed once per request.

All three kinds (vanilla, heterogeneous, composite) are linear in the normalised tokens. So a projection of all tokens
splits exactly into a part of the request's tokens and a part of the candidate's tokens:

    vec(N) W + b = vec(N_candidate) W_candidate + (vec(N_request) W_request + b)

``request`` computes the second part from the request's tokens, ``(S, 1, D)``, token-major. ``forward`` adds the
candidates' tokens, ``(C, B, D)``. If ``state`` is empty, ``forward`` takes all tokens and the result is the layer's own
projection.

Layer norm: ``N = z * gain + shift``, where z is the standardised token. ``gain`` and ``shift`` are folded into weights
and bias, so that the inputs here are z:

    N W' + b = z (W diag(gain))' + (W shift + b)

Token order: ``[candidate's, request's]``, while the network has its fields in the order of the table. ``order`` lists
the original index of each token. Attention only sums over tokens, so that the result is exact in any order if the
weights of each token move with it.

Shapes: B candidates, T = C + S tokens, Q queries (the last tokens), D width, H heads, E = D / H head width, r rank.
``forward`` returns ``q (B, H, Q, E)``, already scaled by ``E ** -0.5``, ``k (B, H, E, T)`` and ``v (B, H, T, E)``.
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
    """Return a contiguous copy as a parameter without gradient."""
    return nn.Parameter(value.detach().contiguous().clone(), requires_grad=False)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x @ weight + bias``: ONNX Runtime fuses both into one operation (Gemm) if ``weight`` is a matrix."""
    return x @ weight + bias


class Composite(nn.Module):
    """Composite projections of a Hiformer layer: ``vec(N) W + b``, or at rank r ``(vec(N) L) R + b``.

    At low rank only ``vec(N) L`` is split into candidate and request parts: it has the large input.

    Args:
        layer: a trained layer.
        order: original index of each token, candidate's tokens first.
        candidates: C, the number of candidate tokens.
    """

    def __init__(self, layer: Hiformer, order: list[int], candidates: int) -> None:
        super().__init__()
        tokens, dim, heads = layer.fields, layer.dim, layer.heads
        width = dim // heads
        self.shape = (heads, layer.queries, width, tokens)
        self.rank, self.split = layer.rank, candidates * dim
        gain, shift = layer.norm.weight.detach(), layer.norm.bias.detach()

        # A pruned layer computes the queries of the task tokens only. They are last in both orders.
        query_order = order if layer.queries == tokens else list(range(layer.queries))
        self.names = ("query", "key", "values")
        outputs = []
        for name, places in zip(self.names, (query_order, order, order), strict=True):
            module: nn.Linear = getattr(layer, name)

            # Output features (T D) as (T, H, E), then the tokens in serving order.
            weight = module.weight.detach().unflatten(0, (-1, heads, width))[places]
            bias = module.bias.detach().unflatten(0, (-1, heads, width))[places]

            # softmax(Q K' / sqrt(E)): fold the scale into the query weights, as (c Q) K' = c (Q K').
            if name == "query":
                weight, bias = weight * width**-0.5, bias * width**-0.5

            # Order the output columns as attention reads them, so that no product needs a transpose afterwards:
            # keys (T, H, E) -> (H, E, T); queries and values (T, H, E) -> (H, T, E).
            axes = (1, 2, 0) if name == "key" else (1, 0, 2)
            outputs.append((weight.permute(*axes, 3).flatten(0, 2).T, bias.permute(axes).flatten()))

        if layer.rank is None:
            # Full rank: split each W, which reads vec(N) itself.
            splits = [self._split_input(weight, bias, gain, shift, order) for weight, bias in outputs]
            self.upper, self.lower, self.bias = (
                nn.ParameterList(constant(p) for p in part) for part in zip(*splits, strict=True)
            )
        else:
            # Low rank, W = L R: split L, one matrix for q, k and v (T D x 3 r). It has no bias of its own; the norm's
            # shift gives it one.
            upper, lower, bias = self._split_input(
                layer.down.weight.detach().T, torch.zeros(3 * layer.rank), gain, shift, order
            )
            self.upper, self.lower, self.bias = (nn.ParameterList([constant(p)]) for p in (upper, lower, bias))

            # R and b see only vec(N) L and stay whole.
            self.up = nn.ParameterList(constant(weight) for weight, _ in outputs)
            self.up_bias = nn.ParameterList(constant(bias) for _, bias in outputs)

    def _split_input(
        self, weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor, order: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fold the layer norm into ``weight (T D, O)`` and split its rows.

        Returns the candidate's rows ``(C D, O)``, the request's rows ``(S D, O)`` and the bias ``(O,)``.
        """
        # Input features (T D) as (T, D), then the tokens in serving order.
        cube = weight.unflatten(0, (-1, gain.shape[0]))[order]

        # vec(z gain + shift) W + b = vec(z) (gain W) + (sum_t shift W_t + b)
        bias = bias + torch.einsum("tdo,d->o", cube, shift)
        flat = (cube * gain[:, None]).flatten(0, 1)

        # vec(z) W = vec(z_candidate) W[:C D] + vec(z_request) W[C D:]
        return flat[: self.split], flat[self.split :], bias

    def request(self, normed: Tensor) -> State:
        """Return ``vec(z_request) W_request + b``, ``(1, O)`` for each split product, from ``normed (S, 1, D)``."""
        flat = normed.transpose(0, 1).flatten(1)
        return tuple(affine(flat, w, b) for w, b in zip(self.lower, self.bias, strict=True))

    def forward(self, normed: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v from the candidates' tokens ``(C, B, D)`` and the state of :meth:`request`."""
        flat = normed.transpose(0, 1).reshape(-1, self.split)

        # vec(z_candidate) W_candidate + state: the request's part takes the place of the bias.
        request_part = state or tuple(self.bias)
        first = [affine(flat, w, s) for w, s in zip(self.upper, request_part, strict=True)]

        # Low rank: (vec(N) L) R + b; the columns of L are those of query, key and value, r each.
        if self.rank is not None:
            z, r = first[0], self.rank
            first = [
                affine(z[:, n * r : (n + 1) * r], w, b)
                for n, (w, b) in enumerate(zip(self.up, self.up_bias, strict=True))
            ]

        # The columns are in the order of attention: a view is enough.
        heads, queries, width, tokens = self.shape
        q, k, v = first
        return q.view(-1, heads, queries, width), k.view(-1, heads, width, tokens), v.view(-1, heads, tokens, width)


class Rowwise(nn.Module):
    """Projections token by token: one matrix per field, ``(T, D, O)``, or one for all fields, ``(D, O)``.

    Each token is projected alone. So the request's rows of q, k and v are computed once and joined to the candidates'
    rows; no sum is split.

    Args:
        layer: a trained layer.
        order: original index of each token, candidate's tokens first.
        candidates: C, the number of candidate tokens.
        dim: D.
        queries: Q, the number of last tokens that the layer computes.
    """

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

            # Weights per field move with the tokens; a pruned layer has query weights of the task tokens only.
            query_order = order if queries == tokens else list(range(queries))
            query = layer.query.weight.detach()[query_order], layer.query.bias.detach()[query_order].unsqueeze(1)
            both = layer.key_value.weight.detach()[order], layer.key_value.bias.detach()[order].unsqueeze(1)
        else:
            attention = layer.layer
            assert isinstance(attention, SoftmaxAttention)
            self.heads = attention.heads
            query = attention.query.weight.detach(), attention.query.bias.detach()

            # [k, v] = N [K, V]: keys and values in one product.
            names = (attention.key, attention.value)
            both = tuple(torch.cat([getattr(m, part).detach() for m in names]) for part in ("weight", "bias"))
        self.queries, self.candidates = queries, candidates

        # The queries are the last Q of T = C + S tokens: all but S of them belong to the candidate.
        self.candidate_queries = max(0, queries - (tokens - candidates))

        # softmax(Q K' / sqrt(E)): fold the scale into the query weights and bias.
        scale = (dim // self.heads) ** -0.5
        parts = []
        for (weight, bias), factor in ((query, scale), (both, 1.0)):
            # (z gain + shift) W' + b = z (W gain)' + (W shift + b)
            folded_shift = weight @ shift
            bias = bias + (folded_shift.unsqueeze(1) if self.own else folded_shift)
            parts += [constant((weight * gain).mT * factor), constant(bias * factor)]
        self.query, self.query_bias, self.both, self.both_bias = parts

    def _rows(self, normed: Tensor, keys: slice, queries: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Project the tokens ``keys``, ``normed (n, B, D)``: q, k and v, each ``(B, H, ., E)``.

        ``keys`` counts among all tokens, ``queries`` among all queries. The queries are the last of these tokens.
        """
        both, both_bias, query, query_bias = self.both, self.both_bias, self.query, self.query_bias
        if self.own:
            both, both_bias, query, query_bias = both[keys], both_bias[keys], query[queries], query_bias[queries]

        # [k, v] = z [K, V] + b, for every token
        key, value = affine(normed, both, both_bias).split(self.dim, -1)

        # q = z Q + b, for the last tokens only
        count = queries.stop - queries.start
        query_rows = affine(normed[keys.stop - keys.start - count :], query, query_bias)
        return self._by_head(query_rows), self._by_head(key), self._by_head(value)

    def _by_head(self, x: Tensor) -> Tensor:
        """``(n, B, D)`` -> ``(B, H, n, E)``."""
        return x.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)

    def request(self, normed: Tensor) -> State:
        """Return q, k and v of the request's tokens, ``(1, H, ., E)`` each, from ``normed (S, 1, D)``."""
        keys, queries = slice(self.candidates, self.tokens), slice(self.candidate_queries, self.queries)
        return self._rows(normed, keys, queries)

    def forward(self, normed: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v from the candidates' tokens ``(C, B, D)`` and the state of :meth:`request`."""
        if not state:
            q, k, v = self._rows(normed, slice(0, self.tokens), slice(0, self.queries))
            return q, k.transpose(2, 3), v
        q, k, v = self._rows(normed, slice(0, self.candidates), slice(0, self.candidate_queries))

        # q = [q_candidate; q_request], likewise k and v: the request's rows are repeated for every candidate.
        rows = normed.shape[1]
        joined = [torch.cat([a, b.expand(rows, -1, -1, -1)], 2) for a, b in zip((q, k, v), state, strict=True)]
        return joined[0], joined[1].transpose(2, 3), joined[2]
