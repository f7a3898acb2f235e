"""``closed-form-auto``: one linear forecaster for any panel, by ridge regression in closed form, nothing to tune.

Symbols, for one channel and one window: ``x`` the look-back (``L`` steps), ``y`` the future (``H`` steps), ``x_last``
the last known value, ``p_h`` a naive forecast of step ``h`` (the *prior*). The model is linear in the centred look-back
``z`` and fits the residual ``r`` of the prior:

    z = x - x_last,    r_h = y_h - p_h,    forecast  y_h = p_h + w_h' z.

Ridge regression minimises ``sum |r - W' z|^2 + lambda s |W|^2`` over all windows of the fitting rows. Its solution is

    W(L, lambda) = (G + lambda s I)^-1 B,    G = sum z z',    B = sum z r',    s = tr(G) / L,

where ``s`` is the mean eigenvalue of ``G``, so that ``lambda`` has no unit. An *ensemble* is the mean of ``W`` over
several look-backs and penalties. Each channel takes a weighted mean of two ensembles: its *own* (``G`` and ``B`` of the
channel) and the *shared* one (``G`` and ``B`` summed over all channels).

The rule, the same for every panel:

1. *Horizon groups.* The steps between two requested horizons form a group with its own weight between the two
   ensembles. One fit serves all horizons: a shorter forecast is the beginning of the longest.
2. *Prior.* The last value. With fewer than 30 seasons in the rows, too few to learn a season from, the seasonal naive.
3. *Look-backs and penalties* are averaged, not chosen: three look-backs times three penalties with equal weights. The
   longest look-back is an eleventh of the rows, at least three seasons and at most 2016 steps; the others are its half
   and its third.
4. *Noise weights.* In the shared ensemble, a channel whose own fit leaves more than 1.5 times the median squared
   residual weighs less, by that ratio (weighted least squares): one noisy channel does not spoil the fit of the others.
5. *Pooling* is the one choice. The own and the shared ensemble get weights ``exp(-(e / e_min - 1) / 0.03)`` by their
   error ``e`` in blocked cross-validation over the fitting rows. It is purged: no training window has a target in
   common with a held-out window.
6. *Guard.* A channel that behaves like a random walk gets the naive forecast. The gain over Repeat is measured in the
   same cross-validation, with pooling weights from the other folds: for each channel over the folds in which it moves,
   for the panel as the median over channels. A channel keeps its model if its own gain is above two standard errors
   over folds, or if the gain of the panel is and the channel itself does not lose by two standard errors. Otherwise its
   forecast is Repeat, or the prior if that had the lower error. Medians are used so that no channel decides for the
   others.
7. *Refit* of everything on all fitting rows.

Source: our own, following SearchCast (2606.27282) and 2403.14587. No figure of a test part enters the rule.

Cost: ``O(C K (T log T + L^2 + |lambda| L^3 / 3))`` for ``C`` channels, ``K`` folds, ``T`` rows and ``|lambda|``
penalties; memory ``O(K L^2)``, independent of the number of windows.
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

    longest: int = 2016
    """Steps of the longest look-back, at most."""
    rows_per_step: int = 11
    """The longest look-back is the number of rows divided by this, or ``seasons`` seasons if that is more."""
    seasons: int = 3
    """Seasons in the longest look-back, at least."""
    divisors: tuple[int, ...] = (1, 2, 3)
    """The look-backs are the longest one divided by these."""
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0)
    """``lambda``: multiples of the mean eigenvalue of the Gram matrix."""
    temperature: float = 0.03
    """Temperature of the softmax that gives the pooling weights, in relative error."""
    folds: int = 4
    """Blocks of the cross-validation."""
    few_seasons: int = 30
    """With fewer seasons in the rows, the prior is the seasonal naive."""
    guard: float = 2.0
    """Standard errors that a gain must exceed."""
    noisy: float = 1.5
    """A channel above this multiple of the median residual weighs less in the shared ensemble."""
    still: float = 0.01
    """A channel does not move in a fold if its error of Repeat there is below this share of its mean over folds."""
    steps_per_group: int = 12
    """Horizon steps of each group that cross-validation measures."""


RULE = AutoRule()
HORIZON_BORDERS = (96, 192, 336, 720)  # horizon groups end here and at every requested horizon


@dataclass(frozen=True)
class AutoFit:
    """The fitted linear map and the decisions of the rule. The look-back of the map is the longest one."""

    map: LinearMap
    look_backs: tuple[int, ...]
    borders: tuple[int, ...]  # ends of the horizon groups
    prior: str  # "last value" or "seasonal naive"
    own_weights: np.ndarray  # (C, groups): weight of the own ensemble; the shared one has 1 minus it
    gain: float | None  # relative gain over Repeat in cross-validation, median over channels; None without folds
    gain_error: float | None  # standard error of the gain
    naive: np.ndarray  # (C,) bool: channels to which the guard gives the naive forecast
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Problem:
    """The sums over windows that define one least-squares problem; ``z`` and ``r`` as in the module.

    Problems add and subtract like the sets of windows that they stand for.
    """

    gram: np.ndarray  # (L, L): G = sum z z'
    cross: np.ndarray  # (L, H): B = sum z r'
    energy: np.ndarray  # (H,): sum r^2
    noise: float  # bound of the rounding error of each entry of G

    def __add__(self, other: _Problem) -> _Problem:
        noise = self.noise + other.noise
        return _Problem(self.gram + other.gram, self.cross + other.cross, self.energy + other.energy, noise)

    def __sub__(self, other: _Problem) -> _Problem:
        noise = self.noise + other.noise
        return _Problem(self.gram - other.gram, self.cross - other.cross, self.energy - other.energy, noise)

    def __mul__(self, factor: float) -> _Problem:
        return _Problem(self.gram * factor, self.cross * factor, self.energy * factor, self.noise * factor)

    def residual(self, weights: np.ndarray) -> float:
        """Squared error of the weights ``W (L, H)``, summed over windows and steps; at least 1e-6 of the prior's."""
        # sum |r - W'z|^2 = sum |r|^2 - <W, 2 B - G W>, with <,> the sum of the products of all entries
        explained = np.einsum("lh,lh->", weights, 2.0 * self.cross - self.gram @ weights)
        return float(max(self.energy.sum() - explained, 1e-6 * self.energy.sum(), 0.0))


@dataclass(frozen=True)
class _Plan:
    """The decisions that depend only on the numbers of rows, seasons and horizons, not on a value."""

    look_backs: tuple[int, ...]
    borders: tuple[int, ...]
    prior: str
    prior_index: np.ndarray  # (H,): the prior of step h is p_h = x[prior_index[h]]
    windows: int

    @property
    def look_back(self) -> int:
        return self.look_backs[0]

    @property
    def horizon(self) -> int:
        return self.borders[-1]

    def sampled_steps(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Horizon steps that cross-validation measures, up to ``count`` a group, and the group of each."""
        starts = (0, *self.borders[:-1])
        steps = [
            np.unique(np.linspace(a, b - 1, count).round().astype(int))
            for a, b in zip(starts, self.borders, strict=True)
        ]
        return np.concatenate(steps), np.repeat(np.arange(len(steps)), [len(s) for s in steps])


def fit_auto(history: History, horizons: Sequence[int], *, rule: AutoRule = RULE) -> AutoFit:
    """Fit the rule on all rows of ``history``, for all ``horizons`` at once.

    The rule needs no validation part. To keep the validation rows out of the fit, cut the history at ``train_end``.

    Raises:
        DataError: too few rows for one window.
        ArgumentError: no horizon, or a horizon below 1.
    """
    plan = _plan(history.rows, history.season, horizons, rule)
    warnings: list[str] = []
    guarded, prior_wins = np.zeros((2, history.channels), dtype=bool)
    if _can_cross_validate(plan, rule):
        errors, naive = _cross_validate(history, plan, rule)
        own = _own_weights(errors.mean(axis=1), naive[..., 0].mean(axis=1), rule)
        gain, gain_error, guarded = _guard(_mixed_errors(errors, naive[..., 0], rule), naive[..., 0].mean(axis=2), rule)
        prior_wins = naive[..., 1].sum(axis=(1, 2)) < naive[..., 0].sum(axis=(1, 2))
    else:
        own, gain, gain_error = np.full((history.channels, len(plan.borders)), 0.5), None, None
        warnings.append(f"{plan.windows} windows are too few for cross-validation: own and shared weights are averaged")
    if history.channels == 1:
        # the own and the shared ensemble of a single channel are the same
        own = np.ones_like(own)
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
    # at most half of what the horizon leaves, so that there are at least as many windows as weights a step
    longest = min(rule.longest, max(rows // rule.rows_per_step, rule.seasons * season), (rows - horizon) // 2)
    if longest < max(rule.divisors):
        raise DataError(
            f"{rows} rows are too few for a horizon of {horizon}: give at least "
            f"{horizon + 2 * max(rule.divisors)} rows or ask for a shorter horizon"
        )
    look_backs = tuple(dict.fromkeys(longest // divisor for divisor in rule.divisors))
    seasonal = season > 1 and rows < rule.few_seasons * season and season <= look_backs[-1]
    steps = np.arange(horizon)
    # seasonal naive: step h repeats x[L - season + h mod season]; last value: x[L - 1]
    index = longest - season + steps % season if seasonal else np.full(horizon, longest - 1)
    prior = "seasonal naive" if seasonal else "last value"
    return _Plan(look_backs, borders, prior, index, rows - longest - horizon + 1)


def _can_cross_validate(plan: _Plan, rule: AutoRule) -> bool:
    """Return whether each fold leaves at least as many training windows as the shortest look-back has steps."""
    fold = plan.windows // rule.folds
    return fold >= 1 and plan.windows - fold - 2 * plan.horizon >= plan.look_backs[-1]


def _problem(moments: Moments, plan: _Plan, steps: np.ndarray) -> _Problem:
    """The sums of ``z`` and ``r`` from the sums ``S[i, j] = sum x_i x_j`` of raw values (:mod:`hankel`)."""
    look_back, last = plan.look_back, plan.look_back - 1
    products, index = moments.products, plan.prior_index[steps]
    past, future = products[:, :look_back], look_back + steps
    # G_ij = sum (x_i - x_last)(x_j - x_last) = S_ij - S_last,j - S_i,last + S_last,last
    gram = past - past[last] - past[:, [last]] + past[last, last]
    # sum x_i r_h = S_i,y - S_i,p; then B_ih = sum (x_i - x_last) r_h subtracts the row of x_last
    residual = products[:, future] - products[:, index]
    # sum r_h^2 = sum (y_h - p_h)^2 = S_yy - 2 S_py + S_pp
    energy = moments.squares[future] - 2.0 * products[index, future] + products[index, index]
    # each entry of G is a sum of four products, and so is the bound of its rounding error
    return _Problem(gram, residual - residual[last], energy, 4.0 * moments.noise)


def _ensemble(problem: _Problem, look_backs: Sequence[int], rule: AutoRule, dtype: type) -> np.ndarray:
    """Mean of the ridge solutions over all look-backs and penalties, ``(L, H)``.

    A shorter look-back has weights for the last steps only; the earlier ones count as 0. A series that did not move
    has a Gram matrix of rounding errors: its weights are 0, so that its forecast is the prior.
    """
    mean = np.zeros(problem.cross.shape)
    for look_back in look_backs:
        # the last rows and columns of G and B are the problem of the shorter look-back
        gram, cross = problem.gram[-look_back:, -look_back:], problem.cross[-look_back:].astype(dtype)
        # s = tr(G) / L, the mean eigenvalue
        scale = np.trace(gram) / look_back
        if scale * min(rule.penalties) <= look_back * problem.noise:
            continue
        for penalty in rule.penalties:
            # W = (G + lambda s I)^-1 B by a Cholesky factorisation; the stride L + 1 visits the diagonal
            ridge = gram.astype(dtype)
            ridge.flat[:: look_back + 1] += penalty * scale
            factor = cho_factor(ridge, lower=True, overwrite_a=True, check_finite=False)
            mean[-look_back:] += cho_solve(factor, cross, check_finite=False)
    return mean / (len(look_backs) * len(rule.penalties))


def _cross_validate(history: History, plan: _Plan, rule: AutoRule) -> tuple[np.ndarray, np.ndarray]:
    """Held-out errors of the own and the shared ensemble, and of the two naive forecasts.

    Returns ``errors (C, K, groups, 2, 2)`` and ``naive (C, K, groups, 2)``. For any weights ``m = (m_own, m_shared)``
    with sum 1, the mean squared error of the mixed ensemble is the quadratic form ``m' errors[c, k, g] m``. ``naive``
    holds the errors of Repeat and of the prior. Solutions are in single precision, sums in double.
    """
    steps, group = plan.sampled_steps(rule.steps_per_group)
    edges = np.linspace(0, plan.windows, rule.folds + 1).astype(int)
    folds = list(itertools.pairwise(edges))
    # windows that start less than H rows apart share targets
    width = plan.horizon - 1

    def problem(channel: int, start: int, stop: int) -> _Problem:
        series = history.values[:, channel]
        return _problem(window_moments(series, plan.look_back, plan.horizon, start, stop), plan, steps)

    # the training sums of a fold are those of all windows minus those of the fold and of its purged neighbours
    def training_parts(channel: int) -> Iterator[_Problem]:
        everything = problem(channel, 0, plan.windows)
        for start, stop in folds:
            yield everything - problem(channel, max(0, start - width), min(plan.windows, stop + width))

    own: list[list[np.ndarray]] = []
    residuals = np.empty((history.channels, rule.folds))
    for channel in range(history.channels):
        own.append([])
        for k, training in enumerate(training_parts(channel)):
            own[-1].append(_ensemble(training, plan.look_backs, rule, np.float32).astype(np.float32))
            residuals[channel, k] = training.residual(own[-1][-1])
    shared = own[0] if history.channels == 1 else _shared_ensembles(training_parts, residuals, plan, rule)

    groups = len(plan.borders)
    errors = np.empty((history.channels, rule.folds, groups, 2, 2))
    naive = np.empty((history.channels, rule.folds, groups, 2))
    # (steps, groups): a product with it takes the mean over the steps of each group
    members = np.eye(groups)[group] / np.bincount(group)[group][:, None]
    last = plan.look_back - 1
    for channel in range(history.channels):
        for k, (start, stop) in enumerate(folds):
            moments = window_moments(history.values[:, channel], plan.look_back, plan.horizon, start, stop)
            held_out = _problem(moments, plan, steps)
            future = plan.look_back + steps
            # error of Repeat: sum (y_h - x_last)^2
            moved = moments.squares[future] - 2.0 * moments.products[last, future] + moments.products[last, last]
            # error of the prior: sum r_h^2
            naive[channel, k] = np.stack([moved @ members, held_out.energy @ members], axis=-1) / (stop - start)
            pair = (own[channel][k], shared[k])
            gram = held_out.gram.astype(np.float32)
            # G W_a and w_a' b for each of the two ensembles and each step
            images = [gram @ weights for weights in pair]
            agreement = [np.einsum("lh,lh->h", weights, held_out.cross) for weights in pair]
            # sum (r - w_a'z)(r - w_b'z) = sum r^2 - w_a'b - w_b'b + w_a'G w_b
            for a in range(2):
                for b in range(2):
                    overlap = np.einsum("lh,lh->h", pair[a], images[b], dtype=np.float64)
                    squared = held_out.energy - agreement[a] - agreement[b] + overlap
                    errors[channel, k, :, a, b] = squared @ members / (stop - start)
    return errors, naive


def _shared_ensembles(
    training_parts: Callable[[int], Iterator[_Problem]], residuals: np.ndarray, plan: _Plan, rule: AutoRule
) -> list[np.ndarray]:
    """The shared ensemble of each fold, from the weighted sums ``sum_c share_c G_c`` and ``sum_c share_c B_c``.

    The moments are computed a second time; keeping them would take ``O(L^2)`` memory for each channel.
    """
    channels, folds = residuals.shape
    pooled: list[_Problem | None] = [None] * folds
    shares = _pooling_shares(residuals, rule)
    for channel in range(channels):
        for k, part in enumerate(training_parts(channel)):
            so_far, weighted = pooled[k], part * shares[channel, k]
            pooled[k] = weighted if so_far is None else so_far + weighted
    return [_ensemble(total, plan.look_backs, rule, np.float32).astype(np.float32) for total in pooled if total]


def _pooling_shares(residuals: np.ndarray, rule: AutoRule) -> np.ndarray:
    """Weights of the channels in the shared ensemble, of the shape of ``residuals (C, ...)``.

    share_c = min(1, noisy * median(residual) / residual_c),    median over the channels that move
    """
    columns = residuals.reshape(len(residuals), -1).T
    limit = np.array([rule.noisy * np.median(column[column > 0]) if (column > 0).any() else 0.0 for column in columns])
    limits = np.broadcast_to(limit.reshape(residuals.shape[1:]), residuals.shape)
    return np.divide(limits, residuals, out=np.ones(residuals.shape), where=residuals > limits)


def _own_weights(errors: np.ndarray, repeat: np.ndarray, rule: AutoRule) -> np.ndarray:
    """Pooling weights ``(C, groups)`` of the own ensemble.

    With ``e`` the error of an ensemble alone, a softmax of the relative excess over the better one:
    ``exp(-(e / e_min - 1) / temperature)``, divided by the sum over the two.

    Args:
        errors: ``(C, groups, 2, 2)``, the quadratic form of :func:`_cross_validate`.
        repeat: ``(C, groups)``, the errors of Repeat.
    """
    # m = (1, 0) and m = (0, 1) pick the diagonal of the quadratic form
    alone = np.stack([errors[..., 0, 0], errors[..., 1, 1]], axis=-1)
    # a smaller error is rounding of the single-precision solutions
    alone = np.maximum(alone, 1e-6 * repeat[..., None] + np.finfo(float).tiny)
    excess = (alone / alone.min(axis=-1, keepdims=True) - 1.0) / rule.temperature
    # exp(-700) is close to the smallest number in double precision
    weights = np.exp(-np.minimum(excess, 700.0))
    return weights[..., 0] / weights.sum(axis=-1)


def _mixed_errors(errors: np.ndarray, repeat: np.ndarray, rule: AutoRule) -> np.ndarray:
    """Error of the mixed ensembles in each fold, ``(C, K)``, with pooling weights from the other folds only."""
    mixed = []
    for k in range(errors.shape[1]):
        others = np.delete(errors, k, axis=1).mean(axis=1), np.delete(repeat, k, axis=1).mean(axis=1)
        own = _own_weights(*others, rule)
        # m' errors m with m = (own, 1 - own), mean over the groups
        mix = np.stack([own, 1.0 - own], axis=-1)
        mixed.append(np.einsum("cga,cgab,cgb->cg", mix, errors[:, k], mix).mean(axis=1))
    return np.stack(mixed, axis=1)


def _guard(mixed: np.ndarray, repeat: np.ndarray, rule: AutoRule) -> tuple[float, float, np.ndarray]:
    """Gain of the panel over Repeat, its standard error, and the channels ``(C,)`` that get the naive forecast.

    Args:
        mixed: ``(C, K)``, errors of the mixed ensembles.
        repeat: ``(C, K)``, errors of Repeat.
    """
    # if a channel does not move in a fold, Repeat has no error there to improve on: leave the fold out
    moving = repeat > rule.still * repeat.mean(axis=1, keepdims=True)
    ratio = np.divide(mixed, repeat, out=np.ones_like(mixed), where=moving)
    # relative gain 1 - e / e_repeat, cut at -1 so that one bad fold does not decide
    gains = np.where(moving, np.maximum(1.0 - ratio, -1.0), np.nan)
    # gain of the panel in each fold: the median over its moving channels
    panel = np.array([np.median(fold[~np.isnan(fold)]) for fold in gains.T if not np.isnan(fold).all()])
    gain, gain_error = _mean_and_error(panel)
    found = [_mean_and_error(channel[~np.isnan(channel)]) for channel in gains]
    wins = np.array([mean >= rule.guard * error for mean, error in found])
    losses = np.array([mean <= -rule.guard * error for mean, error in found])
    # a channel keeps its model by its own gain, or by that of the panel unless it clearly loses
    keeps = wins | (~losses if gain >= rule.guard * gain_error else False)
    return gain, gain_error, ~keeps & (repeat.mean(axis=1) > 0)


def _mean_and_error(gains: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error ``sd / sqrt(n)``; ``0, inf`` (no evidence) for fewer than two folds."""
    if len(gains) < 2:
        return 0.0, np.inf
    return float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))


def _refit(history: History, plan: _Plan, own: np.ndarray, rule: AutoRule) -> LinearMap:
    """``W_c = own_c W_own + (1 - own_c) W_shared`` from all windows, in double precision, as one linear map."""
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
    """``p + W' (x - x_last)`` as one matrix on the raw look-back ``x``; changes ``weights (C, L, H)`` in place."""
    # W'(x - x_last 1) = W'x - (sum_l W_l) x_last: subtract the sum from the weight of the last step
    weights[:, -1] -= weights.sum(axis=1)
    # p_h = x[prior_index[h]]: add 1 to its weight
    weights[:, plan.prior_index, np.arange(plan.horizon)] += 1.0
    return LinearMap(weights, np.zeros(weights.shape[::2]))


def _naive_map(plan: _Plan, prior_wins: np.ndarray) -> LinearMap:
    """The naive forecasts as a map: the prior for the channels where it wins, Repeat for the others.

    One set of weights is shared if all channels agree.
    """
    kinds = prior_wins[:1] if (prior_wins == prior_wins[0]).all() else prior_wins
    weights = np.zeros((len(kinds), plan.look_back, plan.horizon))
    for weight, prior in zip(weights, kinds, strict=True):
        weight[plan.prior_index if prior else plan.look_back - 1, np.arange(plan.horizon)] = 1.0
    return LinearMap(weights, np.zeros((len(kinds), plan.horizon)))
