"""The normal equations (least-squares problem) of each member of the linear family, from window moments.

All four members forecast ``y = level + W' z + b f`` from the look-back ``x``, with ``level = v'x`` and
``z = x - level``; they differ in the level, the side feature ``f`` and the penalty:

========  =================  ===========================  =========================================================
form      v                  f (side feature)             penalty on W
========  =================  ===========================  =========================================================
linear    0                  1                            ``|W|^2``
nlinear   last step          1                            ``|W|^2``
dlinear   0                  1                            ``|W_s|^2 + |W_t|^2``, with ``W = (I - A)' W_s + A' W_t``
rlinear   1/L (the mean)     deviation of the look-back   ``|W|^2``
========  =================  ===========================  =========================================================

``A`` is the moving average of DLinear (2205.13504). ``b`` is never penalised. Many pairs ``(W_s, W_t)`` of DLinear give
the same ``W``; the smallest penalty among them is ``W' P^-1 W`` with ``P = (I - A)'(I - A) + A'A``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Literal, get_args

import numpy as np

from manyheads.core.errors import UnknownNameError
from manyheads.forecasting.models.closed_form.hankel import Moments
from manyheads.forecasting.models.linear_map import LinearMap

Form = Literal["linear", "nlinear", "dlinear", "rlinear"]
KERNEL_SIZE = 25  # DLinear's moving average, fixed in the authors' code


@dataclass(frozen=True)
class NormalEquations:
    """Sums over windows of ``z`` (past minus level), ``r`` (future minus level) and ``f`` (side feature)."""

    gram: np.ndarray  # (L, L): sum z z'
    cross: np.ndarray  # (L, H): sum z r'
    energy: np.ndarray  # (H,): sum r^2
    side_gram: np.ndarray  # (L,): sum f z
    side_cross: np.ndarray  # (H,): sum f r
    side_energy: float  # sum f^2
    windows: int
    noise: float  # bound of the rounding error of each entry of the Gram matrix

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def without_side(self, fitted_on: NormalEquations) -> NormalEquations:
        """The normal equations of ``z - a f`` and ``r - c f``: the side feature is regressed out.

        The coefficients come from the windows of ``fitted_on``: ``a = sum f z / sum f^2``, ``c = sum f r / sum f^2``.
        This removes the unpenalised ``b`` from the problem (Frisch-Waugh-Lovell theorem).
        """
        # sum f^2 is 0 if every look-back is flat; then the sums with f are 0 too
        energy = fitted_on.side_energy or 1.0
        a, c = fitted_on.side_gram / energy, fitted_on.side_cross / energy
        u, w, e = self.side_gram, self.side_cross, self.side_energy
        # with u = sum f z, w = sum f r and e = sum f^2 of these windows:
        # sum (z - a f)(z - a f)' = G - u a' - a u' + e a a'
        half = np.outer(u - 0.5 * e * a, a)
        gram = self.gram - half - half.T
        # sum (z - a f)(r - c f)' = B - u c' - a w' + e a c'
        cross = self.cross - np.outer(u, c) - np.outer(a, w - e * c)
        # sum (r - c f)^2 = sum r^2 - 2 c w + e c^2
        energy = self.energy - 2 * c * w + e * c * c
        return NormalEquations(gram, cross, energy, u - e * a, w - e * c, e, self.windows, self.noise)


def check_form(form: str) -> None:
    """Raise :class:`UnknownNameError` for a form that is not in the table of the module."""
    if form not in get_args(Form):
        raise UnknownNameError("form", form, get_args(Form))


def level_weights(form: Form, look_back: int) -> np.ndarray:
    """``v`` of the table in the module, ``(L,)``."""
    weights = np.zeros(look_back)
    if form == "nlinear":
        weights[-1] = 1.0
    elif form == "rlinear":
        weights[:] = 1.0 / look_back
    return weights


def normal_equations(moments: Moments, form: Form) -> NormalEquations:
    """The normal equations of ``form`` from window moments.

    They are linear in the moments: a sum over channels may be taken before or after.
    """
    look_back = moments.look_back
    past, future = moments.products[:, :look_back], moments.products[:, look_back:]
    energy, noise = moments.squares[look_back:], moments.noise
    side_past, side_future = moments.side[:look_back], moments.side[look_back:]
    if form in ("nlinear", "rlinear"):
        v = level_weights(form, look_back)
        # with m = v'x: sum x m = S v, sum m y = v'S_xy, sum m^2 = v'S v
        level_past, level_future, side_level = past @ v, v @ future, v @ side_past
        level_energy = v @ level_past
        # sum (x_i - m)(x_j - m) = S_ij - sum x_i m - sum x_j m + sum m^2, and likewise for x_i and y_h
        past = past - level_past[:, None] - level_past[None, :] + level_energy
        future = future - level_past[:, None] - level_future[None, :] + level_energy
        energy = energy - 2 * level_future + level_energy
        side_past, side_future = side_past - side_level, side_future - side_level
        # each entry is a sum of four terms with the same bound
        noise *= 4.0
    return NormalEquations(past, future, energy, side_past, side_future, moments.side_energy, moments.windows, noise)


def moving_average(look_back: int, kernel_size: int = KERNEL_SIZE) -> np.ndarray:
    """The matrix ``A (L, L)`` of DLinear: the trend ``A x`` is a mean over ``kernel_size`` steps, edges repeated."""
    half = (kernel_size - 1) // 2
    rows = np.repeat(np.arange(look_back), kernel_size)
    columns = np.clip(rows + np.tile(np.arange(-half, kernel_size - half), look_back), 0, look_back - 1)
    average = np.zeros((look_back, look_back))
    np.add.at(average, (rows, columns), 1.0 / kernel_size)
    return average


@cache
def penalty_root(form: Form, look_back: int) -> np.ndarray | None:
    """``R (L, L)`` with ``W = R U`` and the penalty ``|U|^2``; None if ``R`` is the identity.

    For DLinear ``P = R R'`` (Cholesky), so that ``W' P^-1 W = |R^-1 W|^2 = |U|^2``.
    """
    if form != "dlinear":
        return None
    trend = moving_average(look_back)
    season = np.eye(look_back) - trend
    return np.linalg.cholesky(season.T @ season + trend.T @ trend)


def as_linear_map(form: Form, weights_CLH: np.ndarray, bias_CH: np.ndarray) -> LinearMap:
    """``level + W' z + b f`` as one linear map on the raw look-back ``x``."""
    v = level_weights(form, weights_CLH.shape[1])
    # v'x + W'(x - v'x 1) = (W + v (1 - sum_l W_l))' x
    if v.any():
        weights_CLH = weights_CLH + v[None, :, None] * (1.0 - weights_CLH.sum(axis=1, keepdims=True))
    if form == "rlinear":
        return LinearMap(weights_CLH, np.zeros_like(bias_CH), bias_CH)
    return LinearMap(weights_CLH, bias_CH)
