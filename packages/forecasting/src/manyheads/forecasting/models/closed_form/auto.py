"""``closed-form-auto``: one linear forecaster for any panel, in closed form, with nothing left to tune.

With ``x`` the look-back of one channel, ``p_h`` a naive forecast of step ``h`` (the *prior*) and ``z = x - x_last``:

    y_h = p_h + w_h' z,        W = mean over look-backs L and penalties lambda of  (G + lambda tr(G) / L)^-1 B,

``G = sum z z'`` and ``B = sum z (y - p)'`` over all windows of the fitting rows. Each channel takes a weighted mean of
two such ensembles: its own (``G``, ``B`` of the channel) and the shared one (sums over all channels; a channel whose
own fit leaves more than one and a half times the median squared residual counts less, by that ratio: weighted least
squares, so that one noisy channel does not spoil the fit of the others). The rule, the same for every panel:

1. *Horizon groups.* The steps between two asked horizons form a group with weights of their own, so that one fit serves
   all horizons: the forecast for a shorter horizon is the head of the longest.
2. *Prior.* The last value; the seasonal naive where fewer than 30 seasons were seen, too few to learn a season from.
3. *Look-backs and penalties* are not chosen: equal weights over three look-backs (the longest is an eleventh of the
   rows, at least three seasons and at most 2016 steps; its half; its third) and three penalties.
4. *Pooling* is the one choice: own and shared get weights ``exp(-(e / e_min - 1) / 0.03)`` by their error ``e`` in
   purged, blocked cross-validation over the fitting rows (a training window's targets never meet a held-out target).
5. *Guard.* What looks like a random walk is treated as one. The gain over Repeat in that cross-validation, with the
   pooling weights taken from the other folds, is measured for each channel in the folds in which it moves, and for the
   panel as the median over channels. A channel keeps its model if its own gain is above two standard errors over folds,
   or if that of the panel is and its own is no loss of two; otherwise its forecast is Repeat, or the prior where that
   did better. Medians and votes of its own: no channel decides for the others.
6. *Refit* of everything on all fitting rows.

Source: our own, on the lines of SearchCast (2606.27282) and of 2403.14587; no figure of a test part enters the rule.

Cost: ``O(C K (T log T + L^2 + |lambda| L^3 / 3))`` for ``C`` channels and ``K`` folds; memory ``O(K L^2)``, whatever
the number of windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from manyheads.core.errors import ArgumentError, DataError
from manyheads.forecasting.models.closed_form.hankel import Moments, window_moments
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series.panels import History


@dataclass(frozen=True)
class AutoRule:
    """The constants of the rule, the same for every panel."""

    longest: int = 2016  # steps
    rows_per_step: int = 11  # the longest look-back is at most this share of the rows ...
    seasons: int = 3  # ... unless that is less than three seasons
    divisors: tuple[int, ...] = (1, 2, 3)  # of the longest look-back
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0)  # of the mean eigenvalue of the Gram matrix
    temperature: float = 0.03  # of the pooling weights, in relative error
    folds: int = 4
    few_seasons: int = 30
    guard: float = 2.0  # standard errors
    noisy: float = 1.5  # times the median residual: a channel above it weighs less in the shared ensemble
    still: float = 0.01  # of a channel's mean error of Repeat: below it, the channel stands still in a fold
    steps_per_group: int = 12  # steps of each group that cross-validation looks at


RULE = AutoRule()
HORIZON_BORDERS = (96, 192, 336, 720)  # groups end here and at every asked horizon


@dataclass(frozen=True)
class AutoFit:
    """The fitted map (its look-back is the longest) and what the rule found on the way."""

    map: LinearMap
    look_backs: tuple[int, ...]
    borders: tuple[int, ...]  # ends of the horizon groups
    prior: str  # "last value" or "seasonal naive"
    own_weights: np.ndarray  # (C, groups): weight of the channel's own ensemble; the shared one has the rest
    gain: float | None  # relative gain over Repeat in cross-validation, median over channels; None without folds
    gain_error: float | None  # its standard error
    naive: np.ndarray  # (C,) bool: the channels that the guard gives the naive forecast
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Problem:
    """``sum z z'``, ``sum z r'``, ``sum r^2`` with ``r = y - prior``."""

    gram: np.ndarray  # (L, L)
    cross: np.ndarray  # (L, H)
    energy: np.ndarray  # (H,)
    noise: float  # bound of the rounding error of each entry of the Gram matrix

    def __add__(self, other: _Problem) -> _Problem:
        noise = self.noise + other.noise
        return _Problem(self.gram + other.gram, self.cross + other.cross, self.energy + other.energy, noise)

    def __sub__(self, other: _Problem) -> _Problem:
        noise = self.noise + other.noise
        return _Problem(self.gram - other.gram, self.cross - other.cross, self.energy - other.energy, noise)

    def __mul__(self, factor: float) -> _Problem:
        return _Problem(self.gram * factor, self.cross * factor, self.energy * factor, self.noise * factor)

    def residual(self, weights: np.ndarray) -> float:
        """``sum |r - W' z|^2`` over steps, at least 1e-6 of that of the prior."""
        explained = np.einsum("lh,lh->", weights, 2.0 * self.cross - self.gram @ weights)
        return float(max(self.energy.sum() - explained, 1e-6 * self.energy.sum(), 0.0))


@dataclass(frozen=True)
class _Plan:
    """What the rule makes of one panel before it sees a value."""

    look_backs: tuple[int, ...]
    borders: tuple[int, ...]
    prior: str
    prior_index: np.ndarray  # (H,): the prior of step h is x[prior_index[h]]
    windows: int

    @property
    def look_back(self) -> int:
        return self.look_backs[0]

    @property
    def horizon(self) -> int:
        return self.borders[-1]

    def probed_steps(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps that cross-validation looks at, and the group of each."""
        starts = (0, *self.borders[:-1])
        steps = [
            np.unique(np.linspace(a, b - 1, count).round().astype(int))
            for a, b in zip(starts, self.borders, strict=True)
        ]
        return np.concatenate(steps), np.repeat(np.arange(len(steps)), [len(s) for s in steps])


def fit_auto(history: History, horizons: Sequence[int], *, rule: AutoRule = RULE) -> AutoFit:
    """Fits the rule on all rows of ``history`` for all ``horizons`` at once.

    To keep the validation part out of the fit, cut the history at ``train_end``: the rule needs no validation part.
    Raises :class:`DataError` where the rows are too few for one window, :class:`ArgumentError` for a horizon below 1.
    """
    plan = _plan(history.rows, history.season, horizons, rule)
    warnings: list[str] = []
    guarded, prior_wins = np.zeros((2, history.channels), dtype=bool)
    if _foldable(plan, rule):
        errors, naive = _cross_validate(history, plan, rule)
        own = _own_weights(errors.mean(axis=1), naive[..., 0].mean(axis=1), rule)
        gain, gain_error, guarded = _guard(_mixed_errors(errors, naive[..., 0], rule), naive[..., 0].mean(axis=2), rule)
        prior_wins = naive[..., 1].sum(axis=(1, 2)) < naive[..., 0].sum(axis=(1, 2))
    else:
        own, gain, gain_error = np.full((history.channels, len(plan.borders)), 0.5), None, None
        warnings.append(f"{plan.windows} windows are too few for cross-validation: own and shared weights are averaged")
    if history.channels == 1:
        own = np.ones_like(own)  # both ensembles are the same
    for wins, name in ((False, "last value"), (True, plan.prior)):
        chosen = np.flatnonzero(guarded & (prior_wins == wins))
        if len(chosen):
            whose = "" if len(chosen) == history.channels else f"{', '.join(map(history.name, chosen))}: "
            warnings.append(f"{whose}no gain over naive forecasts was seen in cross-validation: the {name} is repeated")
    prior = _naive_map(plan, prior_wins)
    linear_map = prior if guarded.all() else _refit(history, plan, own, rule)
    if not guarded.all():
        linear_map.weight[guarded] = np.broadcast_to(prior.weight, linear_map.weight.shape)[guarded]
    return AutoFit(
        linear_map, plan.look_backs, plan.borders, plan.prior, own, gain, gain_error, guarded, tuple(warnings)
    )


def _plan(rows: int, season: int, horizons: Sequence[int], rule: AutoRule) -> _Plan:
    if not horizons or min(horizons) < 1:
        raise ArgumentError(f"horizons: found {list(horizons)}, expected at least one, all 1 or more")
    horizon = max(horizons)
    borders = tuple(sorted({*horizons, *(b for b in HORIZON_BORDERS if b < horizon)}))
    longest = min(rule.longest, max(rows // rule.rows_per_step, rule.seasons * season), (rows - horizon) // 2)
    if longest < max(rule.divisors):
        raise DataError(
            f"{rows} rows are too few for a horizon of {horizon}: give at least "
            f"{horizon + 2 * max(rule.divisors)} rows or ask for a shorter horizon"
        )
    look_backs = tuple(dict.fromkeys(longest // divisor for divisor in rule.divisors))
    seasonal = season > 1 and rows < rule.few_seasons * season and season <= look_backs[-1]
    steps = np.arange(horizon)
    index = longest - season + steps % season if seasonal else np.full(horizon, longest - 1)
    prior = "seasonal naive" if seasonal else "last value"
    return _Plan(look_backs, borders, prior, index, rows - longest - horizon + 1)


def _foldable(plan: _Plan, rule: AutoRule) -> bool:
    """Whether each fold leaves as many training windows as the shortest look-back has steps."""
    fold = plan.windows // rule.folds
    return fold >= 1 and plan.windows - fold - 2 * plan.horizon >= plan.look_backs[-1]


def _problem(moments: Moments, plan: _Plan, steps: np.ndarray) -> _Problem:
    look_back, last = plan.look_back, plan.look_back - 1
    products, index = moments.products, plan.prior_index[steps]
    past, future = products[:, :look_back], look_back + steps
    gram = past - past[last] - past[:, [last]] + past[last, last]
    residual = products[:, future] - products[:, index]
    energy = moments.squares[future] - 2.0 * products[index, future] + products[index, index]
    return _Problem(gram, residual - residual[last], energy, 4.0 * moments.noise)


def _ensemble(problem: _Problem, look_backs: Sequence[int], rule: AutoRule, dtype: type) -> np.ndarray:
    """Equal mean of the ridge solutions over look-backs and penalties, ``(L, H)``; short ones weigh only the end.

    Where the series stood still, the Gram matrix holds rounding errors only: the weights are 0, the forecast the prior.
    """
    mean = np.zeros(problem.cross.shape)
    for look_back in look_backs:
        gram, cross = problem.gram[-look_back:, -look_back:], problem.cross[-look_back:].astype(dtype)
        scale = np.trace(gram) / look_back
        if scale * min(rule.penalties) <= look_back * problem.noise:
            continue
        for penalty in rule.penalties:
            ridge = gram.astype(dtype)
            ridge.flat[:: look_back + 1] += penalty * scale
            factor = cho_factor(ridge, lower=True, overwrite_a=True, check_finite=False)
            mean[-look_back:] += cho_solve(factor, cross, check_finite=False)
    return mean / (len(look_backs) * len(rule.penalties))


def _cross_validate(history: History, plan: _Plan, rule: AutoRule) -> tuple[np.ndarray, np.ndarray]:
    """Errors ``(C, K, groups, 2, 2)`` of own and shared ensembles as a quadratic form in their weights, and the errors
    ``(C, K, groups, 2)`` of Repeat and of the prior. The solutions are in single precision, the sums in double."""
    steps, group = plan.probed_steps(rule.steps_per_group)
    edges = np.linspace(0, plan.windows, rule.folds + 1).astype(int)
    folds = list(itertools.pairwise(edges))
    width = plan.horizon - 1

    def problem(channel: int, start: int, stop: int) -> _Problem:
        series = history.values[:, channel]
        return _problem(window_moments(series, plan.look_back, plan.horizon, start, stop), plan, steps)

    def training_parts(channel: int) -> Iterator[_Problem]:
        everything = problem(channel, 0, plan.windows)
        for start, stop in folds:
            yield everything - problem(channel, max(0, start - width), min(plan.windows, stop + width))

    own: list[list[np.ndarray]] = []
    residuals = np.empty((history.channels, rule.folds))
    for channel in range(history.channels):
        own.append([])
        for k, kept in enumerate(training_parts(channel)):
            own[-1].append(_ensemble(kept, plan.look_backs, rule, np.float32).astype(np.float32))
            residuals[channel, k] = kept.residual(own[-1][-1])
    shared = own[0] if history.channels == 1 else _shared_ensembles(training_parts, residuals, plan, rule)

    groups = len(plan.borders)
    errors = np.empty((history.channels, rule.folds, groups, 2, 2))
    naive = np.empty((history.channels, rule.folds, groups, 2))
    members = np.eye(groups)[group] / np.bincount(group)[group][:, None]  # (steps, groups): mean over the group's steps
    last = plan.look_back - 1
    for channel in range(history.channels):
        for k, (start, stop) in enumerate(folds):
            moments = window_moments(history.values[:, channel], plan.look_back, plan.horizon, start, stop)
            held = _problem(moments, plan, steps)
            future = plan.look_back + steps
            moved = moments.squares[future] - 2.0 * moments.products[last, future] + moments.products[last, last]
            naive[channel, k] = np.stack([moved @ members, held.energy @ members], axis=-1) / (stop - start)
            pair = (own[channel][k], shared[k])
            gram = held.gram.astype(np.float32)
            images = [gram @ weights for weights in pair]
            agreement = [np.einsum("lh,lh->h", weights, held.cross) for weights in pair]
            for a in range(2):
                for b in range(2):
                    overlap = np.einsum("lh,lh->h", pair[a], images[b], dtype=np.float64)
                    squared = held.energy - agreement[a] - agreement[b] + overlap
                    errors[channel, k, :, a, b] = squared @ members / (stop - start)
    return errors, naive


def _shared_ensembles(
    training_parts: Callable[[int], Iterator[_Problem]], residuals: np.ndarray, plan: _Plan, rule: AutoRule
) -> list[np.ndarray]:
    """The shared ensemble of each fold. The moments are made a second time: to keep them takes memory per channel."""
    channels, folds = residuals.shape
    pooled: list[_Problem | None] = [None] * folds
    shares = _pooling_shares(residuals, rule)
    for channel in range(channels):
        for k, part in enumerate(training_parts(channel)):
            so_far, weighted = pooled[k], part * shares[channel, k]
            pooled[k] = weighted if so_far is None else so_far + weighted
    return [_ensemble(total, plan.look_backs, rule, np.float32).astype(np.float32) for total in pooled if total]


def _pooling_shares(residuals: np.ndarray, rule: AutoRule) -> np.ndarray:
    """Weights in the shared ensemble, of the shape of ``residuals (C, ...)``: 1 up to ``noisy`` times the median over
    the channels that move, and as the inverse of the residual above it."""
    columns = residuals.reshape(len(residuals), -1).T
    limit = np.array([rule.noisy * np.median(column[column > 0]) if (column > 0).any() else 0.0 for column in columns])
    limits = np.broadcast_to(limit.reshape(residuals.shape[1:]), residuals.shape)
    return np.divide(limits, residuals, out=np.ones(residuals.shape), where=residuals > limits)


def _own_weights(errors: np.ndarray, repeat: np.ndarray, rule: AutoRule) -> np.ndarray:
    """``(C, groups, 2, 2)`` errors and ``(C, groups)`` of Repeat -> ``(C, groups)`` weights of the own ensemble."""
    alone = np.stack([errors[..., 0, 0], errors[..., 1, 1]], axis=-1)
    # below this, an error is rounding of the single-precision solutions
    alone = np.maximum(alone, 1e-6 * repeat[..., None] + np.finfo(float).tiny)
    excess = (alone / alone.min(axis=-1, keepdims=True) - 1.0) / rule.temperature
    weights = np.exp(-np.minimum(excess, 700.0))  # exp(-700) is the smallest there is
    return weights[..., 0] / weights.sum(axis=-1)


def _mixed_errors(errors: np.ndarray, repeat: np.ndarray, rule: AutoRule) -> np.ndarray:
    """``(C, K)``: the error of the mixed ensembles in each fold, with weights from the other folds."""
    mixed = []
    for k in range(errors.shape[1]):
        others = np.delete(errors, k, axis=1).mean(axis=1), np.delete(repeat, k, axis=1).mean(axis=1)
        own = _own_weights(*others, rule)
        mix = np.stack([own, 1.0 - own], axis=-1)
        mixed.append(np.einsum("cga,cgab,cgb->cg", mix, errors[:, k], mix).mean(axis=1))
    return np.stack(mixed, axis=1)


def _guard(mixed: np.ndarray, repeat: np.ndarray, rule: AutoRule) -> tuple[float, float, np.ndarray]:
    """``(C, K)`` errors of the ensembles and of Repeat -> the panel's gain, its standard error, and the channels that
    get the naive forecast."""
    # Repeat has no error to improve on in a fold in which the channel stands still
    moving = repeat > rule.still * repeat.mean(axis=1, keepdims=True)
    ratio = np.divide(mixed, repeat, out=np.ones_like(mixed), where=moving)
    gains = np.where(moving, np.maximum(1.0 - ratio, -1.0), np.nan)
    panel = np.array([np.median(fold[~np.isnan(fold)]) for fold in gains.T if not np.isnan(fold).all()])
    gain, gain_error = _mean_and_error(panel)
    found = [_mean_and_error(channel[~np.isnan(channel)]) for channel in gains]
    wins = np.array([mean >= rule.guard * error for mean, error in found])
    losses = np.array([mean <= -rule.guard * error for mean, error in found])
    keeps = wins | (~losses if gain >= rule.guard * gain_error else False)
    return gain, gain_error, ~keeps & (repeat.mean(axis=1) > 0)


def _mean_and_error(gains: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; no evidence either way from fewer than two folds."""
    if len(gains) < 2:
        return 0.0, np.inf
    return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))


def _refit(history: History, plan: _Plan, own: np.ndarray, rule: AutoRule) -> LinearMap:
    steps = np.arange(plan.horizon)
    group = np.searchsorted(plan.borders, steps, side="right")
    weights = np.zeros((history.channels, plan.look_back, plan.horizon))

    def problem(channel: int) -> _Problem:
        moments = window_moments(history.values[:, channel], plan.look_back, plan.horizon, 0, plan.windows)
        return _problem(moments, plan, steps)

    residuals = np.empty(history.channels)
    for channel in range(history.channels):
        found = problem(channel)
        ensemble = _ensemble(found, plan.look_backs, rule, np.float64)
        residuals[channel] = found.residual(ensemble)
        weights[channel] = own[channel, group] * ensemble
    if history.channels > 1:
        shares = _pooling_shares(residuals, rule)
        pooled = problem(0) * shares[0]
        for channel in range(1, history.channels):
            pooled += problem(channel) * shares[channel]
        weights += (1.0 - own[:, None, group]) * _ensemble(pooled, plan.look_backs, rule, np.float64)
    return _prior_map(plan, weights)


def _prior_map(plan: _Plan, weights: np.ndarray) -> LinearMap:
    """``p + W' (x - x_last)`` as one matrix on the raw look-back."""
    weights[:, -1] -= weights.sum(axis=1)
    weights[:, plan.prior_index, np.arange(plan.horizon)] += 1.0
    return LinearMap(weights, np.zeros(weights.shape[::2]))


def _naive_map(plan: _Plan, prior_wins: np.ndarray) -> LinearMap:
    """The prior of the channels where it wins, and Repeat of the others, as a map; shared where all agree."""
    kinds = prior_wins[:1] if (prior_wins == prior_wins[0]).all() else prior_wins
    weights = np.zeros((len(kinds), plan.look_back, plan.horizon))
    for weight, prior in zip(weights, kinds, strict=True):
        weight[plan.prior_index if prior else plan.look_back - 1, np.arange(plan.horizon)] = 1.0
    return LinearMap(weights, np.zeros((len(kinds), plan.horizon)))
