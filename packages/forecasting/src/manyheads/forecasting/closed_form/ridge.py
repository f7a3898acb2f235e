"""Linear, NLinear, DLinear and RLinear by ridge regression on all windows, in closed form (2205.13504; 2403.14587).

    W(lambda) = (G + lambda I)^-1 B          G = sum z z',  B = sum z r',  side feature regressed out (never penalised)

with ``z``, ``r`` as in :mod:`normal_equations`. One eigen-decomposition of ``G`` serves every penalty: with
``G = V diag(d) V'`` the errors on validation and test windows are quadratic in ``1 / (d + lambda)`` and come from the
moments of those windows, so that no forecast is ever made.

Cost: ``O(C (T log T + L (L + H)))`` for the moments and ``O(L^3 + L^2 H)`` for the solution, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manyheads.core.errors import ArgumentError, DataError
from manyheads.forecasting.closed_form.hankel import window_moments
from manyheads.forecasting.closed_form.normal_equations import (
    Form,
    NormalEquations,
    as_linear_map,
    check_form,
    normal_equations,
    penalty_root,
)
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series import History

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)  # of the sums over all windows and channels
LOOK_BACKS = (96, 192, 336, 512, 720)  # tried where the look-back is to be chosen
_RANK_TOLERANCE = 1e-11  # eigenvalues below this share of the largest count as zero in plain least squares


@dataclass(frozen=True)
class RidgeFit:
    """A fitted member of the linear family and how it was chosen."""

    map: LinearMap
    form: Form
    look_back: int
    individual: bool
    penalties: tuple[float, ...]  # one, or one a channel; 0 is plain least squares
    validation_mse: float | None  # None where the validation part has no window
    warnings: tuple[str, ...] = ()


def fit_ridge(
    history: History,
    horizon: int,
    *,
    form: Form = "nlinear",
    look_back: int | None = 336,
    individual: bool | None = False,
    penalties: Sequence[float] = PENALTIES,
) -> RidgeFit:
    """Fits on the train windows; chooses the penalty by the exact error on all validation windows.

    ``look_back=None`` and ``individual=None`` are chosen the same way, among :data:`LOOK_BACKS` and both kinds of
    sharing. Where there are fewer validation windows than coefficients a step (``look_back``), nothing can be chosen
    on them: plain least squares is fitted and a warning says so.

    Raises :class:`DataError` where the train part is shorter than ``look_back + horizon``, :class:`ArgumentError` for
    a penalty below 0 and an empty list of penalties.
    """
    check_form(form)
    if not penalties or min(penalties) < 0:
        raise ArgumentError(f"penalties: found {list(penalties)}, expected at least one, none below 0")
    look_backs = (
        [length for length in LOOK_BACKS if length + horizon <= history.train_end] if look_back is None else [look_back]
    )
    if not look_backs or min(look_backs) < 1 or min(look_backs) + horizon > history.train_end:
        raise DataError(
            f"the train part has {history.train_end} rows, fewer than look-back + horizon = "
            f"{look_back or min(LOOK_BACKS)} + {horizon}: give more rows, a shorter look-back or a shorter horizon"
        )
    fits = [_fit(history, horizon, form, length, individual, tuple(penalties)) for length in look_backs]
    return min(fits, key=lambda fit: np.inf if fit.validation_mse is None else fit.validation_mse)


def _fit(
    history: History, horizon: int, form: Form, look_back: int, individual: bool | None, penalties: tuple[float, ...]
) -> RidgeFit:
    train, validation = [], []
    first_validation = history.train_end - look_back  # its targets begin with the validation part
    validation_windows = history.rows - history.train_end - horizon + 1
    side = "deviation" if form == "rlinear" else "ones"
    for series in history.values.T:
        moments = window_moments(series, look_back, horizon, 0, history.train_end - look_back - horizon + 1, side=side)
        train.append(normal_equations(moments, form))
        if validation_windows > 0:
            stop = first_validation + validation_windows
            moments = window_moments(series, look_back, horizon, first_validation, stop, side=side)
            validation.append(normal_equations(moments, form))

    warnings: tuple[str, ...] = ()
    if validation_windows < look_back:
        warnings = (
            f"{max(validation_windows, 0)} validation windows are too few to choose a penalty for {look_back} "
            "coefficients a step: plain least squares is fitted",
        )
        penalties = (0.0,)
    kinds = (False, True) if individual is None and not warnings else (bool(individual),)
    fits = [_fit_kind(train, validation, form, kind, penalties, warnings) for kind in kinds]
    return min(fits, key=lambda fit: np.inf if fit.validation_mse is None else fit.validation_mse)


def _fit_kind(
    train: list[NormalEquations],
    validation: list[NormalEquations],
    form: Form,
    individual: bool,
    penalties: tuple[float, ...],
    warnings: tuple[str, ...],
) -> RidgeFit:
    if individual:
        held = validation or [None] * len(train)
        solutions = [_solve(t, v, form, penalties) for t, v in zip(train, held, strict=True)]
    else:
        solutions = [_solve(total(train), total(validation) if validation else None, form, penalties)]
    weights, biases, chosen, errors = (list(column) for column in zip(*solutions, strict=True))
    look_back = train[0].gram.shape[0]
    validation_mse = None if errors[0] is None else float(np.mean(errors))
    linear_map = as_linear_map(form, np.stack(weights), np.stack(biases))
    return RidgeFit(linear_map, form, look_back, individual, tuple(chosen), validation_mse, warnings)


def total(parts: Sequence[NormalEquations]) -> NormalEquations:
    """The problem of all parts together."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return NormalEquations(
        *(sum(getattr(p, name) for p in parts) for name in ("gram", "cross", "energy", "side_gram", "side_cross")),
        sum(p.side_energy for p in parts),
        sum(p.windows for p in parts),
    )


def _solve(
    train: NormalEquations, validation: NormalEquations | None, form: Form, penalties: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, float, float | None]:
    """Weights ``(L, H)``, bias ``(H,)``, the chosen penalty and its validation error."""
    problem = train.without_side(train)
    root = penalty_root(form, problem.gram.shape[0])
    gram, cross = problem.gram, problem.cross
    if root is not None:
        gram, cross = root.T @ gram @ root, root.T @ cross
    values, vectors = np.linalg.eigh(gram)
    rotated = vectors.T @ cross
    basis = vectors if root is None else root @ vectors

    def shrink(penalty: float) -> np.ndarray:
        if penalty > 0:
            return 1.0 / (np.maximum(values, 0.0) + penalty)
        kept = values > _RANK_TOLERANCE * values[-1]
        return np.where(kept, 1.0 / np.where(kept, values, 1.0), 0.0)

    best, error = penalties[0], None
    if validation is not None:
        held = validation.without_side(train)
        held_gram = basis.T @ held.gram @ basis
        agreement = np.einsum("ih,ih->i", rotated, basis.T @ held.cross)
        overlap = held_gram * (rotated @ rotated.T)
        energy = held.energy.sum()
        errors = [
            float(energy - 2.0 * (s @ agreement) + s @ overlap @ s) / (held.windows * len(held.energy))
            for s in map(shrink, penalties)
        ]
        index = int(np.argmin(errors))
        best, error = penalties[index], errors[index]
    weights = basis @ (shrink(best)[:, None] * rotated)
    bias = (train.side_cross - train.side_gram @ weights) / train.side_energy
    return weights, bias, best, error
