"""Linear, NLinear, DLinear and RLinear by ridge regression on all windows, in closed form (2205.13504; 2403.14587).

    W(lambda) = (G + lambda I)^-1 B,    G = sum z z',    B = sum z r'

``z`` and ``r`` are those of :mod:`normal_equations`, with the unpenalised side feature regressed out. One
eigen-decomposition ``G = V diag(d) V'`` serves every penalty: ``W(lambda) = V diag(1 / (d + lambda)) V' B``. The
squared error on the validation windows is quadratic in the factors ``1 / (d + lambda)``. Its coefficients come from the
moments of those windows: no forecast is made to choose the penalty.

Cost: ``O(C (T log T + L (L + H)))`` for the moments and ``O(L^3 + L^2 H)`` for the solution, ``C`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manyheads.core.errors import ArgumentError, DataError
from manyheads.forecasting.models.closed_form.hankel import window_moments, with_deviation
from manyheads.forecasting.models.closed_form.normal_equations import (
    Form,
    NormalEquations,
    as_linear_map,
    check_form,
    normal_equations,
    penalty_root,
)
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series.panels import History

# lambda, in units of G: a sum over all windows and channels
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
# candidates if the look-back is to be chosen
LOOK_BACKS = (96, 192, 336, 512, 720)
# in ordinary least squares, smaller eigenvalues (as a share of the largest) count as zero
_RANK_TOLERANCE = 1e-11


@dataclass(frozen=True)
class RidgeFit:
    """A fitted member of the linear family, with the choices made on the validation part."""

    map: LinearMap
    form: Form
    look_back: int
    individual: bool
    penalties: tuple[float, ...]  # one, or one for each channel; 0 is ordinary least squares
    validation_mse: float | None  # None if the validation part has no window
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
    """Fit ridge regression on the train windows, with the penalty of the lowest error on all validation windows.

    If there are fewer validation windows than coefficients a step (``look_back``), nothing can be chosen on them:
    ordinary least squares (shared weights, the shortest look-back) is fitted, with a warning.

    Args:
        history: the rows. With ``history.refit`` the chosen penalty is fitted once more on the windows of all rows.
        horizon: steps to forecast.
        form: ``linear``, ``nlinear``, ``dlinear`` or ``rlinear``.
        look_back: steps of the past; None chooses among :data:`LOOK_BACKS` on the validation part.
        individual: weights for each channel; None chooses on the validation part.
        penalties: values of ``lambda`` to choose from.

    Raises:
        DataError: a train part shorter than ``look_back + horizon``.
        ArgumentError: a penalty below 0, or no penalty.
        UnknownNameError: an unknown form.
    """
    look_backs = (
        [length for length in LOOK_BACKS if length + horizon <= history.train_end] if look_back is None else [look_back]
    ) or LOOK_BACKS[:1]
    members = [(form, kind) for kind in ((False, True) if individual is None else (individual,))]
    fits = [
        fit
        for length in look_backs
        for fit in fit_ridges(history, horizon, members, look_back=length, penalties=penalties)
    ]
    comparable = [fit for fit in fits if not fit.warnings] or fits[:1]
    return min(comparable, key=lambda fit: np.inf if fit.validation_mse is None else fit.validation_mse)


def fit_ridges(
    history: History,
    horizon: int,
    members: Sequence[tuple[Form, bool]],
    *,
    look_back: int,
    penalties: Sequence[float] = PENALTIES,
) -> list[RidgeFit]:
    """Fit several members ``(form, individual)`` of the family on the same window moments, which cost most.

    Channels are processed one by one, so that memory grows only with the number of fitted weights. Warns and raises
    like :func:`fit_ridge`.
    """
    for form, _ in members:
        check_form(form)
    if not penalties or min(penalties) < 0:
        raise ArgumentError(f"penalties: found {list(penalties)}, expected at least one, none below 0")
    if look_back < 1 or look_back + horizon > history.train_end:
        raise DataError(
            f"the train part has {history.train_end} rows, fewer than look-back + horizon = "
            f"{look_back} + {horizon}: give more rows, a shorter look-back or a shorter horizon"
        )
    train_windows = history.train_end - look_back - horizon + 1
    validation_windows = max(history.rows - history.train_end - horizon + 1, 0)
    # the first window whose targets begin at the first validation row
    first_validation = history.train_end - look_back
    tried, warnings = tuple(penalties), ()
    if validation_windows < look_back:
        warnings = (
            f"{validation_windows} validation windows are too few to choose a penalty for {look_back} "
            "coefficients a step: plain least squares is fitted",
        )
        tried = (0.0,)
    stretches = [(0, train_windows), (first_validation, first_validation + validation_windows)]
    stretches = [(start, stop) for start, stop in stretches if stop > start]
    if history.refit:
        stretches.append((0, history.rows - look_back - horizon + 1))
    forms = dict.fromkeys(form for form, _ in members)
    solutions: dict[tuple[Form, bool], list[_Solution]] = {member: [] for member in members}
    pooled: dict[Form, list[NormalEquations]] = {}
    for series in history.values.T:
        plain = [window_moments(series, look_back, horizon, start, stop) for start, stop in stretches]
        for form in forms:
            moments = plain
            if form == "rlinear":
                moments = [with_deviation(m, series, start) for m, (start, _) in zip(plain, stretches, strict=True)]
            problems = [normal_equations(m, form) for m in moments]
            if (form, True) in solutions:
                solutions[form, True].append(_solve(problems, form, tried, refit=history.refit))
            if (form, False) in solutions:
                so_far = pooled.get(form)
                pooled[form] = problems if so_far is None else [a + b for a, b in zip(so_far, problems, strict=True)]
    for form, problems in pooled.items():
        solutions[form, False].append(_solve(problems, form, tried, refit=history.refit))
    return [_as_fit(solutions[form, kind], form, kind, warnings) for form, kind in members]


@dataclass(frozen=True)
class _Solution:
    weights: np.ndarray  # (L, H)
    bias: np.ndarray  # (H,)
    penalty: float
    validation_mse: float | None


def _as_fit(solutions: list[_Solution], form: Form, individual: bool, warnings: tuple[str, ...]) -> RidgeFit:
    linear_map = as_linear_map(form, np.stack([s.weights for s in solutions]), np.stack([s.bias for s in solutions]))
    errors = [s.validation_mse for s in solutions if s.validation_mse is not None]
    return RidgeFit(
        linear_map,
        form,
        linear_map.look_back,
        individual,
        tuple(s.penalty for s in solutions),
        float(np.mean(errors)) if errors else None,
        warnings,
    )


def _solve(problems: Sequence[NormalEquations], form: Form, penalties: tuple[float, ...], *, refit: bool) -> _Solution:
    """Choose the penalty on the validation windows and solve.

    ``problems`` are the normal equations of the train windows, of the validation windows (if there are any) and, with
    ``refit``, of the windows of all rows, on which the chosen penalty is fitted in the end.
    """
    *chosen_on, final = problems if refit else (*problems, problems[0])
    train = _Decomposed.of(chosen_on[0], form)
    best, error = penalties[0], None
    if len(chosen_on) > 1:
        # the side feature is removed with the coefficients of the train windows, as in the forecast
        validation = chosen_on[1].without_side(chosen_on[0])
        # W = Q diag(s) C with Q the basis, C the rotated B, s = 1 / (d + lambda). On the validation sums G, B:
        #   sum |r - W'z|^2 = sum |r|^2 - 2 <W, B> + <W, G W>
        #                   = energy - 2 s'agreement + s' overlap s
        #   agreement_i = sum_h C_ih (Q'B)_ih,    overlap_ij = (Q'G Q)_ij (C C')_ij
        validation_gram = train.basis.T @ validation.gram @ train.basis
        agreement = np.einsum("ih,ih->i", train.rotated, train.basis.T @ validation.cross)
        overlap = validation_gram * (train.rotated @ train.rotated.T)
        energy = validation.energy.sum()
        errors = [
            float(energy - 2.0 * (s @ agreement) + s @ overlap @ s) / (validation.windows * len(validation.energy))
            for s in map(train.shrink, penalties)
        ]
        index = int(np.argmin(errors))
        best, error = penalties[index], errors[index]
    fitted = _Decomposed.of(final, form) if refit else train
    # W = Q diag(s) C, and the unpenalised b = (sum f r - W' sum f z) / sum f^2
    weights = fitted.basis @ (fitted.shrink(best)[:, None] * fitted.rotated)
    bias = (final.side_cross - final.side_gram @ weights) / (final.side_energy or 1.0)
    return _Solution(weights, bias, best, error)


@dataclass(frozen=True)
class _Decomposed:
    """The eigen-decomposition ``R'G R = V diag(d) V'`` of one problem.

    ``R`` is the root of the penalty, ``W = R U`` with penalty ``|U|^2``; it is the identity except for DLinear. Then
    ``U = V diag(1 / (d + lambda)) V' R'B`` and ``W = (R V) diag(1 / (d + lambda)) (V' R'B)``.
    """

    values: np.ndarray  # (L,): d
    basis: np.ndarray  # (L, L): Q = R V
    rotated: np.ndarray  # (L, H): C = V' R' B
    noise: float  # smaller eigenvalues are rounding errors

    @classmethod
    def of(cls, problem: NormalEquations, form: Form) -> _Decomposed:
        free = problem.without_side(problem)
        gram, cross, root = free.gram, free.cross, penalty_root(form, free.gram.shape[0])
        if root is not None:
            gram, cross = root.T @ gram @ root, root.T @ cross
        values, vectors = np.linalg.eigh(gram)
        basis = vectors if root is None else root @ vectors
        return cls(values, basis, vectors.T @ cross, free.noise * len(values))

    def shrink(self, penalty: float) -> np.ndarray:
        """``1 / (d + lambda)`` for each eigenvector; with ``lambda = 0`` the eigenvectors without energy get 0."""
        if penalty > 0:
            return 1.0 / (np.maximum(self.values, 0.0) + penalty)
        kept = self.values > max(_RANK_TOLERANCE * self.values[-1], self.noise)
        return np.where(kept, 1.0 / np.where(kept, self.values, 1.0), 0.0)
