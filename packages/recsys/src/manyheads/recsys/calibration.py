"""Probabilities that mean what they say: one temperature, or any rising curve, fitted on rows that were not trained on.

Temperature divides the logit and never changes the order of rows; isotonic regression may join neighbours into ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from manyheads.core.errors import ArgumentError
from manyheads.recsys.metrics import ece

Method = Literal["none", "temperature", "isotonic"]
METHODS: tuple[Method, ...] = ("none", "temperature", "isotonic")


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Without overflow on either side."""
    small = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1.0, small) / (1.0 + small)


@dataclass(frozen=True)
class Calibration:
    """From a logit to a probability; ``x`` and ``y`` are the corners of the isotonic curve over probabilities."""

    method: Method = "none"
    temperature: float = 1.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    ece_before: float | None = None  # on the rows that it was fitted on
    ece_after: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """What ``dataclasses.asdict`` gave, also after a passage through JSON."""
        typed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**typed)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        probabilities = sigmoid(np.asarray(logits, np.float64) / self.temperature)
        return np.interp(probabilities, self.x, self.y) if self.method == "isotonic" else probabilities


def calibrate(labels: np.ndarray, logits: np.ndarray, method: Method) -> Calibration:
    """Fits ``method`` on held-out rows. Raises :class:`ArgumentError` for an unknown method."""
    if method not in METHODS:
        raise ArgumentError(f"calibration: found {method!r}, expected one of {', '.join(METHODS)}")
    labels, logits = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    before = ece(labels, sigmoid(logits))
    if method == "none":
        return Calibration(ece_before=before, ece_after=before)
    if method == "temperature":
        fitted = Calibration("temperature", temperature_of(labels, logits))
    else:
        from sklearn.isotonic import IsotonicRegression

        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(sigmoid(logits), labels)
        fitted = Calibration("isotonic", 1.0, tuple(curve.X_thresholds_.tolist()), tuple(curve.y_thresholds_.tolist()))
    after = ece(labels, fitted(logits))
    return Calibration(fitted.method, fitted.temperature, fitted.x, fitted.y, before, after)


def temperature_of(labels: np.ndarray, logits: np.ndarray) -> float:
    """The T that minimises the log-loss of ``sigmoid(logits / T)``, between 1/100 and 100: the loss is convex in 1/T,
    and its derivative is bisected."""
    low, high = 0.01, 100.0  # of 1 / T
    for _ in range(60):
        middle = np.sqrt(low * high)
        slope = float((logits * (sigmoid(middle * logits) - labels)).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(1.0 / np.sqrt(low * high))
