"""Attention maps between fields: mean over rows, heads and layers.

    A_l[i, j] = mean_{rows, heads} softmax_j(q_i . k_j / sqrt(E))        of layer l
    map[i, j] = mean_l A_l[i, j]                                         over the layers that compute row i
    pair(i, j) = (map[i, j] + map[j, i]) / 2
    field(j) = mean_tasks map[task, j], or without task tokens  mean_i map[i, j]

Shapes: T tokens (F fields, then one for each of K tasks), Q queries: T, or K in a layer that is pruned to the task
tokens. A pruned layer has no rows of fields: these are means over the other layers, while the rows of tasks are means
over all layers. A network with only a pruned layer has K rows, which give the importance of fields, but not of pairs.

How to read a map. In the first layer of vanilla, heterogeneous and AutoInt models, row i is the attention of field i.
In later layers, a row contains fields that were mixed into it before. In a Hiformer layer, the query, key and value of
"field i" are composites of all fields already in the first layer. So row i belongs to the i-th composite: its FFN and
residual are those of field i, its query is not, and a large ``A[i, j]`` does not show that fields i and j interact. A
map shows where a network attends; :mod:`manyheads.recsys.explain.permutation` measures what its predictions depend on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from manyheads.core.errors import ArgumentError
from manyheads.recsys.features.layout import Layout, Rows
from manyheads.recsys.models import MODELS
from manyheads.recsys.models.tokens import NumberMixture

WITH_MAPS = tuple(
    name for name, spec in MODELS.items() if spec.config.rpartition(":")[2] in ("TransformerConfig", "AutoIntConfig")
)


@dataclass(frozen=True)
class AttentionMaps:
    """Attention weights, mean over rows and heads; each row of a matrix sums to 1."""

    tokens: tuple[str, ...]  # T names: fields as the layout has them, then "task NAME"
    fields: int  # F
    layers: tuple[np.ndarray, ...]  # (Q, T) each, the queries are the last Q tokens

    @property
    def full(self) -> tuple[np.ndarray, ...]:
        """The layers that compute all rows."""
        return tuple(layer for layer in self.layers if len(layer) == len(self.tokens))

    @property
    def mean(self) -> np.ndarray:
        """``(T, T)``, or ``(K, T)`` with only a pruned layer: the mean of each row over the layers that compute it."""
        shape = (max(map(len, self.layers)), len(self.tokens))
        total, count = np.zeros(shape), np.zeros((shape[0], 1))
        for layer in self.layers:
            total[-len(layer) :] += layer
            count[-len(layer) :] += 1
        return total / count

    @property
    def title(self) -> str:
        """Title of :attr:`mean` in pictures."""
        layers, full = len(self.layers), len(self.full)
        if layers == 1:
            return "attention, mean over rows and heads" + ("" if full else ", of the tasks' rows")
        if full == layers:
            return "attention, mean over rows, heads and layers"
        whole = "layer 1" if full == 1 else f"layers 1 to {full}"
        return f"attention, mean over rows, heads and layers (fields' rows: {whole})"

    def pairs(self) -> np.ndarray | None:
        """Return ``(F, F)``, symmetric: the mean attention of both directions; None if no layer computes all rows."""
        if not self.full:
            return None
        own = self.mean[: self.fields, : self.fields]
        return (own + own.T) / 2

    def importance(self) -> np.ndarray:
        """Return ``(F,)``: the mean attention from the task tokens, or from all tokens if there are none."""
        tasks = len(self.tokens) - self.fields
        return (self.mean[-tasks:] if tasks else self.mean).mean(0)[: self.fields]


def has_maps(network: nn.Module) -> bool:
    """Return whether a network has attention weights."""
    return callable(getattr(network, "attention", None))


@torch.no_grad()
def attention_maps(network: Any, layout: Layout, rows: Rows, *, size: int = 2048) -> AttentionMaps:
    """Compute the attention maps of a trained network over ``rows``, in batches of ``size``.

    Raises :class:`ArgumentError` for a network without attention; the message names the models that have it.
    """
    if not has_maps(network):
        raise ArgumentError(
            f"{type(network).__name__}: found a model without attention, expected one of {', '.join(WITH_MAPS)}: "
            "permutation importance is there for all models"
        )
    network.eval()
    sums: list[np.ndarray] = []
    for batch in rows.whole(size):
        found = [w.double().mean(1).sum(0).numpy() for w in network.attention(batch.ids, batch.numbers)]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return AttentionMaps(*token_names(network, layout), tuple(total / len(rows) for total in sums))


def token_names(network: Any, layout: Layout) -> tuple[tuple[str, ...], int]:
    """Return the names of the tokens and the number of field tokens F; mixed numeric fields share tokens."""
    mixed = network.tokens.numbers
    names = layout.numeric if not isinstance(mixed, NumberMixture) else _numbered(mixed.tokens)
    tasks = [] if getattr(network, "task_tokens", None) is None else [f"task {task}" for task in layout.tasks]
    return (*layout.names, *names, *tasks), len(layout.names) + len(names)


def _numbered(tokens: int) -> list[str]:
    return [f"numbers {i + 1}" for i in range(tokens)]
