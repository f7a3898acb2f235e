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

    With ``history.refit`` the chosen penalty is fitted once more on the windows of all rows.
    ``look_back=None`` and ``individual=None`` are chosen the same way, among :data:`LOOK_BACKS` and both kinds of
    sharing. Where there are fewer validation windows than coefficients a step (``look_back``), nothing can be chosen
    on them: plain least squares (shared, with the shortest look-back) is fitted and a warning says so.

    Raises :class:`DataError` where the train part is shorter than ``look_back + horizon``, :class:`ArgumentError` for
    a penalty below 0 and an empty list of penalties.
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
    able = [fit for fit in fits if not fit.warnings] or fits[:1]
    return min(able, key=lambda fit: np.inf if fit.validation_mse is None else fit.validation_mse)


def fit_ridges(
    history: History,
    horizon: int,
    members: Sequence[tuple[Form, bool]],
    *,
    look_back: int,
    penalties: Sequence[float] = PENALTIES,
) -> list[RidgeFit]:
    """Several members ``(form, individual)`` of the family at once: they share the moments, which cost most.

    Channels are taken one by one, so that memory grows with the number of fitted weights alone. Warns and raises like
    :func:`fit_ridge`.
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
    first_validation = history.train_end - look_back  # its targets begin with the validation part
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
    """From the sums over the train windows, over the validation windows where there are any, and, with ``refit``, over
    the windows of all rows, which the chosen penalty is fitted on in the end."""
    *chosen_on, final = problems if refit else (*problems, problems[0])
    train = _Decomposed.of(chosen_on[0], form)
    best, error = penalties[0], None
    if len(chosen_on) > 1:
        held = chosen_on[1].without_side(chosen_on[0])
        held_gram = train.basis.T @ held.gram @ train.basis
        agreement = np.einsum("ih,ih->i", train.rotated, train.basis.T @ held.cross)
        overlap = held_gram * (train.rotated @ train.rotated.T)
        energy = held.energy.sum()
        errors = [
            float(energy - 2.0 * (s @ agreement) + s @ overlap @ s) / (held.windows * len(held.energy))
            for s in map(train.shrink, penalties)
        ]
        index = int(np.argmin(errors))
        best, error = penalties[index], errors[index]
    fitted = _Decomposed.of(final, form) if refit else train
    weights = fitted.basis @ (fitted.shrink(best)[:, None] * fitted.rotated)
    bias = (final.side_cross - final.side_gram @ weights) / (final.side_energy or 1.0)
    return _Solution(weights, bias, best, error)


@dataclass(frozen=True)
class _Decomposed:
    """The eigen-decomposition of one Gram matrix, in the coordinates of the penalty."""

    values: np.ndarray  # (L,)
    basis: np.ndarray  # (L, L): from eigenvectors to weights
    rotated: np.ndarray  # (L, H): the cross products in eigenvectors
    noise: float  # eigenvalues below it are rounding errors

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
        """The factor of each eigenvector; plain least squares leaves out those without energy."""
        if penalty > 0:
            return 1.0 / (np.maximum(self.values, 0.0) + penalty)
        kept = self.values > max(_RANK_TOLERANCE * self.values[-1], self.noise)
        return np.where(kept, 1.0 / np.where(kept, self.values, 1.0), 0.0)
