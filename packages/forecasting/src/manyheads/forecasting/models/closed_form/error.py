"""Exact mean squared error of a linear forecast over many windows, from their second moments; no forecast is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manyheads.core.errors import ArgumentError
from manyheads.forecasting.models.closed_form.hankel import Moments, window_moments, with_deviation
from manyheads.forecasting.models.linear_map import LinearMap


def gram_mse(
    linear_map: LinearMap, values_TC: np.ndarray, first_target: int, last_target: int, *, windows: int | None = None
) -> float:
    """Mean squared error over the windows with all targets in rows ``[first_target, last_target)``.

    ``windows`` limits it to the first so many windows. The result equals the error of the explicit forecasts.
    """
    return float(gram_mse_by_step([linear_map], values_TC, first_target, last_target, windows=windows)[0].mean())


def gram_mse_by_step(
    maps: Sequence[LinearMap],
    values_TC: np.ndarray,
    first_target: int,
    last_target: int,
    *,
    windows: int | None = None,
) -> list[np.ndarray]:
    """Mean squared error at each step, ``(H,)`` for each map; the maps have the same look-back and horizon.

    ``sum (y - w'x - b - s sd(x))^2`` is quadratic in the window. It therefore needs only ``sum x x'``, ``sum x y'``,
    ``sum y^2`` and the sums of ``x`` and ``y`` times the side features ``1`` and ``sd(x)``. The maps share these sums;
    a map that is shared by all channels needs only their sum over channels.

    Raises :class:`ArgumentError` if there is no such window, or for a map with both a bias and a scale bias.
    """
    look_back, horizon = maps[0].look_back, maps[0].horizon
    start = first_target - look_back
    count = last_target - first_target - horizon + 1
    count = count if windows is None else min(count, windows)
    if start < 0 or count < 1:
        raise ArgumentError(
            f"rows [{first_target}, {last_target}) hold no window of look-back {look_back} and horizon {horizon}"
        )
    squared = [np.zeros(horizon) for _ in maps]
    scaled = any(linear_map.scale_bias is not None for linear_map in maps)
    sums: tuple[Moments, Moments] | None = None
    for channel, series in enumerate(values_TC.T):
        plain = window_moments(series, look_back, horizon, start, start + count)
        deviation = with_deviation(plain, series, start) if scaled else plain
        for total, linear_map in zip(squared, maps, strict=True):
            if not linear_map.shared:
                total += _squared_errors(linear_map.channel(channel), plain, deviation)
        sums = (plain, deviation) if sums is None else (sums[0] + plain, sums[1] + deviation)
    for total, linear_map in zip(squared, maps, strict=True):
        if linear_map.shared and sums is not None:
            total += _squared_errors(linear_map, *sums)
    return [total / (count * values_TC.shape[1]) for total in squared]


def _squared_errors(linear_map: LinearMap, plain: Moments, deviation: Moments) -> np.ndarray:
    """Squared errors ``(H,)`` summed over the windows of one channel.

    ``plain`` has the side feature ``f = 1``, ``deviation`` has ``f = sd(x)``.
    """
    weight, bias = linear_map.weight[0], linear_map.bias[0]
    past, cross = plain.products[:, : plain.look_back], plain.products[:, plain.look_back :]
    # sum (y - w'x)^2 = sum y^2 + w'(S_xx w - 2 S_xy)
    squared = plain.squares[plain.look_back :] + np.einsum("lh,lh->h", weight, past @ weight - 2.0 * cross)
    features = [(bias, plain)]
    if linear_map.scale_bias is not None:
        if bias.any():
            raise ArgumentError("a map with both a bias and a scale bias has no error in closed form")
        features = [(linear_map.scale_bias[0], deviation)]
    # with the term b f: minus 2 b sum f (y - w'x), plus b^2 sum f^2
    for scale, moments in features:
        residual = moments.side[plain.look_back :] - moments.side[: plain.look_back] @ weight
        squared += moments.side_energy * scale * scale - 2.0 * scale * residual
    return squared
