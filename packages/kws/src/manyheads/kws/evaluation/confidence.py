"""Confidence intervals (95 %) of shares of few clips and of rates from little audio, as numbers and in words."""

from __future__ import annotations

import math

LEVEL = 0.95
Z = 1.959963984540054  # of the normal distribution, two-sided at LEVEL


def wilson(right: float, count: float) -> tuple[float, float]:
    """Wilson's score interval of a share of ``count``; of 9 of 9 it is (.70, 1.00). Of none of 0: (0, 1).

    ``right`` may lie between whole numbers, as a mean over seeds does.
    """
    if count <= 0:
        return 0.0, 1.0
    share, spread = right / count, Z * Z / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def poisson_rate(events: int, hours: float) -> tuple[float, float]:
    """Exact interval of a rate an hour after so many events; after none, 0 and the bound that 95 % of such audio would
    have exceeded, ``ln 20 / hours``."""
    from scipy.stats import chi2

    outside = 1 - LEVEL if events == 0 else (1 - LEVEL) / 2
    low = 0.0 if events == 0 else float(chi2.ppf(outside, 2 * events)) / 2
    return low / hours, float(chi2.ppf(1 - outside, 2 * events + 2)) / 2 / hours


def accuracy_text(right: float, count: float) -> str:
    """``100.0% of 9 clips (95 %: 70.1 to 100.0)``."""
    if count <= 0:
        return "no clips"
    low, high = wilson(right, count)
    return f"{right / count:.1%} of {count:g} clips (95 %: {100 * low:.1f} to {100 * high:.1f})"


def share_text(part: float, count: float) -> str:
    """``2 of 9 (95 %: 6.3 to 54.7 %)``."""
    low, high = wilson(part, count)
    return f"{part:g} of {count:g} (95 %: {100 * low:.1f} to {100 * high:.1f} %)"


def rate_text(events: int, hours: float) -> str:
    """``0 in 5.6 minutes: below 32 an hour (95 %)``, or ``7 in 5.6 minutes: 75 an hour (95 %: 30 to 155)``."""
    low, high = poisson_rate(events, hours)
    heard = f"{events} in {60 * hours:.1f} minutes"
    if events == 0:
        return f"{heard}: below {high:.3g} an hour (95 %)"
    return f"{heard}: {events / hours:.3g} an hour (95 %: {low:.3g} to {high:.3g})"
