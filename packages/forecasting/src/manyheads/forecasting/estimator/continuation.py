"""Newer rows of fitted series: match them to the fitted models, and note forecasts below zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from manyheads.core.errors import DataError
from manyheads.forecasting.estimator.fitting import FittedPanel
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series.cells import listed
from manyheads.forecasting.series.frequencies import frequency, same_frequency
from manyheads.forecasting.series.panels import Panel


def continuations(
    fitted: Sequence[FittedPanel], newer: Sequence[Panel], model: str
) -> list[tuple[FittedPanel, Panel, np.ndarray]]:
    """Match newer rows to the fitted panels; channels with the same stamps stay together.

    Returns, for each match, the fitted panel, the newer rows of some of its channels, and the indices of these channels
    in the fitted panel.

    Raises :class:`DataError` for series that were not fitted, another frequency, too few rows, and a part of the
    channels of a model that needs all of them together.
    """
    owner = {name: (number, c) for number, part in enumerate(fitted) for c, name in enumerate(part.panel.channels)}
    given = [name for panel in newer for name in panel.channels]
    if not set(given) <= set(owner):
        raise DataError(
            f"{newer[0].name}: the model was fitted on the series {listed(list(owner))}; the new data hold "
            f"{listed(given)}: give some of the series that were fitted (--drop leaves others out)"
        )
    found = []
    for panel in newer:
        for number in dict.fromkeys(owner[name][0] for name in panel.channels):
            own = [c for c, name in enumerate(panel.channels) if owner[name][0] == number]
            one = replace(panel, values=panel.values[:, own], channels=tuple(panel.channels[c] for c in own))
            _check(fitted[number], one, model)
            found.append((fitted[number], one, np.array([owner[name][1] for name in one.channels])))
    return found


def fallen_below_zero(forecasts: pd.DataFrame, fitted: Sequence[FittedPanel]) -> list[str]:
    """Notes on series that were never negative but have a negative forecast."""
    lowest = forecasts.groupby("unique_id")["y_hat"].min()
    return [
        f"{part.panel.name}: {name} was never negative, and its forecast goes down to {lowest[name]:.6g}: cut it at 0 "
        "if less has no meaning"
        for part in fitted
        for past, name in zip(part.panel.values.T, part.panel.channels, strict=True)
        if name in lowest.index and past.min() >= 0 and lowest[name] < -1e-6 * past.max()
    ]


def _check(part: FittedPanel, panel: Panel, model: str) -> None:
    names, found, expected = listed(panel.channels), frequency(panel), frequency(part.panel)
    if not same_frequency(found, expected):
        raise DataError(
            f"{panel.name}, series {panel.channels[0]!r}: found rows at frequency {found}, expected {expected}, as the "
            "model was fitted: give rows of that frequency, or fit again"
        )
    if panel.rows < part.map.look_back:
        raise DataError(
            f"{panel.name} has {panel.rows} rows, the model reads {part.map.look_back}: give more ({names})"
        )
    if not isinstance(part.map, LinearMap) and len(panel.channels) < len(part.panel.channels):
        raise DataError(
            f"{panel.name}: found {names} alone, but {model} reads {listed(part.panel.channels)} together, expected "
            "all of them with the same stamps: give these"
        )
