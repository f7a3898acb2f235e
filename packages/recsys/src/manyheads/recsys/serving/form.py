"""The field transformers rewritten for serving: the same function, in two steps, with less work a row.

    state  = form.request(ids, numbers)              # of what all candidates share, (1, .) each
    logits = form.candidates(state, ids, numbers)    # (B, K)

The first layer's projections and the tower's first map are linear in their input, so that the part of the request's
fields is computed once. From there on every token depends on the candidate and all is computed for each: that bounds
what sharing saves (see docs/recsys.md). Norms, scales and batch norms are folded into the weights.

Tokens are ordered candidate's fields, request's fields, tasks; the tasks' are the request's too. Shapes: B candidates,
T = C + S tokens, Q queries, D width, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.layers.hiformer import Hiformer
from manyheads.recsys.features.layout import Layout
from manyheads.recsys.models.common import Tower
from manyheads.recsys.models.transformer import FieldTransformer
from manyheads.recsys.serving.projections import Composite, Rowwise, State, affine, constant
from manyheads.recsys.serving.tokens import SomeTokens, choose


class ServedLayer(nn.Module):
    """A layer of the transformer over ``[candidate's, request's]`` tokens."""

    def __init__(self, layer: Any, order: list[int], candidates: int, dim: int, queries: int) -> None:
        super().__init__()
        if isinstance(layer, Hiformer):
            self.project: Composite | Rowwise = Composite(layer, order, candidates)
        else:
            self.project = Rowwise(layer, order, candidates, dim, queries)
        self.queries, self.tokens, self.dim = queries, len(order), dim
        own = not isinstance(layer, ResidualBlock)
        rows = order if queries == len(order) else list(range(queries))
        if own:
            output, norm, inner, outer = layer.output, layer.inner_norm, layer.inner, layer.outer
        else:
            output, norm = layer.layer.output, layer.feed_forward_norm
            inner, outer = layer.feed_forward.up, layer.feed_forward.down

        def parts(module: Any) -> tuple[Tensor, Tensor]:
            weight, bias = module.weight.detach(), module.bias.detach()
            return (weight[rows], bias[rows].unsqueeze(1)) if own else (weight, bias)

        weight, bias = parts(output)
        self.output, self.output_bias = constant(weight.mT), constant(bias)
        weight, bias = parts(inner)
        gain, shift = norm.weight.detach(), norm.bias.detach()
        extra = weight @ shift
        self.inner = constant((weight * gain).mT)
        self.inner_bias = constant(bias + (extra.unsqueeze(1) if own else extra))
        weight, bias = parts(outer)
        self.outer, self.outer_bias = constant(weight.mT), constant(bias)

    def forward(self, x: Tensor, normed: Tensor, state: State) -> Tensor:
        """``x``: all tokens, ``(T, B, D)``; ``normed``: those that are not in ``state``."""
        q, k, v = self.project(normed, state)
        mixed = ((q @ k).softmax(-1) @ v).permute(2, 0, 1, 3).flatten(2)
        kept = x if self.queries == self.tokens else x[-self.queries :]  # a slice of all would be a copy
        rows = affine(mixed, self.output, self.output_bias) + kept
        hidden = functional.gelu(affine(standardised(rows, self.dim), self.inner, self.inner_bias))
        return affine(hidden, self.outer, self.outer_bias) + rows


class ServedTransformer(nn.Module):
    """See the module.

    Args:
        network: a trained network in evaluation mode.
        layout: the fields that it was made for.
        shared: columns whose values all candidates of a request share.
    """

    def __init__(self, network: FieldTransformer, layout: Layout, shared: Sequence[str] = ()) -> None:
        super().__init__()
        mixed = network.tokens.tokens - len(layout.names) if _mixes(network) else None
        ours, theirs = choose(layout, shared, split_numbers=mixed is None)
        self.shared, self.own = ours, theirs
        self.dim = network.norm.weight.shape[0]
        fields = network.tokens.tokens
        tasks = [] if network.task_tokens is None else list(range(fields, fields + len(layout.tasks)))
        places = [chosen.tokens(layout, mixed=mixed) for chosen in (theirs, ours)]
        order = [*places[0], *places[1], *tasks]
        self.count, self.total = len(places[0]), len(order)
        self.candidate_tokens = SomeTokens(layout, network.tokens, theirs)
        self.request_tokens = SomeTokens(layout, network.tokens, ours) if places[1] else None
        self.task_tokens = None if network.task_tokens is None else constant(network.task_tokens.unsqueeze(1))
        self.positions = None if network.positions is None else constant(network.positions[order].unsqueeze(1))
        self.layers = nn.ModuleList(
            ServedLayer(layer, order, len(order) if index else self.count, self.dim, queries)
            for index, (layer, queries) in enumerate(zip(network.layers, network.queries, strict=True))
        )
        self.flat = network.task_tokens is None
        gain, shift = network.norm.weight.detach(), network.norm.bias.detach()
        head_map: Any = network.head
        head = head_map.weight.detach()
        if self.flat:
            cube = head.unflatten(1, (-1, self.dim))[:, order]
            self.head = constant((cube * gain).flatten(1).T)
            self.head_bias = constant(head_map.bias + torch.einsum("ktd,d->k", cube, shift))
        else:
            self.head = constant((head * gain).mT)
            self.head_bias = constant(head_map.bias.unsqueeze(1) + (head @ shift).unsqueeze(1))
        self.tower = None
        if network.tower is not None:
            self.tower = ServedTower(network.tower, places[0], places[1], self.dim)

    def request(self, ids: Tensor, numbers: Tensor) -> State:
        """``(1, .)`` ids and numbers of the shared fields -> ``(x (S, 1, D), the rest for the first layer and tower)``;
        nothing where there is no such token."""
        fields = None if self.request_tokens is None else self.request_tokens(ids, numbers)
        parts = [part for part in (fields, self.task_tokens) if part is not None]
        state: State = ()
        if parts:
            x = parts[0] if len(parts) == 1 else torch.cat(parts)
            x = x if self.positions is None else x + self.positions[self.count :]
            first: Any = self.layers[0]
            state = (x, *first.project.request(standardised(x, self.dim)))
        if self.tower is not None and fields is not None:
            state = (*state, self.tower.request(fields))
        return state

    def candidates(self, state: State, ids: Tensor, numbers: Tensor) -> Tensor:
        """``(B, .)`` ids and numbers of the other fields -> logits ``(B, K)``."""
        fields = self.candidate_tokens(ids, numbers)
        own = fields if self.positions is None else fields + self.positions[: self.count]
        towered = self.tower is not None and self.request_tokens is not None
        first = state[1 : len(state) - towered]
        x = torch.cat([own, state[0].expand(-1, own.shape[1], -1)]) if state else own
        for index, layer in enumerate(self.layers):
            x = layer(x, standardised(own if index == 0 else x, self.dim), first if index == 0 else ())
        if self.flat:
            logits = affine(standardised(x, self.dim).transpose(0, 1).flatten(1), self.head, self.head_bias)
        else:
            last = x[-self.head.shape[0] :]
            logits = affine(standardised(last, self.dim), self.head, self.head_bias).squeeze(-1).transpose(0, 1)
        return logits if self.tower is None else logits + self.tower(fields, state[-1] if towered else None)

    def forward(self, request_ids: Tensor, request_numbers: Tensor, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.candidates(self.request(request_ids, request_numbers), ids, numbers)


class ServedTower(nn.Module):
    """The tower with batch norms in the weights and the request's part of its first map apart."""

    def __init__(self, tower: Tower, own: list[int], shared: list[int], dim: int) -> None:
        super().__init__()
        maps: list[tuple[Tensor, Tensor]] = []
        for module in tower:
            if isinstance(module, nn.Linear):
                maps.append((module.weight.detach(), module.bias.detach()))
            elif isinstance(module, nn.BatchNorm1d):
                weight, bias = maps.pop()
                assert module.running_var is not None
                assert module.running_mean is not None
                gain = module.weight.detach() * (module.running_var + module.eps).rsqrt()
                maps.append((weight * gain[:, None], (bias - module.running_mean) * gain + module.bias.detach()))
        first = maps[0][0].unflatten(1, (-1, dim))
        self.own, self.given = (constant(first[:, places].flatten(1).T) for places in (own, shared))
        self.bias = constant(maps[0][1])
        self.weights = nn.ParameterList(constant(weight.T) for weight, _ in maps[1:])
        self.biases = nn.ParameterList(constant(bias) for _, bias in maps[1:])

    def request(self, fields: Tensor) -> Tensor:
        return affine(fields.transpose(0, 1).flatten(1), self.given, self.bias)

    def forward(self, fields: Tensor, given: Tensor | None) -> Tensor:
        x = affine(
            fields.transpose(0, 1).reshape(-1, self.own.shape[0]), self.own, self.bias if given is None else given
        )
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = affine(functional.relu(x), weight, bias)
        return x


def standardised(x: Tensor, dim: int) -> Tensor:
    """A layer norm whose gain and shift are in what follows; a width read off ``x`` would be no constant in ONNX."""
    return functional.layer_norm(x, (dim,))


def _mixes(network: FieldTransformer) -> bool:
    return hasattr(network.tokens.numbers, "tokens")
