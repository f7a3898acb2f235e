"""Errors of a fitted model on every window of a part, in chunks: memory does not grow with the number of windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import irfft, next_fast_len, rfft

from manyheads.core.errors import DataError
from manyheads.forecasting.models.closed_form.hankel import look_back_deviation
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series.panels import FittedModel

_CHUNK_BYTES = 2 << 20


@dataclass(frozen=True)
class Score:
    """Mean errors; every window, step and channel counts the same."""

    mse: float
    mae: float
    windows: int
    mse_by_step: np.ndarray  # (H,)
    mae_by_step: np.ndarray  # (H,)


def count_windows(first_target: int, last_target: int, horizon: int, *, drop_to_multiple_of: int | None = None) -> int:
    """Number of windows with all ``horizon`` targets in rows ``[first_target, last_target)``.

    ``drop_to_multiple_of`` is a batch size: the last incomplete batch is then not counted, as in the loaders of the
    Transformer papers.
    """
    windows = last_target - first_target - horizon + 1
    if drop_to_multiple_of:
        windows = windows // drop_to_multiple_of * drop_to_multiple_of
    return max(windows, 0)


def score(
    model: FittedModel,
    values_TC: np.ndarray,
    first_target: int,
    last_target: int,
    *,
    drop_to_multiple_of: int | None = None,
    dtype: type = np.float64,
    mse_by_step: np.ndarray | None = None,
) -> Score:
    """Errors on all windows with targets in rows ``[first_target, last_target)``, stride 1.

    Args:
        model: the fitted model.
        values_TC: the series, in the units of the model.
        first_target: first row of the part.
        last_target: one past its last row.
        drop_to_multiple_of: batch size, to drop the last incomplete batch; see :func:`count_windows`.
        dtype: ``np.float32`` makes forecasts in single precision and sums in double: twice as fast, 1e-6 less exact.
        mse_by_step: squared errors ``(H,)`` that are known from moments; then only absolute errors are measured.

    Raises :class:`DataError` if there is no such window, or a look-back begins before the series.
    """
    horizon, look_back = model.horizon, model.look_back
    windows = count_windows(first_target, last_target, horizon, drop_to_multiple_of=drop_to_multiple_of)
    start = first_target - look_back
    if windows < 1 or start < 0 or last_target > len(values_TC):
        raise DataError(
            f"rows [{first_target}, {last_target}) of {len(values_TC)} hold no window of look-back {look_back} and "
            f"horizon {horizon}: give more rows, or a shorter look-back or horizon"
        )
    squared, absolute = np.zeros(horizon), np.zeros(horizon)
    for error_MH in _errors(model, values_TC.astype(dtype, copy=False), start, windows):
        if mse_by_step is None:
            squared += np.einsum("mh,mh->h", error_MH, error_MH, dtype=np.float64)
        absolute += np.abs(error_MH, out=error_MH).sum(axis=0, dtype=np.float64)
    count = windows * values_TC.shape[1]
    by_step = squared / count if mse_by_step is None else mse_by_step
    return Score(float(by_step.mean()), float(absolute.mean() / count), windows, by_step, absolute / count)


def _errors(model: FittedModel, values_TC: np.ndarray, start: int, windows: int) -> Iterator[np.ndarray]:
    """Forecast minus target in chunks: ``(windows, H)`` of one channel, or ``(windows * C, H)`` of all."""
    look_back, horizon, channels = model.look_back, model.horizon, values_TC.shape[1]
    if isinstance(model, LinearMap):
        yield from _linear_errors(model.astype(values_TC.dtype.type), values_TC, start, windows)
        return
    chunk = max(1, _CHUNK_BYTES // (values_TC.itemsize * (look_back + horizon) * channels))
    for begin in range(start, start + windows, chunk):
        end = min(begin + chunk, start + windows)
        targets = sliding_window_view(values_TC, horizon, axis=0)[begin + look_back : end + look_back]
        error = _forecast(model, values_TC, begin, end).swapaxes(1, 2) - targets
        yield error.reshape(-1, horizon)


def _linear_errors(linear_map: LinearMap, values_TC: np.ndarray, start: int, windows: int) -> Iterator[np.ndarray]:
    """Errors of a linear map, ``(windows, H)`` of one channel at a time, by FFT in overlapping blocks (overlap-save).

    The forecast of every window is a correlation of the series with the weights. The FFT takes a twentieth of the
    multiplications of the matrix product.
    """
    look_back, horizon = linear_map.look_back, linear_map.horizon
    size = next_fast_len(max(3 * look_back, 512), real=True)
    # of a block of `size` rows, this many windows do not wrap around
    fresh = size - look_back + 1
    spectrum_HF = None
    for channel, column in enumerate(values_TC.T):
        series, one = np.ascontiguousarray(column), linear_map.channel(channel)
        if spectrum_HF is None or not linear_map.shared:
            spectrum_HF = rfft(one.weight[0].T, size).conj()
        deviation = None
        if one.scale_bias is not None:
            reach = column[start : start + windows + look_back - 1].astype(np.float64)
            deviation = look_back_deviation(reach, look_back).astype(series.dtype)
        for begin in range(start, start + windows, fresh):
            count = min(fresh, start + windows - begin)
            error_HM = irfft(spectrum_HF * rfft(series[begin : begin + size], size), size, overwrite_x=True)[:, :count]
            error_HM -= sliding_window_view(series, count)[begin + look_back : begin + look_back + horizon]
            error_HM += one.bias[0][:, None]
            if one.scale_bias is not None and deviation is not None:
                error_HM += np.outer(one.scale_bias[0], deviation[begin - start :][:count])
            yield error_HM.T


def _forecast(model: FittedModel, values_TC: np.ndarray, begin: int, end: int) -> np.ndarray:
    return model.forecast(sliding_window_view(values_TC, model.look_back, axis=0)[begin:end].swapaxes(1, 2))
