"""What a prediction depends on: the AUC that is lost when a field's values are given to other rows.

    d(S) = AUC(x) - mean_r AUC(x with each field of S permuted over the rows by a permutation of its own)
    single(i) = d({i})
    interaction(i, j) = d({i, j}) - d({i}) - d({j})
    mixed(i, j) = root mean square over rows of  f(x) - f(x_i) - f(x_j) + f(x_ij)          f: the logit

Shapes: N rows, F fields, R repeats. ``x_i`` is a row with another row's value of field i; the permutation of a field is
the same alone and in each pair, so that what both lose takes the same draw away.

Reading: two fields that act through their product lose the same thing twice, alone and together, and have a negative
interaction; so have any two strong fields, as an AUC cannot fall below a half. Two fields that stand in for each other
have a positive one. So ``interaction`` holds main effects too; ``mixed`` does not: it is 0 to rounding for every pair
whose effects on the logit add up (a logistic regression), and has no labels in it. Permuting leaves the rows' other
columns alone: fields that depend on one another are put together as they never occur.

Single importance is that of scikit-learn's ``permutation_importance`` with ``scoring="roc_auc"``; here fields are
permuted after encoding, so that rows are encoded once, and the parts of a time are fields of their own.
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
    """What each field, and each pair of fields, is worth for one task."""

    fields: tuple[str, ...]  # F: embedded, then numeric
    auc: float  # of the rows as they are
    single: np.ndarray  # (F,)
    single_sd: np.ndarray  # (F,), over the repeats
    interaction: np.ndarray | None  # (F, F), symmetric, the diagonal 0; None where only fields were asked for
    mixed: np.ndarray | None  # (F, F), symmetric, the diagonal 0
    rows: int
    repeats: int

    def text(self, field: int) -> str:
        """The AUC lost by a field, with its deviation where there is one: a single repeat has none."""
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
    """Importance of a trained network on labelled rows: ``1 + R (F + F (F - 1) / 2)`` times over the rows; ``advance``
    is told each repeat.

    Raises :class:`ArgumentError` for no repeats, :class:`DataError` where a row has no label or one class is absent.
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
    """The rows with each chosen field's values in another order; fields are numbered embedded ones first."""
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
