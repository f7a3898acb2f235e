"""Permutation importance of fields and feature interactions of pairs of fields.

    d(S) = AUC(x) - mean_r AUC(x with each field of S permuted over the rows by a permutation of its own)
    single(i) = d({i})
    interaction(i, j) = d({i, j}) - d({i}) - d({j})
    mixed(i, j) = root mean square over rows of  f(x) - f(x_i) - f(x_j) + f(x_ij)          f: the logit

Shapes: N rows, F fields, R repeats. ``x_i`` is a row with the value of field i from another row. A field has the same
permutation alone and in each pair, so that the differences use the same draw.

How to read ``interaction``. It is negative for two fields that act only through their product: each alone already loses
what both lose together. It is also negative for any two strong fields, because an AUC cannot fall far below a half. It
is positive for two redundant fields. So ``interaction`` contains main effects.

How to read ``mixed``. It contains no main effects: it is 0 to rounding for every pair whose effects on the logit add up
(as in a logistic regression). It does not use the labels.

Limit: permuting a field keeps the other columns, so that dependent fields form combinations that never occur.

``single`` is scikit-learn's ``permutation_importance`` with ``scoring="roc_auc"``. Here fields are permuted after
encoding: rows are encoded once, and each part of a time is its own field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from manyheads.core.errors import ArgumentError, DataError
from manyheads.recsys.features.layout import Layout, Rows
from manyheads.recsys.training.metrics import auc
from manyheads.recsys.training.objective import predict_logits


@dataclass(frozen=True)
class Importance:
    """Importance of each field and each pair of fields for one task."""

    fields: tuple[str, ...]  # F: embedded, then numeric
    auc: float  # without permutation
    single: np.ndarray  # (F,)
    single_sd: np.ndarray  # (F,), over the repeats
    interaction: np.ndarray | None  # (F, F), symmetric, the diagonal 0; None without pairs
    mixed: np.ndarray | None  # (F, F), symmetric, the diagonal 0
    rows: int
    repeats: int

    def text(self, field: int) -> str:
        """Return the AUC lost by a field, with its standard deviation if there are several repeats."""
        mean = f"{self.single[field]:.4f}"
        return mean if self.repeats == 1 else f"{mean} ± {self.single_sd[field]:.4f}"


def permutation_importance(
    network: nn.Module,
    layout: Layout,
    rows: Rows,
    *,
    task: int = 0,
    pairs: bool = True,
    repeats: int = 3,
    seed: int = 0,
    advance: Callable[[str], None] = lambda item: None,
) -> Importance:
    """Measure the importance of fields and pairs of a trained network on labelled rows.

    Cost: ``1 + R (F + F (F - 1) / 2)`` predictions of all rows. ``advance`` is called for each repeat.

    Raises:
        ArgumentError: no repeats.
        DataError: a row has no label, or a class is absent.
    """
    if repeats < 1:
        raise ArgumentError(f"repeats: found {repeats}, expected 1 or more")
    labels = rows.labels[:, task].numpy()
    if len(np.unique(labels)) != 2 or np.isnan(labels).any():
        raise DataError(
            f"label {layout.tasks[task]!r}: found one class only in {len(rows)} rows, expected both: give more rows"
        )
    fields = (*layout.names, *layout.numeric)
    count = len(fields)
    draw = np.random.default_rng(seed)
    plain = predict_logits(network, rows)[:, task]
    best = auc(labels, plain)
    single, interaction, mixed = np.zeros((repeats, count)), np.zeros((count, count)), np.zeros((count, count))
    for repeat in range(repeats):
        advance(f"repeat {repeat + 1} of {repeats}")
        orders = [torch.from_numpy(draw.permutation(len(rows))) for _ in fields]

        def scored(*chosen: int, orders: list[torch.Tensor] = orders) -> np.ndarray:
            return predict_logits(network, permuted(layout, rows, {i: orders[i] for i in chosen}))[:, task]

        alone = [scored(i) for i in range(count)]
        single[repeat] = [best - auc(labels, logits) for logits in alone]
        for i in range(count if pairs else 0):
            for j in range(i):
                both = scored(i, j)
                interaction[i, j] += best - auc(labels, both) - single[repeat, i] - single[repeat, j]
                mixed[i, j] += np.square(plain - alone[i] - alone[j] + both).mean()
    found = [matrix + matrix.T for matrix in (interaction / repeats, np.sqrt(mixed / repeats))] if pairs else [None] * 2
    spread = single.std(0, ddof=1) if repeats > 1 else np.zeros(count)
    return Importance(fields, best, single.mean(0), spread, found[0], found[1], len(rows), repeats)


def permuted(layout: Layout, rows: Rows, orders: dict[int, torch.Tensor]) -> Rows:
    """Return the rows with the values of each chosen field in another order; embedded fields are numbered first."""
    ids, numbers = rows.ids, rows.numbers
    if any(i < len(layout.names) for i in orders):
        ids = ids.clone()
    if any(i >= len(layout.names) for i in orders):
        numbers = numbers.clone()
    for index, order in orders.items():
        if index < len(layout.names):
            span = layout.columns_of(layout.names[index])
            ids[:, span] = rows.ids[order][:, span]
        else:
            column = index - len(layout.names)
            numbers[:, column] = rows.numbers[order, column]
    return Rows(ids, numbers, rows.labels)
