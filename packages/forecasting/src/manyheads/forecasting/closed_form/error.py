"""The exact squared error of a linear forecast over many windows, from their moments alone."""

from __future__ import annotations

import numpy as np

from manyheads.core.errors import ArgumentError
from manyheads.forecasting.closed_form.hankel import window_moments
from manyheads.forecasting.models.linear_map import LinearMap


def gram_mse(
    linear_map: LinearMap, values_TC: np.ndarray, first_target: int, last_target: int, *, windows: int | None = None
) -> float:
    """Mean squared error over all windows whose targets lie in rows ``[first_target, last_target)``, or over the first
    ``windows`` of them; equal to the error of the explicit forecasts.

    ``sum |y - W'x - b - s sd(x)|^2`` is quadratic in the window, so that ``sum x x'``, ``sum x y'``, ``sum y^2`` and
    the sums with the side features 1 and ``sd(x)`` are enough.
    """
    look_back, horizon = linear_map.look_back, linear_map.horizon
    start = first_target - look_back
    count = last_target - first_target - horizon + 1
    count = count if windows is None else min(count, windows)
    if start < 0 or count < 1:
        raise ArgumentError(
            f"rows [{first_target}, {last_target}) hold no window of look-back {look_back} and horizon {horizon}"
        )
    squared = 0.0
    for channel, series in enumerate(values_TC.T):
        pick = 0 if linear_map.shared else channel
        weight, bias = linear_map.weight[pick], linear_map.bias[pick]
        moments = window_moments(series, look_back, horizon, start, start + count)
        past, cross = moments.products[:, :look_back], moments.products[:, look_back:]
        squared += moments.squares[look_back:].sum() - 2.0 * np.vdot(weight, cross) + np.vdot(weight, past @ weight)
        squared += count * (bias @ bias) - 2.0 * (bias @ (moments.side[look_back:] - moments.side[:look_back] @ weight))
        if linear_map.scale_bias is not None:
            scale = linear_map.scale_bias[pick]
            if bias.any():
                raise ArgumentError("a map with both a bias and a scale bias has no error in closed form")
            moments = window_moments(series, look_back, horizon, start, start + count, side="deviation")
            residual = moments.side[look_back:] - moments.side[:look_back] @ weight
            squared += moments.side_energy * (scale @ scale) - 2.0 * (scale @ residual)
    return float(squared / (count * horizon * values_TC.shape[1]))
