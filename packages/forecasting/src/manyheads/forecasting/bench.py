"""The benchmark: every set, horizon and model under one protocol, or under both side by side.

``honest``: all windows of the test part. ``paper``: the last incomplete batch of windows is dropped, as the loaders of
the Transformer papers (and of Table 2 of 2205.13504) did; the size of the effect depends on the batch size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from manyheads.core.errors import ArgumentError, DataError
from manyheads.forecasting.catalogue import datasets
from manyheads.forecasting.closed_form.error import gram_mse
from manyheads.forecasting.data import history, load_set, standardise
from manyheads.forecasting.models import MODELS, find_model, fit_model
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.published import horizons_of, look_back_of, published_mse
from manyheads.forecasting.series import FittedModel, Panel, collected_warnings
from manyheads.forecasting.windows import count_windows, score
from manyheads.lab.data import find, where
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
    """One line of the table. ``fit_cpu_s`` of a model that serves all horizons with one fit is its share of it."""

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
    """All rows; the error by horizon step of each; one forecast a set to look at; what was left out and why."""

    rows: list[Row]
    mse_by_step: dict[tuple[str, int, str, str], np.ndarray]
    panels: dict[str, Panel]
    fitted: dict[tuple[str, int, str], FittedModel]
    left_out: dict[str, str]
    notes: dict[str, list[str]] = field(default_factory=dict)  # by set: oddities of the data, warnings of the models


def choose_sets(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Canonical names of the sets to run, and those left out with the reason.

    Without names: all that are found here. A set that is asked for by name and is not found raises.
    """
    if names:
        return list(dict.fromkeys(find(name, datasets).name for name in names)), {}
    found = [dataset.name for dataset in datasets if where(dataset) is not None]
    mend = "not found here: manyheads data list says where it comes from"
    return found, {dataset.name: mend for dataset in datasets if dataset.name not in found}


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
    """Fits and scores every model on every set and horizon.

    ``horizons`` and ``look_back`` default to the paper's, per set. ``clean`` mends what is odd in the data
    (the published figures include it); ``keep`` keeps panels and fitted models for drawing.
    Raises :class:`UnknownNameError`, :class:`ArgumentError` and :class:`DataError`.
    """
    for name in models:
        load(find_model(name).fit)  # now, so that no import is timed
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
        length = look_back_of(name) if look_back is None else look_back
        for model in models:
            advance(f"{name} {model}")
            warned: list[str] = []
            with collected_warnings(warned):
                _bench_model(result, panel, model, steps, protocols, batch, length, seed, keep)
            notes += [f"{model}: {message}" for message in warned]
        if notes:
            result.notes[name] = notes
    return result


def _bench_model(
    result: BenchResult,
    panel: Panel,
    model: str,
    horizons: list[int],
    protocols: Sequence[Protocol],
    batch: int,
    look_back: int,
    seed: int,
    keep: bool,
) -> None:
    values, _ = standardise(panel)
    past = history(panel)
    split = panel.split
    assert split is not None
    fits: list[tuple[list[int], dict[int, FittedModel], float]] = []
    for group in [horizons] if MODELS[model].joint else [[h] for h in horizons]:
        before = time.process_time()
        fitted = fit_model(model, past, group, look_back=look_back, seed=seed)
        fits.append((group, fitted, (time.process_time() - before) / len(group)))
    for group, fitted, fit_cpu_s in fits:
        for horizon in group:
            if keep:
                result.fitted[panel.name, horizon, model] = fitted[horizon]
            for protocol in protocols:
                drop = batch if protocol == "paper" else None
                before = time.process_time()
                scored = score(
                    fitted[horizon],
                    values,
                    split.validation_end,
                    split.test_end,
                    drop_to_multiple_of=drop,
                    dtype=np.float32,
                )
                exact = _exact_mse(fitted[horizon], values, split.validation_end, split.test_end, drop)
                published = published_mse(panel.name, horizon, model)
                row = Row(
                    panel.name,
                    horizon,
                    model,
                    protocol,
                    scored.mse if exact is None else exact,
                    scored.mae,
                    scored.windows,
                    fitted[horizon].look_back,
                    fit_cpu_s,
                    time.process_time() - before,
                    *(published or (None, None)),
                )
                result.rows.append(row)
                result.mse_by_step[panel.name, horizon, model, protocol] = scored.mse_by_step


def _exact_mse(model: FittedModel, values: np.ndarray, first: int, last: int, drop: int | None) -> float | None:
    """From the moments of the windows, in double precision, where the model is linear."""
    if not isinstance(model, LinearMap):
        return None
    windows = count_windows(first, last, model.horizon, drop_to_multiple_of=drop)
    return gram_mse(model, values, first, last, windows=windows)


def as_table(rows: Sequence[Row], command: str) -> list[dict[str, Any]]:
    """The rows for a CSV file, with the command that made them in the last column."""
    written = []
    for row in rows:
        fields = asdict(row) | {"command": command}
        fields |= {name: f"{fields[name]:.6f}" for name in ("mse", "mae")}
        fields |= {name: f"{fields[name]:.3f}" for name in ("fit_cpu_s", "score_cpu_s")}
        written.append(fields)
    return written
