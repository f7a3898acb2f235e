"""Baselines: simple predictors on the same rows as the model.

    base rate            the share of positives
    popularity           r_v = (k_v + m r) / (n_v + m)   smoothed click rate of the values of one field (the item)
    logistic regression  scikit-learn's, one weight per value and number
    gradient boosting    scikit-learn's histogram trees

k_v positives in n_v training rows with the value v, r the base rate. The field and m (1, 10 or 100) have the lowest log
loss over the training rows, each row left out of its own rate. The strength of the logistic regression and the number
of trees are chosen on the validation rows, like the weights of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import ManyheadsWarning
from manyheads.recsys.features.layout import PADDING, Layout, Rows
from manyheads.recsys.training.metrics import auc, log_loss

# of more training rows, so many are sampled
MOST_ROWS = 200_000
# C of the logistic regression, the inverse strength of its L2
STRENGTHS = (0.01, 0.1, 1.0, 10.0)
# m of the smoothed rates
_MASSES = (1.0, 10.0, 100.0)
# maximum number of trees
_MAX_TREES = 200
_FOLDS = 5
# maximum number of categories of scikit-learn's histogram trees
_MAX_CATEGORIES = 255


class BaselineWarning(ManyheadsWarning):
    """A baseline has a lower log loss than the model."""


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline; ``predict`` maps encoded rows to probabilities."""

    name: str
    chosen: str  # its hyperparameter: base rate, m, C or number of trees
    predict: Callable[[Rows], np.ndarray]


@dataclass(frozen=True)
class Rates:
    """Smoothed click rates of the values of one field, by id."""

    positives: np.ndarray
    rows: np.ndarray
    rate: float
    mass: float

    @classmethod
    def of(cls, ids: np.ndarray, labels: np.ndarray, size: int, mass: float) -> Rates:
        """Count over the ids ``(N, w)`` of one field; padding is left out."""
        filled = ids != PADDING
        repeated = np.broadcast_to(labels[:, None], ids.shape)[filled]
        counts = (np.bincount(ids[filled], weights=w, minlength=size) for w in (repeated, None))
        return cls(*counts, float(labels.mean()), mass)

    def __call__(self, ids: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """Return the mean rate of the values of each row; with ``labels``, each row is left out of its own rates."""
        # r_v = (k_v + m r) / (n_v + m); leave-one-out: (k_v - y + m r) / (n_v - 1 + m)
        filled = ids != PADDING
        own = 0.0 if labels is None else filled * labels[:, None]
        alone = 0.0 if labels is None else filled
        places = np.where(filled, ids, 0)
        rates = (self.positives[places] - own + self.mass * self.rate) / (self.rows[places] - alone + self.mass)
        return (rates * filled).sum(1) / filled.sum(1)


def fit_baselines(layout: Layout, train: Rows, held: Rows, task: int, *, seed: int = 0) -> list[Baseline]:
    """Fit all baselines on the rows with a label of the task; none if a class is absent."""
    train, held = (_labelled(rows, task) for rows in (train, held))
    labels = train.labels[:, task].numpy().astype(np.float64)
    if len(held) == 0 or not 0 < labels.sum() < len(labels):
        return []
    if len(train) > MOST_ROWS:
        train = _rows(train, np.random.default_rng(seed).choice(len(train), MOST_ROWS, replace=False))
        labels = train.labels[:, task].numpy().astype(np.float64)
    rate = float(labels.mean())
    made = [Baseline("base rate", f"{rate:.4f}", lambda rows: np.full(len(rows), rate))]
    if layout.names:
        made.append(_popularity(layout, train, labels))
    return [*made, _logistic(layout, train, held, labels, task), _boosting(layout, train, held, labels, task, seed)]


def scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return log loss and AUC; the AUC of one class is NaN."""
    return {"log_loss": log_loss(labels, probabilities), "auc": auc(labels, probabilities)}


def verdict(found: pd.DataFrame) -> str | None:
    """Return a line of advice if a baseline has a lower log loss than the model; otherwise None.

    ``found``: the rows of one task of ``Recommender.compare``, the model first.
    """
    own, others = found.iloc[0], found.iloc[1:]
    if others.empty or others["log_loss"].min() >= own["log_loss"]:
        return None
    best = others.loc[others["log_loss"].idxmin()]
    return (
        f"{own['task']}: {best['model']} has a lower log-loss than {own['model']} on the same {own['rows']:,} rows "
        f"({best['log_loss']:.4f} against {own['log_loss']:.4f}): do not use this model as it is; use {best['model']}, "
        "or fit it with more rows or other settings"
    )


def _popularity(layout: Layout, train: Rows, labels: np.ndarray) -> Baseline:
    ids, best = train.ids.numpy(), None
    for name, size in zip(layout.names, layout.rows, strict=True):
        columns = layout.columns_of(name)
        for mass in _MASSES:
            rates = Rates.of(ids[:, columns], labels, size, mass)
            loss = log_loss(labels, rates(ids[:, columns], labels))
            if best is None or loss < best[0]:
                best = loss, name, columns, rates
    assert best is not None
    _, name, columns, rates = best
    return Baseline(f"popularity of {name}", f"m={rates.mass:g}", lambda rows: rates(rows.ids.numpy()[:, columns]))


@dataclass(frozen=True)
class Design:
    """Design matrix of encoded rows, sparse.

    One column per value (1 / n for each of n values of a multi-valued field), per standardised number, and per missing
    flag of a number.
    """

    layout: Layout
    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, layout: Layout, rows: Rows) -> Design:
        """Standardise numbers with the means and deviations of ``rows``."""
        numbers = rows.numbers.numpy().astype(np.float64)
        known = ~np.isnan(numbers)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, numbers, 0.0).sum(0) / count
        spread = np.sqrt((np.where(known, numbers - mean, 0.0) ** 2).sum(0) / count)
        return cls(layout, mean, np.where(spread > 0, spread, 1.0))

    def __call__(self, rows: Rows):
        from scipy import sparse

        parts, ids = [], rows.ids.numpy()
        for name, size in zip(self.layout.names, self.layout.rows, strict=True):
            own = ids[:, self.layout.columns_of(name)]
            row, column = np.nonzero(own != PADDING)
            weights = 1.0 / np.bincount(row, minlength=len(ids))[row]
            parts.append(sparse.csr_array((weights, (row, own[row, column])), shape=(len(ids), size)))
        numbers = rows.numbers.numpy().astype(np.float64)
        missing = np.isnan(numbers)
        parts.append(sparse.csr_array(np.where(missing, 0.0, (numbers - self.mean) / self.spread)))
        parts.append(sparse.csr_array(missing.astype(np.float64)))
        return sparse.hstack(parts, format="csr")


def _logistic(layout: Layout, train: Rows, held: Rows, labels: np.ndarray, task: int) -> Baseline:
    from sklearn.linear_model import LogisticRegression

    design = Design.of(layout, train)
    x, validation_features, validation_labels = design(train), design(held), held.labels[:, task].numpy()
    best = None
    for strength in STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(x, labels)
        loss = log_loss(validation_labels, fitted.predict_proba(validation_features)[:, 1])
        if best is None or loss < best[0]:
            best = loss, strength, fitted
    assert best is not None
    _, strength, fitted = best
    return Baseline("logistic regression", f"C={strength:g}", lambda rows: fitted.predict_proba(design(rows))[:, 1])


def _boosting(layout: Layout, train: Rows, held: Rows, labels: np.ndarray, task: int, seed: int) -> Baseline:
    """Fit gradient boosting.

    Fields with more than 255 values, and multi-valued fields, become smoothed click rates (target encoding). Rates of
    training rows come from the other four folds: the label of a row must not be in its features.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    ids = train.ids.numpy()
    fold = np.random.default_rng(seed).permutation(len(ids)) % _FOLDS
    native = {
        n: w == 1 and s <= _MAX_CATEGORIES for n, s, w in zip(layout.names, layout.rows, layout.widths, strict=True)
    }

    def rates(rows: np.ndarray) -> dict[str, Rates]:
        return {
            name: Rates.of(ids[rows][:, layout.columns_of(name)], labels[rows], size, _MASSES[1])
            for name, size in zip(layout.names, layout.rows, strict=True)
            if not native[name]
        }

    def design(rows: Rows, coded: dict[str, Rates]) -> np.ndarray:
        own = {name: rows.ids.numpy()[:, layout.columns_of(name)] for name in layout.names}
        columns = [coded[name](part) if name in coded else part[:, 0] for name, part in own.items()]
        return np.column_stack([*columns, rows.numbers.numpy()]).astype(np.float64)

    x = np.empty((len(ids), len(layout.names) + len(layout.numeric)))
    for part in range(_FOLDS):
        chosen = np.flatnonzero(fold == part)
        x[chosen] = design(_rows(train, chosen), rates(fold != part))
    every = rates(np.ones(len(ids), bool))
    categorical = [*native.values(), *(False for _ in layout.numeric)]
    validation_features, validation_labels = design(held, every), held.labels[:, task].numpy()

    def fit(trees: int, **more: Any) -> HistGradientBoostingClassifier:
        return HistGradientBoostingClassifier(
            max_iter=trees, categorical_features=categorical, random_state=seed, **more
        ).fit(
            x, labels, **({"X_val": validation_features, "y_val": validation_labels} if more["early_stopping"] else {})
        )

    tried = fit(_MAX_TREES, early_stopping=True, n_iter_no_change=10)
    trees = 1 + int(
        np.argmin([log_loss(validation_labels, p[:, 1]) for p in tried.staged_predict_proba(validation_features)])
    )
    fitted = fit(trees, early_stopping=False)
    return Baseline("gradient boosting", f"{trees} trees", lambda rows: fitted.predict_proba(design(rows, every))[:, 1])


def _labelled(rows: Rows, task: int) -> Rows:
    known = ~np.isnan(rows.labels[:, task].numpy())
    return rows if known.all() else _rows(rows, np.flatnonzero(known))


def _rows(rows: Rows, chosen: np.ndarray) -> Rows:
    return Rows(rows.ids[chosen], rows.numbers[chosen], rows.labels[chosen])
