"""From window moments to the least-squares problem of each member of the linear family.

All four forecast ``y = level + W' z + b f`` from the look-back ``x`` with ``level = v'x`` and ``z = x - level``:

========  =================  ===========================  =========================================================
form      v                  f (side feature)             penalty on W
========  =================  ===========================  =========================================================
linear    0                  1                            ``|W|^2``
nlinear   last step          1                            ``|W|^2``
dlinear   0                  1                            ``|W_s|^2 + |W_t|^2``, with ``W = (I - A)' W_s + A' W_t``
rlinear   1/L (the mean)     deviation of the look-back   ``|W|^2``
========  =================  ===========================  =========================================================

``A`` is the moving average of DLinear (2205.13504); ``b`` is never penalised. Minimising DLinear's penalty over all
pairs that give the same ``W`` leaves ``W' P^-1 W`` with ``P = (I - A)'(I - A) + A'A``.
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
    """Sums over windows: ``z`` past and ``r`` future, both relative to the level; ``f`` side feature."""

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
        """The same with the side feature regressed out of ``z`` and ``r`` by the coefficients of ``fitted_on``."""
        energy = fitted_on.side_energy or 1.0  # 0 where every look-back is flat: then the sums with f are 0 too
        a, c = fitted_on.side_gram / energy, fitted_on.side_cross / energy
        u, w, e = self.side_gram, self.side_cross, self.side_energy
        half = np.outer(u - 0.5 * e * a, a)
        gram = self.gram - half - half.T
        cross = self.cross - np.outer(u, c) - np.outer(a, w - e * c)
        energy = self.energy - 2 * c * w + e * c * c
        return NormalEquations(gram, cross, energy, u - e * a, w - e * c, e, self.windows, self.noise)


def check_form(form: str) -> None:
    if form not in get_args(Form):
        raise UnknownNameError("form", form, get_args(Form))


def level_weights(form: Form, look_back: int) -> np.ndarray:
    """``v`` of the table above, ``(L,)``."""
    weights = np.zeros(look_back)
    if form == "nlinear":
        weights[-1] = 1.0
    elif form == "rlinear":
        weights[:] = 1.0 / look_back
    return weights


def normal_equations(moments: Moments, form: Form) -> NormalEquations:
    """The sums for ``form``; linear in the moments, so that sums over channels may be taken before or after."""
    look_back = moments.look_back
    past, future = moments.products[:, :look_back], moments.products[:, look_back:]
    energy, noise = moments.squares[look_back:], moments.noise
    side_past, side_future = moments.side[:look_back], moments.side[look_back:]
    if form in ("nlinear", "rlinear"):
        v = level_weights(form, look_back)
        level_past, level_future, side_level = past @ v, v @ future, v @ side_past
        level_energy = v @ level_past
        past = past - level_past[:, None] - level_past[None, :] + level_energy
        future = future - level_past[:, None] - level_future[None, :] + level_energy
        energy = energy - 2 * level_future + level_energy
        side_past, side_future = side_past - side_level, side_future - side_level
        noise *= 4.0  # four sums, each with its own
    return NormalEquations(past, future, energy, side_past, side_future, moments.side_energy, moments.windows, noise)


def moving_average(look_back: int, kernel_size: int = KERNEL_SIZE) -> np.ndarray:
    """``A`` ``(L, L)``: DLinear's trend is ``A x``, a mean over ``kernel_size`` steps with the edges repeated."""
    half = (kernel_size - 1) // 2
    rows = np.repeat(np.arange(look_back), kernel_size)
    columns = np.clip(rows + np.tile(np.arange(-half, kernel_size - half), look_back), 0, look_back - 1)
    average = np.zeros((look_back, look_back))
    np.add.at(average, (rows, columns), 1.0 / kernel_size)
    return average


@cache
def penalty_root(form: Form, look_back: int) -> np.ndarray | None:
    """``R`` with ``W = R U`` and the penalty ``|U|^2``; None where ``R`` is the identity."""
    if form != "dlinear":
        return None
    trend = moving_average(look_back)
    season = np.eye(look_back) - trend
    return np.linalg.cholesky(season.T @ season + trend.T @ trend)


def as_linear_map(form: Form, weights_CLH: np.ndarray, bias_CH: np.ndarray) -> LinearMap:
    """``level + W' z + b f`` as one matrix on the raw look-back."""
    v = level_weights(form, weights_CLH.shape[1])
    if v.any():
        weights_CLH = weights_CLH + v[None, :, None] * (1.0 - weights_CLH.sum(axis=1, keepdims=True))
    if form == "rlinear":
        return LinearMap(weights_CLH, np.zeros_like(bias_CH), bias_CH)
    return LinearMap(weights_CLH, bias_CH)
