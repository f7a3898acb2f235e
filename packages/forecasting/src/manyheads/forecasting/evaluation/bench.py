"""The benchmark: every set, horizon and model, under one protocol or both.

``honest``: all windows of the test part. ``paper``: the last incomplete batch of windows is dropped, as in the loaders
of the Transformer papers and of Table 2 of 2205.13504; the size of the effect depends on the batch size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from manyheads.core.errors import ArgumentError, DataError
from manyheads.forecasting.datasets.benchmark_sets import history, load_set, standardise
from manyheads.forecasting.datasets.catalogue import datasets
from manyheads.forecasting.models import find_model, fit_models, fitted_together
from manyheads.forecasting.models.closed_form.error import gram_mse_by_step
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series.panels import FittedModel, Panel, collected_warnings
from manyheads.forecasting.training.published import horizons_of, look_back_of, published_mse
from manyheads.forecasting.training.scoring import count_windows, score
from manyheads.lab.data.registry import find, where
from manyheads.lab.domain import load

Protocol = Literal["honest", "paper"]
DEFAULT_MODELS = (
    "repeat",
    "seasonal-naive",
    "drift",
    "window-mean",
    "linear-cf",
    "nlinear-cf",
    "dlinear-cf",
    "rlinear-cf",
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    If one fit serves several horizons, or several models share their moments, the CPU seconds are the share of the row.
    """

    set: str
    horizon: int
    model: str
    protocol: str
    mse: float
    mae: float
    windows: int
    look_back: int
    fit_cpu_s: float
    score_cpu_s: float
    published_mse: float | None
    published_in: str | None


@dataclass(frozen=True)
class BenchResult:
    """The rows, their error by horizon step, panels and fitted models for plots, and the sets left out with reasons."""

    rows: list[Row]
    mse_by_step: dict[tuple[str, int, str, str], np.ndarray]
    panels: dict[str, Panel]
    fitted: dict[tuple[str, int, str], FittedModel]
    left_out: dict[str, str]
    notes: dict[str, list[str]] = field(default_factory=dict)  # by set: faults of the data, warnings of the models


def choose_sets(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Canonical names of the sets to run, and the sets left out with the reason.

    Without names, all sets that are found on this machine. An unknown name raises :class:`UnknownNameError`; a named
    set without a file raises :class:`DataError` when it is loaded.
    """
    if names:
        return list(dict.fromkeys(find(name, datasets).name for name in names)), {}
    found = [dataset.name for dataset in datasets if where(dataset) is not None]
    reason = "not found here: manyheads data list says where it comes from"
    return found, {dataset.name: reason for dataset in datasets if dataset.name not in found}


def run_bench(
    sets: Sequence[str] = (),
    horizons: Sequence[int] = (),
    models: Sequence[str] = DEFAULT_MODELS,
    *,
    protocols: Sequence[Protocol] = ("honest",),
    batch: int = 32,
    look_back: int | None = None,
    seed: int = 0,
    clean: bool = False,
    keep: bool = False,
    advance: Callable[[str], None] = lambda message: None,
) -> BenchResult:
    """Fit and score every model on every set and horizon.

    Args:
        sets: names; all that are found here by default.
        horizons: steps; the paper's by default.
        models: names; see :data:`manyheads.forecasting.models.MODELS`.
        protocols: ``honest``, ``paper`` or both.
        batch: batch size of the protocol ``paper``.
        look_back: steps; the paper's by default.
        seed: seed of the models trained by gradient descent.
        clean: repair faults of the data (the published figures include them).
        keep: keep panels and fitted models for plots.
        advance: called with a message before each fit.

    Raises:
        UnknownNameError: an unknown set or model.
        ArgumentError: a batch, look-back or horizon below 1.
        DataError: no set found, or too few rows for the look-back and horizon.
    """
    groups = fitted_together(models)
    for group in groups:
        # import now, so that no import is timed
        load(find_model(group[0]).fit)
    for label, value in (
        ("batch", batch),
        ("look-back", 1 if look_back is None else look_back),
        *(("horizon", h) for h in horizons),
    ):
        if value < 1:
            raise ArgumentError(f"{label}: found {value}, expected 1 or more")
    chosen, left_out = choose_sets(sets)
    if not chosen:
        raise DataError("no data set is found: set $MANYHEADS_DATA (manyheads data list)")
    result = BenchResult([], {}, {}, {}, left_out)
    for name in chosen:
        panel = load_set(name, clean=clean)
        notes = [*panel.notes] if clean else [f"{note} (left as it is)" for note in panel.notes]
        if keep:
            result.panels[name] = panel
        steps = list(horizons) or list(horizons_of(name))
        begin = len(result.rows)
        for group in groups:
            advance(f"{name} {', '.join(group)}")
            warned: list[str] = []
            length = look_back_of(name, find_model(group[0]).usual_look_back) if look_back is None else look_back
            with collected_warnings(warned):
                _bench_group(result, panel, group, steps, protocols, batch, length, seed, keep)
            notes += [f"{', '.join(group)}: {message}" for message in warned]
        result.rows[begin:] = sorted(result.rows[begin:], key=lambda row: models.index(row.model))
        if notes:
            result.notes[name] = notes
    return result


def _bench_group(
    result: BenchResult,
    panel: Panel,
    group: list[str],
    horizons: list[int],
    protocols: Sequence[Protocol],
    batch: int,
    look_back: int,
    seed: int,
    keep: bool,
) -> None:
    """Fit and score models that are fitted together, for all horizons at once if one fit serves them."""
    values, _ = standardise(panel)
    past = history(panel)
    for steps in [horizons] if find_model(group[0]).joint else [[h] for h in horizons]:
        before = time.process_time()
        fitted = fit_models(group, past, steps, look_back=look_back, seed=seed)
        fit_cpu_s = (time.process_time() - before) / (len(steps) * len(group))
        for horizon in steps:
            models = {name: fitted[name][horizon] for name in group}
            for protocol in protocols:
                drop = batch if protocol == "paper" else None
                _score_group(result, panel, values, models, protocol, drop, fit_cpu_s)
            if keep:
                result.fitted.update({(panel.name, horizon, name): model for name, model in models.items()})


def _score_group(
    result: BenchResult,
    panel: Panel,
    values: np.ndarray,
    models: dict[str, FittedModel],
    protocol: Protocol,
    drop: int | None,
    fit_cpu_s: float,
) -> None:
    """Score models; squared errors of linear maps come from shared moments, all other errors from forecasts."""
    split = panel.split
    assert split is not None
    first, last = split.validation_end, split.test_end
    before = time.process_time()
    maps = {name: model for name, model in models.items() if isinstance(model, LinearMap)}
    exact: dict[str, np.ndarray] = {}
    if maps:
        horizon = next(iter(maps.values())).horizon
        windows = count_windows(first, last, horizon, drop_to_multiple_of=drop)
        exact = dict(
            zip(maps, gram_mse_by_step(list(maps.values()), values, first, last, windows=windows), strict=True)
        )
    shared_cpu_s = (time.process_time() - before) / len(models)
    for name, model in models.items():
        before = time.process_time()
        scored = score(
            model, values, first, last, drop_to_multiple_of=drop, dtype=np.float32, mse_by_step=exact.get(name)
        )
        row = Row(
            panel.name,
            model.horizon,
            name,
            protocol,
            scored.mse,
            scored.mae,
            scored.windows,
            model.look_back,
            fit_cpu_s,
            shared_cpu_s + time.process_time() - before,
            *(published_mse(panel.name, model.horizon, name) or (None, None)),
        )
        result.rows.append(row)
        result.mse_by_step[panel.name, model.horizon, name, protocol] = scored.mse_by_step


def as_table(rows: Sequence[Row], command: str) -> list[dict[str, Any]]:
    """The rows for a CSV file; the last column is the command that made them."""
    written = []
    for row in rows:
        fields = asdict(row) | {"command": command}
        fields |= {name: f"{fields[name]:.6f}" for name in ("mse", "mae")}
        fields |= {name: f"{fields[name]:.3f}" for name in ("fit_cpu_s", "score_cpu_s")}
        written.append(fields)
    return written
