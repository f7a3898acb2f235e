"""Serving form of the field transformers: the same function, split into a request and a candidate step.

    state  = form.request(ids, numbers)              # shared fields, (1, .) each: once per request
    logits = form.candidates(state, ids, numbers)    # the other fields, (B, .) each -> (B, K)

Two parts of the network are linear in the tokens of the shared fields and are computed once per request: the query, key
and value projections of the first layer, and the first linear layer of the tower. After the first attention every token
depends on the candidate, so that all later layers run for each candidate. This bounds the gain of shared fields (see
"Shared fields" in docs/recsys.md).

All rewrites are exact up to rounding. Constants are folded into the next linear layer: gain and shift of layer norms,
the scale of the attention scores, batch norm with its running statistics.

Token order: candidate's fields, request's fields, task tokens. The task tokens belong to the request.

Shapes: B candidates, C candidate tokens, S request tokens, T = C + S, Q queries, D width, K tasks, F field tokens (T
without task tokens). Tokens are token-major, ``(T, B, D)``: weights per field are then one batched product.
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
    """One transformer layer over the tokens in serving order.

        R = X + concat_h(softmax(Q_h K_h' / sqrt(E)) V_h) O + b,   Y = R + W2 GELU(W1 LayerNorm(R))

    O, W1 and W2 are weights per field (heterogeneous, Hiformer) or shared by the fields (vanilla).

    Args:
        layer: a trained residual block (vanilla), ``Heterogeneous`` or ``Hiformer``.
        order: original index of each token.
        candidates: number of tokens that are passed to :meth:`forward` instead of in its ``state``.
        dim: D.
        queries: number of last tokens that the layer computes.
    """

    def __init__(self, layer: Any, order: list[int], candidates: int, dim: int, queries: int) -> None:
        super().__init__()
        if isinstance(layer, Hiformer):
            self.project: Composite | Rowwise = Composite(layer, order, candidates)
        else:
            self.project = Rowwise(layer, order, candidates, dim, queries)
        self.queries, self.tokens, self.dim = queries, len(order), dim
        per_field = not isinstance(layer, ResidualBlock)

        # A pruned layer has output weights of the task tokens only, which are last in both orders.
        rows = order if queries == len(order) else list(range(queries))
        if per_field:
            output, norm, inner, outer = layer.output, layer.inner_norm, layer.inner, layer.outer
        else:
            output, norm = layer.layer.output, layer.feed_forward_norm
            inner, outer = layer.feed_forward.up, layer.feed_forward.down

        def weight_and_bias(module: Any) -> tuple[Tensor, Tensor]:
            weight, bias = module.weight.detach(), module.bias.detach()
            return (weight[rows], bias[rows].unsqueeze(1)) if per_field else (weight, bias)

        # O follows no norm: nothing is folded into it.
        weight, bias = weight_and_bias(output)
        self.output, self.output_bias = constant(weight.mT), constant(bias)

        # W1 LayerNorm(R) + b = W1 (z gain + shift) + b = (W1 gain) z + (W1 shift + b), z the standardised R
        weight, bias = weight_and_bias(inner)
        gain, shift = norm.weight.detach(), norm.bias.detach()
        folded_shift = weight @ shift
        self.inner = constant((weight * gain).mT)
        self.inner_bias = constant(bias + (folded_shift.unsqueeze(1) if per_field else folded_shift))

        # W2 follows GELU: nothing is folded into it.
        weight, bias = weight_and_bias(outer)
        self.outer, self.outer_bias = constant(weight.mT), constant(bias)

    def forward(self, x: Tensor, normed: Tensor, state: State) -> Tensor:
        """Return the layer's output ``(Q, B, D)``.

        Args:
            x: all tokens, ``(T, B, D)``.
            normed: standardised tokens that are not in ``state``.
            state: projections of the request's tokens (first layer), or empty (all later layers).
        """
        # concat_h softmax(Q_h K_h') V_h; the scale 1 / sqrt(E) is in Q. (B, H, Q, E) -> (Q, B, H E)
        q, k, v = self.project(normed, state)
        mixed = ((q @ k).softmax(-1) @ v).permute(2, 0, 1, 3).flatten(2)

        # R = X + mixed O + b, for the last Q tokens. Without pruning take x itself: a full slice is a copy in ONNX.
        kept = x if self.queries == self.tokens else x[-self.queries :]
        rows = affine(mixed, self.output, self.output_bias) + kept

        # Y = R + W2 GELU(W1 LayerNorm(R))
        hidden = functional.gelu(affine(standardised(rows, self.dim), self.inner, self.inner_bias))
        return affine(hidden, self.outer, self.outer_bias) + rows


class ServedTransformer(nn.Module):
    """A field transformer as a request step and a candidate step; see the module.

    Args:
        network: a trained network in evaluation mode.
        layout: the fields of the network.
        shared: columns with the same value for all candidates of a request.
    """

    def __init__(self, network: FieldTransformer, layout: Layout, shared: Sequence[str] = ()) -> None:
        super().__init__()
        # A NumberMixture computes its tokens from all numeric fields together: they cannot be split.
        mixed = network.tokens.tokens - len(layout.names) if _mixes(network) else None
        request_fields, candidate_fields = choose(layout, shared, split_numbers=mixed is None)
        self.shared, self.own = request_fields, candidate_fields
        self.dim = network.norm.weight.shape[0]

        # Original index of each token, in serving order: [candidate's fields, request's fields, tasks].
        fields = network.tokens.tokens
        tasks = [] if network.task_tokens is None else list(range(fields, fields + len(layout.tasks)))
        candidate_places, request_places = (
            chosen.tokens(layout, mixed=mixed) for chosen in (candidate_fields, request_fields)
        )
        order = [*candidate_places, *request_places, *tasks]
        self.count, self.total = len(candidate_places), len(order)

        self.candidate_tokens = SomeTokens(layout, network.tokens, candidate_fields)
        self.request_tokens = SomeTokens(layout, network.tokens, request_fields) if request_places else None
        self.task_tokens = None if network.task_tokens is None else constant(network.task_tokens.unsqueeze(1))
        self.positions = None if network.positions is None else constant(network.positions[order].unsqueeze(1))

        # Only the first layer takes projections of the request's tokens from the state. From the second layer on every
        # token depends on the candidate.
        self.layers = nn.ModuleList(
            ServedLayer(layer, order, len(order) if index else self.count, self.dim, queries)
            for index, (layer, queries) in enumerate(zip(network.layers, network.queries, strict=True))
        )

        self.flat = network.task_tokens is None
        gain, shift = network.norm.weight.detach(), network.norm.bias.detach()
        head_map: Any = network.head
        head = head_map.weight.detach()
        if self.flat:
            # head="flatten": logit_k = sum_t w_kt . LayerNorm(X)_t + b_k
            #                         = sum_t (w_kt gain) . z_t + (sum_t w_kt . shift + b_k)
            cube = head.unflatten(1, (-1, self.dim))[:, order]
            self.head = constant((cube * gain).flatten(1).T)
            self.head_bias = constant(head_map.bias + torch.einsum("ktd,d->k", cube, shift))
        else:
            # head="task": logit_k = w_k . LayerNorm(X)_{F + k} + b_k = (w_k gain) . z_{F + k} + (w_k . shift + b_k)
            self.head = constant((head * gain).mT)
            self.head_bias = constant(head_map.bias.unsqueeze(1) + (head @ shift).unsqueeze(1))

        self.tower = None
        if network.tower is not None:
            self.tower = ServedTower(network.tower, candidate_places, request_places, self.dim)

    def request(self, ids: Tensor, numbers: Tensor) -> State:
        """Compute the request's part from ids and numbers of the shared fields, ``(1, .)`` each.

        Returns ``(x (S, 1, D), *projections of the first layer, first linear layer of the tower)``. Parts that do not
        exist are left out; without request tokens and task tokens the state is empty.
        """
        fields = None if self.request_tokens is None else self.request_tokens(ids, numbers)
        parts = [part for part in (fields, self.task_tokens) if part is not None]
        state: State = ()
        if parts:
            # X_request = [fields, task tokens] + positions
            x = parts[0] if len(parts) == 1 else torch.cat(parts)
            x = x if self.positions is None else x + self.positions[self.count :]

            # vec(z_request) W_request + b of the first layer (or its rows of q, k and v)
            first: Any = self.layers[0]
            state = (x, *first.project.request(standardised(x, self.dim)))

        # W1_request vec(fields_request) + b of the tower
        if self.tower is not None and fields is not None:
            state = (*state, self.tower.request(fields))
        return state

    def candidates(self, state: State, ids: Tensor, numbers: Tensor) -> Tensor:
        """Return logits ``(B, K)``.

        Args:
            state: the result of :meth:`request`.
            ids: id columns of the other fields, ``(B, .)``.
            numbers: numeric columns of the other fields, ``(B, .)``.
        """
        # X_candidate = fields + positions; the tower reads the fields without positions.
        fields = self.candidate_tokens(ids, numbers)
        own = fields if self.positions is None else fields + self.positions[: self.count]

        # The state ends with the tower's part if there is one.
        tower_in_state = self.tower is not None and self.request_tokens is not None
        first = state[1 : len(state) - tower_in_state]

        # X = [X_candidate; X_request], the request's rows repeated for every candidate. The first layer projects the
        # candidate's tokens only.
        x = torch.cat([own, state[0].expand(-1, own.shape[1], -1)]) if state else own
        for index, layer in enumerate(self.layers):
            x = layer(x, standardised(own if index == 0 else x, self.dim), first if index == 0 else ())

        if self.flat:
            # logits = vec(z) W + b
            logits = affine(standardised(x, self.dim).transpose(0, 1).flatten(1), self.head, self.head_bias)
        else:
            # logit_k = w_k . z_{F + k} + b_k: the last K tokens, each with its own head
            last = x[-self.head.shape[0] :]
            logits = affine(standardised(last, self.dim), self.head, self.head_bias).squeeze(-1).transpose(0, 1)

        # logits = transformer(X) + tower(vec(fields))
        return logits if self.tower is None else logits + self.tower(fields, state[-1] if tower_in_state else None)

    def forward(self, request_ids: Tensor, request_numbers: Tensor, ids: Tensor, numbers: Tensor) -> Tensor:
        return self.candidates(self.request(request_ids, request_numbers), ids, numbers)


class ServedTower(nn.Module):
    """The tower without batch norms, its first linear layer split into candidate and request parts.

    Args:
        tower: linear layers, batch norms and ReLUs in evaluation mode; dropout does nothing.
        own: original indices of the candidate's tokens.
        shared: original indices of the request's tokens.
        dim: D.
    """

    def __init__(self, tower: Tower, own: list[int], shared: list[int], dim: int) -> None:
        super().__init__()
        maps: list[tuple[Tensor, Tensor]] = []
        for module in tower:
            if isinstance(module, nn.Linear):
                maps.append((module.weight.detach(), module.bias.detach()))
            elif isinstance(module, nn.BatchNorm1d):
                # With running statistics, batch norm is affine: BN(W x + b) = g (W x + b - mean) + beta
                #     = (g W) x + ((b - mean) g + beta),  g = gamma / sqrt(var + eps)
                weight, bias = maps.pop()
                assert module.running_var is not None
                assert module.running_mean is not None
                gain = module.weight.detach() * (module.running_var + module.eps).rsqrt()
                maps.append((weight * gain[:, None], (bias - module.running_mean) * gain + module.bias.detach()))

        # W1 vec(fields) + b = W1_candidate vec(fields_candidate) + (W1_request vec(fields_request) + b)
        first = maps[0][0].unflatten(1, (-1, dim))
        self.own, self.given = (constant(first[:, places].flatten(1).T) for places in (own, shared))
        self.bias = constant(maps[0][1])

        self.weights = nn.ParameterList(constant(weight.T) for weight, _ in maps[1:])
        self.biases = nn.ParameterList(constant(bias) for _, bias in maps[1:])

    def request(self, fields: Tensor) -> Tensor:
        """Return ``W1_request vec(fields_request) + b``, ``(1, hidden)``, from ``fields (S, 1, D)``, no task tokens."""
        return affine(fields.transpose(0, 1).flatten(1), self.given, self.bias)

    def forward(self, fields: Tensor, given: Tensor | None) -> Tensor:
        """Return ``(B, K)`` from the candidates' fields ``(C, B, D)`` and the result of :meth:`request`, if any."""
        # W1_candidate vec(fields_candidate) + given: the request's part takes the place of the bias.
        x = affine(
            fields.transpose(0, 1).reshape(-1, self.own.shape[0]), self.own, self.bias if given is None else given
        )

        # W_i relu(x) + b_i, batch norms included
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = affine(functional.relu(x), weight, bias)
        return x


def standardised(x: Tensor, dim: int) -> Tensor:
    """Layer norm without gain and shift, which are folded into the next linear layer.

    ``dim`` is passed because a width that is read from ``x`` would not be a constant in ONNX.
    """
    return functional.layer_norm(x, (dim,))


def _mixes(network: FieldTransformer) -> bool:
    """Return whether the numeric fields are mixed into ``numeric_tokens`` tokens."""
    return hasattr(network.tokens.numbers, "tokens")
