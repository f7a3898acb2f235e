"""Interquartile mean with stratified bootstrap intervals.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021, arXiv 2108.13264).
The definitions are those of the authors' library rliable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from manyheads.core.errors import ArgumentError, DataError

Scores = Mapping[str, Sequence[float]]
# Numbers in memory at once while samples are drawn.
CHUNK = 4_000_000


class Estimate(NamedTuple):
    """A statistic with its interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half along the last axis; a quarter is cut off at each end, rounded down."""
    count = scores.shape[-1]
    cut = count // 4
    # A partition is enough: the order inside the middle half does not matter.
    ordered = np.partition(scores, (cut, count - cut - 1), axis=-1)
    return ordered[..., cut : count - cut].mean(axis=-1)


def mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean along the last axis."""
    return scores.mean(axis=-1)


def estimate(
    scores: Scores,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    *,
    confidence: float = 0.95,
    samples: int = 50_000,
    seed: int = 0,
) -> Estimate:
    """Return a statistic over all runs of all tasks, with its stratified bootstrap interval.

    A sample draws the runs of each task with replacement from that task, so that each task keeps its weight. The
    interval is between the percentiles of the statistic over the samples.

    Args:
        scores: the score of every run (seed), by task. With scores of different tasks, bring them to one scale before.
        statistic: of an array, along its last axis.
        confidence: part of the samples inside the interval.
        samples: number of bootstrap samples.
        seed: of the samples.

    Raises:
        DataError: without a run, or for a score that is not finite.
    """
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence: found {confidence!r}, expected a number between 0 and 1: correct it")
    runs = {task: np.asarray(values, np.float64) for task, values in scores.items()}
    for task, values in runs.items():
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise DataError(
                f"scores of {task}: found {values}, expected at least one run and finite numbers: correct it"
            )
    if not runs:
        raise DataError("scores: found no task, expected at least one: give the scores of its runs")
    generator = np.random.default_rng(seed)
    total = sum(map(len, runs.values()))
    size = max(1, CHUNK // total)
    drawn = []
    for start in range(0, samples, size):
        rows = min(size, samples - start)
        parts = [values[generator.integers(len(values), size=(rows, len(values)))] for values in runs.values()]
        drawn.append(statistic(np.concatenate(parts, axis=1)))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(drawn), [tail, 100 - tail])
    return Estimate(float(statistic(np.concatenate(list(runs.values())))), float(low), float(high))
