"""Closed forms of the linear family: exact solutions, and exact errors, from the second moments of all windows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from manyheads.forecasting.closed_form.auto import fit_auto
from manyheads.forecasting.closed_form.normal_equations import Form
from manyheads.forecasting.closed_form.ridge import fit_ridge
from manyheads.forecasting.series import FittedModel, FitWarning, History


def fit_family(
    history: History,
    horizons: Sequence[int],
    *,
    look_back: int,
    seed: int = 0,
    form: Form,
    individual: bool,
) -> dict[int, FittedModel]:
    """One ridge regression a horizon; ``seed`` is not used, nothing here is random. Warns with :class:`FitWarning`."""
    fits = {h: fit_ridge(history, h, form=form, look_back=look_back, individual=individual) for h in horizons}
    _warn(message for fit in fits.values() for message in fit.warnings)
    return {h: fit.map for h, fit in fits.items()}


def fit_auto_maps(
    history: History, horizons: Sequence[int], *, look_back: int, seed: int = 0, train_only: bool = False
) -> dict[int, FittedModel]:
    """``closed-form-auto`` for all horizons at once; it takes its own look-backs, so that ``look_back`` is not used.

    Warns with :class:`FitWarning`.
    """
    if train_only:
        history = History(history.values[: history.train_end], history.train_end, history.season)
    fit = fit_auto(history, horizons)
    _warn(fit.warnings)
    return {h: fit.map.head(h) for h in horizons}


def _warn(messages: Iterable[str]) -> None:
    for message in dict.fromkeys(messages):
        warnings.warn(message, FitWarning, stacklevel=3)
