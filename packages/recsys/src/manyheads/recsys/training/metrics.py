"""Ranking and calibration metrics: AUC, GAUC, NDCG, log loss, ECE. Labels are 0 or 1, probabilities in [0, 1]."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from manyheads.core.errors import ArgumentError, DataError


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the AUC: the chance that a positive scores above a negative, ties count half. NaN if a class is absent."""
    labels, scores = _check(labels, scores)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    # Mann-Whitney: AUC = (R - P (P + 1) / 2) / (P N), R the sum of the ranks of the P positives
    ranks = _mean_ranks(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(labels: np.ndarray, probabilities: np.ndarray, *, floor: float = 1e-15) -> float:
    """Return the log loss, the mean of ``-log p(label)``; probabilities are clipped to ``floor`` from 0 and 1."""
    labels, probabilities = _check(labels, probabilities, most=1.0)
    p = np.clip(probabilities, floor, 1.0 - floor)
    return float(-np.where(labels, np.log(p), np.log1p(-p)).mean())


def grouped_auc(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """Return GAUC: the mean AUC of the groups (users) with both classes, weighted by rows. NaN if there is none.

    Groups are values of any type; a row without a group (None, NaN) is left out.
    """
    labels, scores = _check(labels, scores)
    total, weight = 0.0, 0
    for rows in _by_group(groups, len(labels)):
        found = auc(labels[rows], scores[rows])
        if not np.isnan(found):
            total, weight = total + found * len(rows), weight + len(rows)
    return total / weight if weight else float("nan")


def ndcg(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, *, k: int = 10) -> float:
    """Return NDCG@k: the mean of ``DCG / ideal DCG`` over the groups with a positive. NaN if there is none.

    ``DCG = sum label / log2(1 + rank)`` over the first k ranks. Rows with the same score share the mean discount of
    their ranks. Groups as in :func:`grouped_auc`.
    """
    labels, scores = _check(labels, scores)
    if k < 1:
        raise ArgumentError(f"ndcg: k: found {k}, expected 1 or more")
    values = []
    for rows in _by_group(groups, len(labels)):
        gains = labels[rows]
        if not gains.any():
            continue
        discounts = np.where(np.arange(len(rows)) < k, 1.0 / np.log2(np.arange(len(rows)) + 2.0), 0.0)
        best = discounts[: int(gains.sum())].sum()
        # DCG with ties: every row of a tie gets the mean discount of the ranks that the tie covers
        _, tie = np.unique(-scores[rows], return_inverse=True)
        size = np.bincount(tie)
        shared = np.add.reduceat(discounts, np.cumsum(size) - size) / size
        values.append(float((np.bincount(tie, weights=gains) * shared).sum() / best))
    return float(np.mean(values)) if values else float("nan")


def calibration_bins(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 15
) -> list[tuple[float, float, int]]:
    """Return mean probability, share of positives and rows of each non-empty bin, ``bins`` equal parts of [0, 1]."""
    labels, probabilities = _check(labels, probabilities, most=1.0)
    if bins < 1:
        raise ArgumentError(f"calibration: bins: found {bins}, expected 1 or more")
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    mean = np.bincount(place, weights=probabilities, minlength=bins)
    share = np.bincount(place, weights=labels, minlength=bins)
    return [(float(mean[i] / n), float(share[i] / n), int(n)) for i, n in enumerate(count) if n]


def ece(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 15) -> float:
    """Return the expected calibration error: mean over rows of ``|mean probability - positive share|`` per bin."""
    found = calibration_bins(labels, probabilities, bins=bins)
    return sum(n * abs(mean - share) for mean, share, n in found) / len(labels)


def all_metrics(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None) -> dict[str, float]:
    """Return all metrics that are defined for these rows; GAUC and NDCG@10 only with ``groups``."""
    found = {"auc": auc(labels, probabilities), "log_loss": log_loss(labels, probabilities)}
    found["ece"] = ece(labels, probabilities)
    if groups is not None:
        found["gauc"] = grouped_auc(labels, probabilities, groups)
        found["ndcg@10"] = ndcg(labels, probabilities, groups)
    return {name: value for name, value in found.items() if not np.isnan(value)}


def _check(labels: np.ndarray, scores: np.ndarray, most: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as booleans and scores as float64, after checks; ``most`` requires scores from 0 to ``most``."""
    try:
        known = pd.Series(np.ravel(labels)).to_numpy(np.float64, na_value=np.nan)
        scores = np.asarray(scores, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError("metrics: found values that are no numbers, expected labels of 0 and 1, and scores") from error
    shape = np.shape(labels)
    if shape != scores.shape or len(shape) != 1 or shape == (0,):
        raise DataError(
            f"metrics: found labels of shape {shape} and scores of {scores.shape}, expected two equal vectors"
        )
    if not np.isin(known, [0, 1]).all():
        raise DataError("metrics: found labels other than 0 and 1, expected binary ones")
    if not np.isfinite(scores).all():
        raise DataError("metrics: found scores that are NaN or infinite, expected numbers: the model has diverged")
    if most is not None and not ((scores >= 0) & (scores <= most)).all():
        raise DataError("metrics: found scores outside 0 to 1, expected probabilities: take the sigmoid of log-odds")
    return known.astype(bool), scores


def _mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Return ranks from 1 for the lowest score; equal scores have the mean of their ranks."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2.0)[inverse]


def _by_group(groups: np.ndarray, rows: int) -> list[np.ndarray]:
    """Return the row numbers of each group; rows without a group are left out."""
    if np.shape(groups) != (rows,):
        raise DataError(f"metrics: found groups of shape {np.shape(groups)}, expected one for each of {rows} rows")
    codes, names = pd.factorize(pd.Series(groups))
    order = np.argsort(codes, kind="stable")
    borders = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return [order[start:end] for start, end in itertools.pairwise(borders)]
