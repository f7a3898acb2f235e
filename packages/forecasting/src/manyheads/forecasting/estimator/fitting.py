"""Fit one panel: standardise, fit the model, replace it by the naive forecast if it cannot be fitted, add intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from manyheads.core.errors import DataError
from manyheads.forecasting.estimator.conformal import (
    PLENTY,
    Intervals,
    absolute_residuals,
    calibration_origins,
    intervals_from,
)
from manyheads.forecasting.models import find_model, fit_model
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.models.naive import Naive, naive_map
from manyheads.forecasting.models.patched import Patched
from manyheads.forecasting.series.panels import (
    FittedModel,
    History,
    Panel,
    Scaler,
    collected_warnings,
    constant_channels,
    power_of_two,
)

# a typical movement below this share of the largest value is lost in the rounding of sums of squares
_OUTLIER = 1e-6
# a forecast may leave the range of the past by so many times its width
_PLAUSIBLE = 10.0


@dataclass(frozen=True)
class Recipe:
    """The settings of a fit; see :class:`manyheads.forecasting.estimator.forecaster.Forecaster`."""

    horizon: int
    model: str
    look_back: int | None
    levels: tuple[float, ...]
    seed: int
    baselines: tuple[str, ...] = ()  # models to compare with on the held-out rows

    @property
    def requested_look_back(self) -> int | None:
        """The requested look-back; None if the model chooses its own or none was requested."""
        return None if find_model(self.model).own_look_back else self.look_back


@dataclass
class FittedPanel:
    """The fitted model of one panel, with the rows that it continues from and its intervals."""

    panel: Panel
    scaler: Scaler
    map: FittedModel  # standardised values in and out
    intervals: Intervals | None
    warnings: tuple[str, ...] = field(default=())
    held_out: Mapping[str, HeldOutError] = field(default_factory=dict)  # by model


@dataclass(frozen=True)
class HeldOutError:
    """Mean errors of standardised values on the calibration windows, by fits on the rows before them."""

    mse: float
    mae: float
    windows: int
    values: int  # windows * horizon * channels

    @classmethod
    def of(cls, residuals_NHC: np.ndarray) -> HeldOutError:
        """From absolute residuals, at least one."""
        mse, mae = float((residuals_NHC**2).mean()), float(residuals_NHC.mean())
        return cls(mse, mae, len(residuals_NHC), residuals_NHC.size)


def fit_panel(panel: Panel, recipe: Recipe) -> FittedPanel:
    """Fit a panel on all rows, with intervals from the residuals of fits on the first rows.

    The naive forecast replaces the model for a constant channel, for a channel with one cell so large that all other
    values vanish beside it, and for a panel that is too short. The warnings name each. No finite input raises.
    """
    outlier = _outlier_channels(panel.values)
    scaler = Scaler.fit(panel.values)
    # for these channels a shift by the mean would round the usual values away; a power of two as scale is exact
    scaler = Scaler(np.where(outlier, 0.0, scaler.mean), np.where(outlier, power_of_two(panel.values), scaler.scale))
    values = scaler.transform(panel.values)
    fit = _fit_rows(values, panel, outlier, recipe)
    notes = [*fit.notes]
    intervals, held_out = None, {}
    if recipe.levels:
        first, last = calibration_origins(panel.rows, recipe.horizon)
        few = last - first < PLENTY * recipe.horizon and find_model(recipe.model).kind != "gradient"
        begins = range(first, last, max(1, math.ceil((last - first) / (4 if few else 1))))
        early = [_fit_rows(values[:begin], panel, outlier, recipe) for begin in begins]
        # skip a naive substitute: its errors say nothing about the model
        models = [one.model if one.short == fit.short else None for one in early]
        residuals = _residuals(models, values, begins)
        intervals = intervals_from(residuals, recipe.levels) if residuals is not None else None
        if residuals is not None and len(residuals) and not fit.short:
            held_out[recipe.model] = HeldOutError.of(residuals)
            for name in recipe.baselines:
                # the same rows and windows for every model
                other = replace(recipe, model=name)
                models = [_fit_rows(values[:begin], panel, outlier, other).model for begin in begins]
                residuals = _residuals(models, values, begins)
                assert residuals is not None
                held_out[name] = HeldOutError.of(residuals)
    if recipe.levels and intervals is None:
        notes.append(
            f"{panel.rows} rows are too few for intervals {recipe.horizon} steps ahead: none are given; give more rows "
            "or a shorter horizon"
        )
    warnings = (*panel.notes, *(f"{panel.name}: {note}" for note in notes))
    return FittedPanel(panel, scaler, fit.model, intervals, warnings, held_out)


def _residuals(models: Sequence[FittedModel | None], values: np.ndarray, begins: range) -> np.ndarray | None:
    """Absolute residuals ``(N, H, C)`` of the calibration windows.

    Model ``k`` was fitted on the rows before ``begins[k]``; it forecasts the windows whose targets begin from there up
    to the next fit. None if there is no model.
    """
    found = [
        absolute_residuals(model, values, begin, min(begin + begins.step, begins.stop))
        for model, begin in zip(models, begins, strict=True)
        if model is not None
    ]
    return np.concatenate(found) if found else None


@dataclass(frozen=True)
class _Fit:
    """A model fitted on the first rows of a panel, and notes for the user."""

    model: FittedModel
    notes: list[str]
    short: bool = False  # too few rows for the model: every channel has the naive forecast


def _fit_rows(values: np.ndarray, panel: Panel, outlier: np.ndarray, recipe: Recipe) -> _Fit:
    """Fit the model on some first rows of a panel, with the naive forecast for what cannot be fitted."""
    rows, horizon = len(values), recipe.horizon
    constant = constant_channels(values)
    outlier = outlier & ~constant
    notes = [
        f"{panel.channels[c]} is constant ({panel.values[0, c]:g} in all {rows} rows): the value is repeated"
        for c in np.flatnonzero(constant)
    ]
    for c in np.flatnonzero(outlier):
        row = int(np.argmax(np.abs(panel.values[:rows, c])))
        notes.append(
            f"{panel.channels[c]} holds {panel.values[row, c]:g} at {panel.stamps[row]}, beside which all else is "
            "nothing: the naive forecast is given; correct the cell"
        )
    columns = np.flatnonzero(~(constant | outlier))
    if not len(columns):
        return _Fit(naive_map(values, panel.season, horizon), notes)
    spec = find_model(recipe.model)
    usual = max(1, min(spec.usual_look_back, (rows - horizon) // 3))
    look_back, train_end = recipe.requested_look_back or usual, rows
    if not spec.joint:
        train_end = min(rows, max(round(rows * 0.8), look_back + horizon))
    names = tuple(panel.channels[c] for c in columns)
    history = History(np.ascontiguousarray(values[:, columns]), train_end, panel.season, refit=True, names=names)
    try:
        with collected_warnings(notes):
            model = fit_model(recipe.model, history, [horizon], look_back=look_back, seed=recipe.seed)[horizon]
    except DataError as error:
        notes.append(f"{', '.join(names)}: the naive forecast is given, for {recipe.model} cannot be fitted: {error}")
        return _Fit(naive_map(values, panel.season, horizon), notes, short=True)
    if isinstance(model, Naive):
        model = model.as_linear_map()
    plausible, kept = _plausible_channels(model, history.values), np.zeros(len(constant), dtype=bool)
    kept[columns] = plausible
    notes += [
        f"{recipe.model} forecasts {panel.channels[c]} more than {_PLAUSIBLE:g} ranges away from its past: the naive "
        "forecast is given"
        for c in columns[~plausible]
    ]
    if kept.all():
        return _Fit(model, notes)
    naive = naive_map(values, panel.season if panel.season <= model.look_back else 1, horizon)
    if isinstance(model, LinearMap):
        return _Fit(_merged(model, columns, kept, naive), notes)
    return _Fit(Patched(model, columns, kept, naive), notes)


def _outlier_channels(values_TC: np.ndarray) -> np.ndarray:
    """Channels whose typical movement is lost beside their largest value in double precision; ``(C,)`` bool."""
    from_median = np.abs(values_TC / 2 - np.median(values_TC, axis=0) / 2)
    usual = np.array([np.median(moved[moved > 0]) if moved.any() else 0.0 for moved in from_median.T])
    return usual < _OUTLIER * from_median.max(axis=0)


def _plausible_channels(model: FittedModel, values_TC: np.ndarray) -> np.ndarray:
    """Channels whose forecasts from 50 windows, the last included, stay near the range of the past; ``(C,)`` bool."""
    lowest, highest = values_TC.min(axis=0), values_TC.max(axis=0)
    room = _PLAUSIBLE * (highest - lowest)
    windows = sliding_window_view(values_TC, model.look_back, axis=0)
    chosen = np.unique(np.linspace(0, len(windows) - 1, 50).round().astype(int))
    forecast = model.forecast(windows[chosen].swapaxes(1, 2))
    near = (forecast >= lowest - room) & (forecast <= highest + room)
    return np.logical_and.reduce(near, axis=(0, 1))


def _merged(model: LinearMap, columns: np.ndarray, kept: np.ndarray, naive: LinearMap) -> LinearMap:
    """The same forecast as :class:`Patched`, as one linear map."""
    weight = np.zeros((len(kept), model.look_back, model.horizon))
    bias, scale_bias = np.zeros((len(kept), model.horizon)), np.zeros((len(kept), model.horizon))
    weight[:, model.look_back - naive.look_back :] = naive.weight
    for index, c in enumerate(columns):
        if kept[c]:
            one = model.channel(index)
            weight[c], bias[c] = one.weight[0], one.bias[0]
            scale_bias[c] = 0.0 if one.scale_bias is None else one.scale_bias[0]
    return LinearMap(weight, bias, scale_bias if model.scale_bias is not None else None)
