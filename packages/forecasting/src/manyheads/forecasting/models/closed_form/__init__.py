"""The linear family in closed form: exact ridge solutions and exact errors from the second moments of all windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from manyheads.forecasting.models.closed_form.auto import fit_auto
from manyheads.forecasting.models.closed_form.normal_equations import Form
from manyheads.forecasting.models.closed_form.ridge import fit_ridge, fit_ridges
from manyheads.forecasting.series.panels import FittedModel, History, fit_warning


def fit_family(
    history: History,
    horizons: Sequence[int],
    members: Sequence[Mapping[str, Any]],
    *,
    look_back: int,
) -> list[dict[int, FittedModel]]:
    """Fit one ridge regression for each member (``form``, ``individual``) and horizon.

    Returns the fitted maps by horizon, one dict for each member. Warns by :func:`fit_warning`.
    """
    pairs = [(member["form"], member["individual"]) for member in members]
    fits = {h: fit_ridges(history, h, pairs, look_back=look_back) for h in horizons}
    _warn(message for of_horizon in fits.values() for fit in of_horizon for message in fit.warnings)
    return [{h: fits[h][index].map for h in horizons} for index in range(len(members))]


def fit_chosen(
    history: History, horizons: Sequence[int], *, look_back: int, seed: int = 0, form: Form
) -> dict[int, FittedModel]:
    """Fit a ridge regression whose look-back, sharing of weights and penalty are chosen on the validation part.

    ``look_back`` and ``seed`` are not used: they keep the signature of all models. Warns by :func:`fit_warning`.
    """
    fits = {h: fit_ridge(history, h, form=form, look_back=None, individual=None) for h in horizons}
    _warn(message for fit in fits.values() for message in fit.warnings)
    return {h: fit.map for h, fit in fits.items()}


def fit_auto_maps(
    history: History, horizons: Sequence[int], *, look_back: int, seed: int = 0, train_only: bool = False
) -> dict[int, FittedModel]:
    """Fit ``closed-form-auto`` once for all horizons.

    ``train_only`` leaves the validation rows out. The rule has its own look-backs: ``look_back`` and ``seed`` are not
    used. Warns by :func:`fit_warning`.
    """
    if train_only:
        history = replace(history, values=history.values[: history.train_end])
    fit = fit_auto(history, horizons)
    _warn(fit.warnings)
    return {h: fit.map.head(h) for h in horizons}


def _warn(messages: Iterable[str]) -> None:
    for message in dict.fromkeys(messages):
        fit_warning(message)
