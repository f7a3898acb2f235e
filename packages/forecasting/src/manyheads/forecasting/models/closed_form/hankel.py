"""Second moments of all windows of a series, computed without forming the windows.

A window of ``L`` past and ``H`` future values that starts at row ``n`` is ``x[n : n + L + H]``. Least squares on the
windows that start in rows ``[start, stop)`` needs only the sums

    S[i, j] = sum_{n in [start, stop)} x[n + i] x[n + j],      0 <= i < L,  0 <= j < L + H,

The matrix whose rows are the windows is a Hankel matrix: its entry depends on ``n + i`` only. Going one step down the
diagonal of ``S`` therefore drops the first product and adds a new last one:

    S[i + 1, j + 1] = S[i, j] - x[start + i] x[start + j] + x[stop + i] x[stop + j].

The first row is one correlation (by FFT); each further row costs ``O(L + H)``. For ``N`` windows that is time
``O(N log N + L (L + H))`` and memory ``O(L (L + H))``. The explicit window matrix would take ``O(N L (L + H))`` and
``O(N (L + H))``.

Shapes: ``C`` channels, ``L`` look-back, ``H`` horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from manyheads.core.errors import DataError


@dataclass(frozen=True)
class Moments:
    """Sums over the windows of one channel, or of several channels together.

    Moments add and subtract like the sets of windows that they stand for. The *side feature* ``f[n]`` of a window is 1
    (for a bias) or the standard deviation of its look-back (for RLinear).
    """

    products: np.ndarray  # (L, L + H): S of the module
    squares: np.ndarray  # (L + H,): sum of x[n + j]^2
    side: np.ndarray  # (L + H,): sum of f[n] x[n + j]
    side_energy: float  # sum of f[n]^2
    windows: int
    noise: float = 0.0  # bound of the rounding error of each product

    @property
    def look_back(self) -> int:
        return self.products.shape[0]

    @property
    def horizon(self) -> int:
        return self.products.shape[1] - self.products.shape[0]

    def __add__(self, other: Moments) -> Moments:
        return self._combine(other, 1.0)

    def __sub__(self, other: Moments) -> Moments:
        return self._combine(other, -1.0)

    def _combine(self, other: Moments, sign: float) -> Moments:
        return Moments(
            self.products + sign * other.products,
            self.squares + sign * other.squares,
            self.side + sign * other.side,
            self.side_energy + sign * other.side_energy,
            self.windows + int(sign) * other.windows,
            self.noise + other.noise,
        )


def window_moments(series: np.ndarray, look_back: int, horizon: int, start: int, stop: int) -> Moments:
    """Moments of the windows that start at rows ``start .. stop - 1`` of ``series`` ``(T,)``; the side feature is 1.

    Raises :class:`DataError` if a window would leave the series.
    """
    width, windows = look_back + horizon, stop - start
    if windows < 1 or start < 0 or stop - 1 + width > len(series):
        raise DataError(
            f"windows [{start}, {stop}) of {look_back} + {horizon} steps do not fit into a series of {len(series)} rows"
        )
    reach = np.ascontiguousarray(series[start : stop - 1 + width], dtype=np.float64)
    squares, side = _running_sum(reach * reach, windows), _running_sum(reach, windows)
    # the rounding error of a sum of n products grows with eps * log2(n) * sum x^2
    noise = float(reach @ reach) * np.finfo(np.float64).eps * (1 + np.log2(len(reach)))
    return Moments(_products(reach, look_back, windows), squares, side, float(windows), windows, noise)


def with_deviation(moments: Moments, series: np.ndarray, start: int) -> Moments:
    """The same moments with another side feature: the population standard deviation of each look-back.

    ``series`` and ``start`` are those of :func:`window_moments`. The products, which cost most, are reused.
    """
    reach = np.asarray(series[start : start + moments.windows - 1 + len(moments.squares)], dtype=np.float64)
    feature = look_back_deviation(reach, moments.look_back)[: moments.windows]
    return replace(moments, side=_correlate(reach, feature), side_energy=float(feature @ feature))


def look_back_deviation(series: np.ndarray, look_back: int) -> np.ndarray:
    """Population standard deviation of ``series[n : n + L]`` for every ``n``; 0 if it is below the rounding error."""
    # var = E[x^2] - E[x]^2 by running sums; the series is centred first, against cancellation
    centred = series - series.mean()
    mean = _running_sum(centred, look_back) / look_back
    variance = _running_sum(centred * centred, look_back) / look_back - mean * mean
    noise = 8 * np.finfo(np.float64).eps * float(centred @ centred) / look_back
    return np.sqrt(np.where(variance > noise, variance, 0.0))


def _products(reach: np.ndarray, look_back: int, windows: int) -> np.ndarray:
    """``S (L, L + H)`` of all windows of the stretch ``reach``, row by row."""
    width = len(reach) - windows + 1
    products = np.empty((look_back, width))
    products[0] = _correlate(reach, reach[:windows])
    # x[start + j] and x[stop + j]; the last entry of the second is a filler that is never read
    leaving, entering = reach[:width], np.append(reach[windows:], 0.0)
    scratch = np.empty(width - 1)
    # S[i + 1, j + 1] = S[i, j] + x[stop + i] x[stop + j] - x[start + i] x[start + j]
    for i in range(look_back - 1):
        row, above = products[i + 1], products[i]
        np.multiply(entering[: width - 1], entering[i], out=row[1:])
        np.multiply(leaving[: width - 1], leaving[i], out=scratch)
        row[1:] -= scratch
        row[1:] += above[:-1]
        # S is symmetric in its first L columns
        row[0] = products[0, i + 1]
    return products


def _correlate(values: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """``sum_n feature[n] values[n + j]`` for every shift ``j`` that fits, by FFT, without wrap-around."""
    size = 1 << (len(values) - 1).bit_length()
    spectrum = np.fft.rfft(values, size) * np.fft.rfft(feature, size).conj()
    return np.fft.irfft(spectrum, size)[: len(values) - len(feature) + 1]


def _running_sum(values: np.ndarray, span: int) -> np.ndarray:
    """``sum_{k < span} values[n + k]`` for every ``n``."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return total[span:] - total[:-span]
