"""Errors of a backtest (rolling origin): MASE, MAE, MSE and the coverage of the prediction intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from manyheads.forecasting.series.panels import Panel


def backtest_errors(frame: pd.DataFrame, panels: Sequence[Panel]) -> dict[str, float]:
    """Mean errors over all series and origins, and the share of values inside each interval.

    Args:
        frame: forecasts from :meth:`Forecaster.cross_validation`.
        panels: the series that were forecast; they give the scale of :func:`mase`.

    Returns:
        ``mase`` (mean over the series that have one, else NaN), ``mae`` and ``mse`` in original units, and
        ``covered 80%`` … for each level.
    """
    error = (frame["y_hat"] - frame["y"]).abs()
    scaled = mase(frame, panels)
    mean = float(scaled.dropna().mean()) if scaled.notna().any() else float("nan")
    found = {"mase": mean, "mae": float(error.mean()), "mse": float((error**2).mean())}
    for column in frame.columns:
        if column.startswith("lo-"):
            inside = (frame["y"] >= frame[column]) & (frame["y"] <= frame[f"hi-{column[3:]}"])
            found[f"covered {column[3:]}%"] = float(inside.mean())
    return found


def mase(frame: pd.DataFrame, panels: Sequence[Panel]) -> pd.Series:
    """Mean absolute scaled error (MASE) of each series (Hyndman & Koehler, 2006).

        MASE = mean |y - y_hat| / mean |x_t - x_{t - season}|

    The denominator is the one-season-ago error on the rows up to the first cutoff of the series. MASE is NaN for a
    series with no such rows, and for one that did not change over a season in any of them.

    Args:
        frame: forecasts from :meth:`Forecaster.cross_validation`.
        panels: the series that were forecast.
    """
    first = frame.groupby("unique_id")["cutoff"].min()
    scale = {}
    for panel in panels:
        for index, name in enumerate(panel.channels):
            if name not in first.index:
                continue
            past = panel.values[panel.stamps <= first[name], index]
            steps = np.abs(past[panel.season :] - past[: -panel.season])
            scale[name] = steps.mean() if len(steps) and steps.any() else np.nan
    return (frame["y_hat"] - frame["y"]).abs().groupby(frame["unique_id"]).mean() / pd.Series(scale)
