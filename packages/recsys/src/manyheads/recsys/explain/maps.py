"""Interaction maps: which field attends to which, mean over rows, heads and layers.

    A_l[i, j] = mean_{rows, heads} softmax_j(q_i . k_j / sqrt(E))        of layer l
    map[i, j] = mean_l A_l[i, j]                                         over the layers that compute row i
    pair(i, j) = (map[i, j] + map[j, i]) / 2
    field(j) = mean_tasks map[task, j], or where no token is a task's  mean_i map[i, j]

Shapes: T tokens (F fields, then one for each of K tasks), Q queries: T, or K in a layer that is pruned to the tasks'
rows. Such a layer has no fields' rows, so that these are means over the other layers, while the tasks' rows are means
over all of them; a network with that layer alone has K rows, which tell of fields, and not of pairs.

What a map is of. In vanilla, heterogeneous and AutoInt layers row i of the first layer is what field i looks for; in
later layers a row holds what was mixed into it before. In a Hiformer layer already the first query, key and value of
"field i" are composites of all fields, so that row i is that of the i-th composite: its FFN and its residual are field
i's, its query is not, and a large ``A[i, j]`` does not show that fields i and j interact. A map says where a network
looks; whether a prediction depends on it is what :mod:`manyheads.recsys.explain.permutation` measures.
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
    """Means over rows and heads; rows of each matrix add up to 1."""

    tokens: tuple[str, ...]  # T names: fields as the layout has them, then "task NAME"
    fields: int  # F
    layers: tuple[np.ndarray, ...]  # (Q, T) each, the queries are the last Q tokens

    @property
    def full(self) -> tuple[np.ndarray, ...]:
        """The layers that compute all rows."""
        return tuple(layer for layer in self.layers if len(layer) == len(self.tokens))

    @property
    def mean(self) -> np.ndarray:
        """``(T, T)``, or ``(K, T)`` for a pruned layer alone: each row's mean over the layers that compute it."""
        shape = (max(map(len, self.layers)), len(self.tokens))
        total, count = np.zeros(shape), np.zeros((shape[0], 1))
        for layer in self.layers:
            total[-len(layer) :] += layer
            count[-len(layer) :] += 1
        return total / count

    @property
    def title(self) -> str:
        """What :attr:`mean` is the mean of."""
        layers, full = len(self.layers), len(self.full)
        if layers == 1:
            return "attention, mean over rows and heads" + ("" if full else ", of the tasks' rows")
        if full == layers:
            return "attention, mean over rows, heads and layers"
        whole = "layer 1" if full == 1 else f"layers 1 to {full}"
        return f"attention, mean over rows, heads and layers (fields' rows: {whole})"

    def pairs(self) -> np.ndarray | None:
        """``(F, F)``, symmetric: attention in both directions, halved."""
        if not self.full:
            return None
        own = self.mean[: self.fields, : self.fields]
        return (own + own.T) / 2

    def importance(self) -> np.ndarray:
        """``(F,)``: what the tasks' rows attend to, or without task tokens all rows."""
        tasks = len(self.tokens) - self.fields
        return (self.mean[-tasks:] if tasks else self.mean).mean(0)[: self.fields]


def has_maps(network: nn.Module) -> bool:
    """Whether a network can tell what it attends to."""
    return callable(getattr(network, "attention", None))


@torch.no_grad()
def attention_maps(network: Any, layout: Layout, rows: Rows, *, size: int = 2048) -> AttentionMaps:
    """The maps of a trained network over some rows.

    Raises :class:`ArgumentError` for a network without attention; the message says which models have it.
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
    """The names of a network's tokens, and how many of them are fields'. Numbers that are mixed have no token each."""
    mixed = network.tokens.numbers
    names = layout.numeric if not isinstance(mixed, NumberMixture) else _numbered(mixed.tokens)
    tasks = [] if getattr(network, "task_tokens", None) is None else [f"task {task}" for task in layout.tasks]
    return (*layout.names, *names, *tasks), len(layout.names) + len(names)


def _numbered(tokens: int) -> list[str]:
    return [f"numbers {i + 1}" for i in range(tokens)]
