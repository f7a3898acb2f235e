"""95 % confidence intervals of accuracies and of false alarm rates, as numbers and as text."""

from __future__ import annotations

import math

LEVEL = 0.95
# Two-sided quantile of the normal distribution at LEVEL.
Z = 1.959963984540054


def wilson(right: float, count: float) -> tuple[float, float]:
    """Return the Wilson score interval of the share ``right / count``: (.70, 1.00) for 9 of 9, (0, 1) for 0 of 0.

    ``right`` may be a fraction, such as a mean over seeds.
    """
    if count <= 0:
        return 0.0, 1.0
    share, spread = right / count, Z * Z / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def poisson_rate(events: int, hours: float) -> tuple[float, float]:
    """Return the exact Poisson interval of a rate per hour, from ``events`` in ``hours``.

    Without events it is one-sided: from 0 to ``ln 20 / hours``.
    """
    from scipy.stats import chi2

    outside = 1 - LEVEL if events == 0 else (1 - LEVEL) / 2
    low = 0.0 if events == 0 else float(chi2.ppf(outside, 2 * events)) / 2
    return low / hours, float(chi2.ppf(1 - outside, 2 * events + 2)) / 2 / hours


def accuracy_text(right: float, count: float) -> str:
    """Return an accuracy with its interval: ``100.0% of 9 clips (95 %: 70.1 to 100.0)``."""
    if count <= 0:
        return "no clips"
    low, high = wilson(right, count)
    return f"{right / count:.1%} of {count:g} clips (95 %: {100 * low:.1f} to {100 * high:.1f})"


def share_text(part: float, count: float) -> str:
    """Return a share with its interval: ``2 of 9 (95 %: 6.3 to 54.7 %)``."""
    low, high = wilson(part, count)
    return f"{part:g} of {count:g} (95 %: {100 * low:.1f} to {100 * high:.1f} %)"


def rate_text(events: int, hours: float) -> str:
    """Return a rate per hour with its interval: ``7 in 5.6 minutes: 75 an hour (95 %: 30 to 155)``.

    Without events: ``0 in 5.6 minutes: below 32 an hour (95 %)``.
    """
    low, high = poisson_rate(events, hours)
    count = f"{events} in {60 * hours:.1f} minutes"
    if events == 0:
        return f"{count}: below {high:.3g} an hour (95 %)"
    return f"{count}: {events / hours:.3g} an hour (95 %: {low:.3g} to {high:.3g})"
