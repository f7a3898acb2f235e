"""Calibration: map logits to probabilities, fitted on rows that were not trained on.

    platt        p = sigmoid(a z + b), a >= 0        slope and intercept (Platt 1999)
    temperature  p = sigmoid(z / T)                  slope only: the mean probability may be off
    isotonic     p = (1 - w) platt + w curve         any rising curve, blended with platt's by w = n / (n + 50)

``platt`` and ``isotonic`` are fitted to smoothed targets (Platt), so that few rows never give 0 or 1. With N+
positives, N- negatives, n = min(N+, N-) and the mass m = n / (n + 2):

    t+ = 1 - m / N+,    t- = m / N-

The rarer class has Platt's own target. The target of the other class makes the mean of the targets equal to the share
of positives. So the mean probability over the fitted rows is their share of positives: for ``platt`` because the
derivative by b at the optimum is the sum of ``p - t``, for ``isotonic`` because isotonic regression keeps means.

Sources: J. Platt, Probabilistic outputs for support vector machines, 1999; H.-T. Lin, C.-J. Lin, R. Weng, A note on
Platt's probabilistic outputs, 2007; B. Zadrozny, C. Elkan, KDD 2002 (isotonic).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import expit as sigmoid

from manyheads.core.errors import ArgumentError, ManyheadsWarning
from manyheads.lab.data.fields import from_json
from manyheads.recsys.training.metrics import calibration_bins, ece

Method = Literal["none", "platt", "temperature", "isotonic"]
METHODS: tuple[Method, ...] = ("none", "platt", "temperature", "isotonic")
# rows of the rarer class; with fewer, smoothing dominates slope and intercept
ENOUGH = 10
# rows of the rarer class at which isotonic curve and Platt scaling have equal weight
_CURVE_ROWS = 50
# calibration error above which a warning is given if chance does not explain it
_ECE_WARNING = 0.05


class CalibrationWarning(ManyheadsWarning):
    """Probabilities that may be poorly calibrated."""


@dataclass(frozen=True)
class Calibration:
    """A fitted map from logits to probabilities; ``x`` and ``y`` are the knots of the isotonic curve."""

    method: Method = "none"
    slope: float = 1.0
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    # of the rows that it was fitted on
    positives: int = 0
    rows: int = 0
    # expected calibration error on these rows
    ece_before: float | None = None
    ece_after: float | None = None
    # what true probabilities would have on as many rows in the same bins
    ece_chance: float | None = None

    @property
    def temperature(self) -> float:
        """``1 / slope``; infinite for a slope of 0."""
        return 1.0 / self.slope if self.slope else math.inf

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read the result of ``dataclasses.asdict``, also from JSON; a stored temperature becomes a slope.

        Raises :class:`ArgumentError` for anything else.
        """
        if isinstance(values, Mapping) and isinstance(stored := values.get("temperature"), int | float) and stored > 0:
            values = {"slope": 1.0 / stored, **{k: v for k, v in values.items() if k != "temperature"}}
        return from_json(cls, values)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        probabilities = sigmoid(self.slope * np.asarray(logits, np.float64) + self.intercept)
        return np.interp(probabilities, self.x, self.y) if self.method == "isotonic" else probabilities

    def doubts(self, task: str) -> list[str]:
        """Return one line per reason not to trust the probabilities of ``task``."""
        found = []
        rarer = min(self.positives, self.rows - self.positives)
        if rarer < ENOUGH:
            found.append(
                f"calibration of {task!r}: found {self.positives} positives in {self.rows} validation rows, expected "
                f"{ENOUGH} or more of each class: give more rows, or a larger share of them (validation)"
            )
        elif self.ece_after is not None and self.ece_after > max(_ECE_WARNING, 2.0 * (self.ece_chance or 0.0)):
            fix = "isotonic, or another model" if self.method != "isotonic" else "another model, or more rows"
            found.append(
                f"calibration of {task!r}: found an error (ECE) of {self.ece_after:.3f} on {self.rows} validation "
                f"rows, expected {_ECE_WARNING} or less: try {fix}"
            )
        return found


def calibrate(labels: np.ndarray, logits: np.ndarray, method: Method) -> Calibration:
    """Fit ``method`` on held-out rows. With one class only, the method is ``none``.

    Raises :class:`ArgumentError` for an unknown method.
    """
    if method not in METHODS:
        raise ArgumentError(f"calibration: found {method!r}, expected one of {', '.join(METHODS)}")
    labels, logits = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    rows, positives = len(labels), int(labels.sum())
    if method == "none" or positives in (0, rows):
        fitted = Calibration()
    elif method == "temperature":
        fitted = Calibration("temperature", 1.0 / temperature_of(labels, logits))
    else:
        fitted = Calibration("platt", *slope_and_intercept(labels, logits))
        if method == "isotonic":
            fitted = _isotonic(labels, logits, fitted)
    before, after = sigmoid(logits), fitted(logits)
    return replace(
        fitted,
        rows=rows,
        positives=positives,
        ece_before=ece(labels, before) if rows else None,
        ece_after=ece(labels, after) if rows else None,
        ece_chance=chance_error(after) if rows else None,
    )


def targets(labels: np.ndarray) -> np.ndarray:
    """Return smoothed labels with the same mean, never 0 or 1; see the module. Both classes must be present."""
    positives = float(labels.sum())
    negatives = len(labels) - positives
    fewer = min(positives, negatives)
    mass = fewer / (fewer + 2.0)
    return np.where(labels > 0.5, 1.0 - mass / positives, mass / negatives)


def slope_and_intercept(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Return a >= 0 and b that minimise the log loss of ``sigmoid(a z + b)`` against :func:`targets` (Platt scaling).

    a is 0 if the logits rank no better than chance.
    """
    from scipy.optimize import minimize

    smoothed = targets(labels)
    # standardise the logits for a well-conditioned problem: a z' + b with z' = (z - centre) / scale
    centre, scale = float(logits.mean()), float(logits.std()) or 1.0
    z = (logits - centre) / scale

    # log loss of target t at u = a z' + b:  softplus(u) - t u
    def loss(at: np.ndarray) -> float:
        inner = at[0] * z + at[1]
        return float((np.logaddexp(0.0, inner) - smoothed * inner).mean())

    # d / d(a, b) = (p - t) (z', 1),  p = sigmoid(u)
    def gradient(at: np.ndarray) -> np.ndarray:
        gap = sigmoid(at[0] * z + at[1]) - smoothed
        return np.array([(gap * z).mean(), gap.mean()])

    # p (1 - p) (z', 1) (z', 1)'
    def hessian(at: np.ndarray) -> np.ndarray:
        p = sigmoid(at[0] * z + at[1])
        weight = p * (1.0 - p)
        return np.array([[(weight * z * z).mean(), (weight * z).mean()], [(weight * z).mean(), weight.mean()]])

    share = float(smoothed.mean())
    flat = math.log(share / (1.0 - share))
    start = np.array([1.0, flat])
    found = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-12}).x
    # the loss is convex: if its minimum has a <= 0, the minimum with a >= 0 is at a = 0
    if not found[0] > 0.0:
        return 0.0, flat
    # back to z: a z' + b = (a / scale) z + (b - a centre / scale)
    slope = float(found[0]) / scale
    return slope, float(found[1]) - slope * centre


def temperature_of(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return T, between 1/100 and 100, that minimises the log loss of ``sigmoid(logits / T)``.

    The loss is convex in 1 / T: bisection of its derivative.
    """
    # limits of 1 / T
    low, high = 0.01, 100.0
    for _ in range(60):
        # the mean of z (sigmoid(z / T) - y) is the derivative by 1 / T
        middle = np.sqrt(low * high)
        slope = float((logits * (sigmoid(middle * logits) - labels)).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(1.0 / np.sqrt(low * high))


def chance_error(probabilities: np.ndarray) -> float:
    """Return the ECE to expect if ``probabilities`` are true and labels are drawn from them.

    The mean of ``|share - probability|`` of a bin is about ``sqrt(2 / pi)`` times its standard error (normal law).
    """
    bins = calibration_bins(np.zeros(len(probabilities)), probabilities)
    return math.sqrt(2.0 / math.pi) * sum(math.sqrt(n * p * (1.0 - p)) for p, _, n in bins) / len(probabilities)


def _isotonic(labels: np.ndarray, logits: np.ndarray, platt: Calibration) -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    fewer = min(labels.sum(), len(labels) - labels.sum())
    weight = fewer / (fewer + _CURVE_ROWS)
    curve = IsotonicRegression(out_of_bounds="clip").fit(platt(logits), targets(labels))
    y = (1.0 - weight) * curve.X_thresholds_ + weight * curve.y_thresholds_
    return replace(platt, method="isotonic", x=tuple(curve.X_thresholds_.tolist()), y=tuple(y.tolist()))
