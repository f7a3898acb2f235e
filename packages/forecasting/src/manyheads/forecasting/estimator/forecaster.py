"""The estimator: ``Forecaster(horizon=24).fit(frame).predict()`` returns forecasts with intervals in original units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from manyheads.core.errors import ArgumentError, CheckpointError, DataError, ManyheadsError
from manyheads.forecasting.estimator.conformal import Intervals, check_levels
from manyheads.forecasting.estimator.continuation import continuations, fallen_below_zero
from manyheads.forecasting.estimator.fitting import FittedPanel, Recipe, fit_panel
from manyheads.forecasting.models import find_model
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.models.stored import restored_model, stored_model
from manyheads.forecasting.series.cells import listed
from manyheads.forecasting.series.frames import Reading, Table, read_panels
from manyheads.forecasting.series.frequencies import axis, frequency, future_stamps
from manyheads.forecasting.series.panels import Panel, Scaler, fit_warning
from manyheads.forecasting.series.stamps import zone_name
from manyheads.lab.data.fields import from_json
from manyheads.lab.data.storage import load_arrays, save_tensors

KIND = "forecaster"
FORMAT = 1
BASELINES = ("closed-form-auto", "seasonal-naive")  # a model trained by gradient descent is compared with these


@dataclass(frozen=True)
class _Stored:
    """The description of one panel in the header of a file."""

    name: str
    channels: tuple[str, ...]
    season: int
    last: str
    zone: str | None
    unit: Literal["s", "ms", "us", "ns"]
    freq: str
    levels: tuple[float, ...]
    windows: int
    warnings: tuple[str, ...]
    model: dict[str, Any] | None = None  # the JSON of stored_model; None for a linear map

    def check(self, arrays: Mapping[str, np.ndarray], horizon: int, look_back: int) -> None:
        """Raise :class:`ValueError` for wrong shapes or types, and for numbers that are not finite."""
        channels = len(self.channels)
        if not channels or len(set(self.channels)) < channels or self.season < 1:
            raise ValueError(f"channels {self.channels}, season {self.season}")
        shapes: dict[str, tuple[int, ...]] = {
            "mean": (channels,),
            "scale": (channels,),
            "tail": (max(look_back, len(arrays["tail"])), channels),
            "half_widths": (len(self.levels), horizon, channels),
            "coverage": (len(self.levels), horizon),
        }
        for name, array in arrays.items():
            if array.shape != shapes[name] or array.dtype != np.float64:
                raise ValueError(f"{name}: {array.dtype} of shape {array.shape}, expected float64 of {shapes[name]}")
            if name != "coverage" and not np.isfinite(array).all():
                raise ValueError(f"{name}: a number that is not finite")
        if not (arrays["scale"] > 0).all():
            raise ValueError("scale: a scale of 0")
        if self.levels and (arrays["half_widths"] < 0).any():
            raise ValueError("half_widths: a width below 0")


class Forecaster:
    """Fit one model for each panel of series and forecast the next rows, with prediction intervals.

    Args:
        horizon: steps to forecast.
        model: a name of ``manyheads forecasting models``; the default needs no tuning.
        look_back: past steps that the model uses. By default 336 (96 for most networks), or fewer for a short series;
            ``closed-form-auto`` and the ``-chosen-cf`` models choose their own.
        levels: coverages of the prediction intervals.
        reading: how tables are read: column names, frequency, season, missing values.
        seed: of the models trained by gradient descent.

    Raises:
        ArgumentError: a horizon below 1, a level outside (0, 1). UnknownNameError: an unknown model.
    """

    def __init__(
        self,
        horizon: int,
        *,
        model: str = "closed-form-auto",
        look_back: int | None = None,
        levels: Sequence[float] = (0.8, 0.95),
        reading: Reading | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("horizon", horizon), ("look_back", 1 if look_back is None else look_back)):
            if value < 1:
                raise ArgumentError(f"{name}: found {value}, expected 1 or more")
        find_model(model)
        self.horizon, self.model, self.look_back, self.seed = horizon, model, look_back, seed
        self.levels = check_levels(levels)
        self.reading = reading or Reading()
        self.panels: list[FittedPanel] = []

    def fit(self, data: Table) -> Forecaster:
        """Fit on all rows; a model trained by gradient descent holds the last fifth out for early stopping.

        A constant series, and one with too few rows, gets the naive forecast. :attr:`warnings` names these; outside of
        :func:`manyheads.forecasting.series.panels.collected_warnings` each is also a :class:`FitWarning`. A model
        trained by gradient descent that has a higher error on held-out rows than ``closed-form-auto`` or
        ``seasonal-naive`` warns too (:meth:`held_out_errors`).

        Raises :class:`DataError` for bad tables, and if every series is too short for the requested ``look_back``.
        """
        panels = self._as_panels(data)
        recipe = self._recipe()
        steps = recipe.requested_look_back
        longest = max(panels, key=lambda panel: panel.rows, default=None)
        if steps is not None and longest is not None and longest.rows < steps + self.horizon:
            raise DataError(
                f"{longest.name} has {longest.rows} rows, fewer than look-back + horizon = {steps} + {self.horizon}: "
                "give more rows, a shorter look-back or a shorter horizon"
            )
        if find_model(self.model).kind == "gradient":
            recipe = replace(recipe, baselines=BASELINES)
        self.panels = [fit_panel(panel, recipe) for panel in panels]
        for warning in self.warnings:
            fit_warning(warning)
        errors = self.held_out_errors()
        if len(errors) and errors["mse"].idxmin() != self.model:
            fit_warning(comparison(errors))
        return self

    def predict(
        self,
        horizon: int | None = None,
        *,
        data: Table | None = None,
        reading: Reading | None = None,
    ) -> pd.DataFrame:
        """Forecast the next rows: ``unique_id, ds, y_hat, lo-80, hi-80, …`` in original units.

        Args:
            horizon: steps; the fitted horizon or fewer.
            data: newer rows of the same series, to continue from without another fit. They may hold all series or
                some, in any order, each with at least as many rows as the look-back of its model.
            reading: options for reading ``data``; by default those of the fit.

        Raises :class:`DataError` if ``data`` holds other series, another frequency, or too few rows.
        """
        fitted = self._fitted()
        steps = self.horizon if horizon is None else horizon
        if not 1 <= steps <= self.horizon:
            raise ArgumentError(f"horizon: found {steps}, expected 1 to the fitted {self.horizon}")
        if data is None:
            continued = [(part, part.panel, np.arange(len(part.panel.channels))) for part in fitted]
        else:
            freqs = [frequency(part.panel) for part in fitted]
            newer = self._as_panels(data, reading, usual_freq=max(freqs, key=freqs.count))
            continued = continuations(fitted, newer, self.model)
            for note in dict.fromkeys(note for _, panel, _ in continued for note in panel.notes):
                fit_warning(note)
        forecasts = pd.concat([self._forecast(*one, steps) for one in continued], ignore_index=True)
        for note in fallen_below_zero(forecasts, fitted):
            fit_warning(note)
        order = {name: place for place, name in enumerate(c for part in fitted for c in part.panel.channels)}
        by_fit = forecasts["unique_id"].map(order).argsort(kind="stable")
        return forecasts.iloc[by_fit].reset_index(drop=True)

    def cross_validation(self, data: Table, *, windows: int = 10, step: int | None = None) -> pd.DataFrame:
        """Backtest from past origins (rolling origin): ``unique_id, ds, cutoff, y, y_hat, lo-80, hi-80, …``.

        The model is fitted once, on the rows before the first origin.

        Args:
            data: the table.
            windows: number of origins.
            step: rows between two origins; the horizon by default.

        A shorter series has as many of the last windows as fit, or is left out; a :class:`FitWarning` names it.
        Raises :class:`DataError` if no series has a window.
        """
        step = self.horizon if step is None else step
        if windows < 1 or step < 1:
            raise ArgumentError(f"windows and step: found {windows} and {step}, expected 1 or more")
        frames = []
        panels = self._as_panels(data)
        for panel in panels:
            # at least a horizon and two rows are left to fit on
            fitting = min(windows, (panel.rows - 2 * self.horizon - 2) // step + 1)
            if fitting < windows:
                fit_warning(
                    f"{panel.name} has {panel.rows} rows, enough for {max(fitting, 0)} of {windows} windows of "
                    f"{self.horizon} steps, {step} rows apart: only these are forecast ({listed(panel.channels)})"
                )
            if fitting < 1:
                continue
            first = panel.rows - self.horizon - (fitting - 1) * step
            part = fit_panel(_first_rows(panel, first), self._recipe())
            for warning in part.warnings:
                fit_warning(warning)
            for origin in range(first, panel.rows - self.horizon + 1, step):
                past = _first_rows(panel, origin)
                frame = self._forecast(part, past, np.arange(len(panel.channels)), self.horizon)
                actual = panel.values[origin : origin + self.horizon]
                frame.insert(2, "cutoff", past.stamps[-1])
                frame.insert(3, "y", actual.T.reshape(-1))
                frames.append(frame)
        if not frames:
            longest = max(panels, key=lambda panel: panel.rows)
            raise DataError(
                f"{longest.name}: the longest series has {longest.rows} rows, too few for one window of {self.horizon} "
                f"steps: give {2 * self.horizon + 2} rows or a shorter horizon"
            )
        return pd.concat(frames, ignore_index=True)

    def coverage(self) -> pd.DataFrame:
        """Measured coverage of the prediction intervals: ``panel, level, step, coverage``."""
        rows = [
            (part.panel.name, level, step + 1, part.intervals.coverage[index, step])
            for part in self._fitted()
            if part.intervals is not None
            for index, level in enumerate(part.intervals.levels)
            for step in range(part.intervals.coverage.shape[1])
        ]
        return pd.DataFrame(rows, columns=["panel", "level", "step", "coverage"])

    def held_out_errors(self) -> pd.DataFrame:
        """Held-out errors by model, with the columns ``mse, mae, windows``; the fitted model is the first row.

        The errors are those of the calibration windows, the last fifth of the rows or a little more, of standardised
        values and over all series. Every model was fitted on the rows before these windows. A model trained by
        gradient descent stands beside ``closed-form-auto`` and ``seasonal-naive``, any other model stands alone. The
        frame is empty without ``levels``, with too few rows, and after :meth:`load`.
        """
        rows = []
        fitted = [part.held_out for part in self._fitted() if part.held_out]
        for name in fitted[0] if fitted else ():
            parts = [held_out[name] for held_out in fitted]
            share = np.array([part.values for part in parts]) / sum(part.values for part in parts)
            mse, mae = (float(share @ [getattr(part, kind) for part in parts]) for kind in ("mse", "mae"))
            rows.append((name, mse, mae, sum(part.windows for part in parts)))
        return pd.DataFrame(rows, columns=["model", "mse", "mae", "windows"]).set_index("model")

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of the fit, each once; they are saved with the forecaster."""
        return tuple(warning for part in self.panels for warning in part.warnings)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with a JSON header and a digest, atomically; nothing is pickled.

        Raises :class:`ArgumentError` for a model that cannot be stored.
        """
        arrays: dict[str, np.ndarray] = {}
        described = []
        for index, part in enumerate(self._fitted()):
            try:
                model, description = stored_model(part.map)
            except ArgumentError as error:
                raise ArgumentError(
                    f"save: the model {self.model!r}: {error}: keep this Forecaster in memory"
                ) from error
            plain = description == {"kind": LinearMap.KIND}
            tail = part.panel.values[-max(part.map.look_back, 2 * part.panel.season) :]
            named = {
                "mean": part.scaler.mean,
                "scale": part.scaler.scale,
                "tail": tail,
                "half_widths": None if part.intervals is None else part.intervals.half_widths,
                "coverage": None if part.intervals is None else part.intervals.coverage,
            }
            kept = {key: np.ascontiguousarray(value) for key, value in named.items() if value is not None}
            # a linear map is stored in the format of the first release, which can still read it
            kept |= {key if plain else f"model.{key}": np.ascontiguousarray(value) for key, value in model.items()}
            arrays |= {f"{index}.{key}": value for key, value in kept.items()}
            stamps = part.panel.stamps
            described.append(
                {
                    "name": part.panel.name,
                    "channels": part.panel.channels,
                    "season": part.panel.season,
                    "last": str(stamps[-1].tz_localize(None) if stamps.tz is None else stamps[-1].tz_convert("UTC")),
                    "zone": zone_name(stamps.tz),
                    "unit": stamps.unit,
                    "freq": frequency(part.panel),
                    "levels": part.intervals.levels if part.intervals else (),
                    "windows": part.intervals.windows if part.intervals else 0,
                    "warnings": part.warnings,
                    **({} if plain else {"model": description}),
                }
            )
        settings = {name: getattr(self, name) for name in ("horizon", "model", "look_back", "levels", "seed")}
        header = {"format": FORMAT, **settings, "reading": asdict(self.reading), "panels": described}
        save_tensors(path, arrays, header, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> Forecaster:
        """Read a file of :meth:`save`. Raises :class:`CheckpointError` for any other file."""
        fix = "fit again, or name a file that 'manyheads forecasting fit' or Forecaster.save wrote"
        arrays, header = load_arrays(path, kind=KIND, fix=fix)
        if header.get("format") != FORMAT:
            raise CheckpointError(f"{path}: found format {header.get('format')}, this version reads {FORMAT}: {fix}")
        try:
            return cls._restored(header, arrays)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
            OverflowError,
            RuntimeError,
            ManyheadsError,
        ) as error:
            message = " ".join(str(error).split())[:120] or type(error).__name__
            raise CheckpointError(
                f"{path}: its arrays and its description do not fit each other ({message}): {fix}"
            ) from error

    @classmethod
    def _restored(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Forecaster:
        settings = {name: header[name] for name in ("model", "look_back", "levels", "seed")}
        made = cls(header["horizon"], reading=from_json(Reading, header["reading"]), **settings)
        for index, described in enumerate(header["panels"]):
            part = {k.split(".", 1)[1]: v for k, v in arrays.items() if k.split(".", 1)[0] == str(index)}
            stored = from_json(_Stored, described, place=f"panels[{index}]")
            names = ("weight", "bias", "scale_bias")
            if stored.model is None:
                arrays_of_model, description = {n: part.pop(n) for n in names if n in part}, {"kind": LinearMap.KIND}
            else:
                found = [name for name in part if name.startswith("model.")]
                arrays_of_model, description = {n.removeprefix("model."): part.pop(n) for n in found}, stored.model
            model = restored_model(arrays_of_model, description, made.horizon, len(stored.channels), len(part["tail"]))
            stored.check(part, made.horizon, model.look_back)
            tail = part["tail"]
            last: Any = pd.Timestamp(stored.last)
            last = last if stored.zone is None else last.tz_convert(stored.zone)
            stamps = axis(stored.freq, end=last, periods=len(tail)).as_unit(stored.unit)
            panel = Panel(tail, stored.channels, stamps, stored.season, name=stored.name, freq=stored.freq)
            levels = check_levels(stored.levels)
            intervals = Intervals(levels, part["half_widths"], part["coverage"], stored.windows) if levels else None
            scaler = Scaler(part["mean"], part["scale"])
            made.panels.append(FittedPanel(panel, scaler, model, intervals, stored.warnings))
        return made

    def _as_panels(self, data: Table, reading: Reading | None = None, usual_freq: str | None = None) -> list[Panel]:
        if isinstance(data, Panel):
            data = [data]
        if isinstance(data, list | tuple):
            other = next((part for part in data if not isinstance(part, Panel)), None)
            if other is not None or not data:
                found = "no panels" if other is None else type(data).__name__
                raise DataError(f"the table: found {found}, expected a table: give a DataFrame")
            counts = Counter(name for panel in data for name in panel.channels)
            twice = next((name for name, count in counts.items() if count > 1), None)
            if twice is not None:
                raise DataError(f"the table: found the series {twice!r} twice, expected it once: rename one of them")
            return list(data)
        return read_panels(data, reading or self.reading, usual_freq=usual_freq)

    def _recipe(self) -> Recipe:
        return Recipe(self.horizon, self.model, self.look_back, self.levels, self.seed)

    def _fitted(self) -> list[FittedPanel]:
        if not self.panels:
            raise ArgumentError("this Forecaster is not fitted: call fit first")
        return self.panels

    def _forecast(self, part: FittedPanel, panel: Panel, columns: np.ndarray, steps: int) -> pd.DataFrame:
        """Forecast the rows after ``panel``, whose channels are the ``columns`` of the fitted panel."""
        window = np.tile(part.scaler.mean, (part.map.look_back, 1))
        window[:, columns] = panel.values[panel.rows - part.map.look_back :]
        point = part.scaler.inverse(part.map.forecast(part.scaler.transform(window)[None])[0])[:steps, columns]
        stamps, channels = future_stamps(panel, steps), panel.channels
        frame: dict[str, Any] = {
            "unique_id": np.repeat(channels, steps),
            "ds": stamps.take(np.tile(np.arange(steps), len(channels))),
            "y_hat": point.T.reshape(-1),
        }
        if part.intervals is not None:
            for level, half in zip(part.intervals.levels, part.intervals.half_widths, strict=True):
                width = half[:steps, columns] * part.scaler.scale[columns]
                frame[f"lo-{100 * level:g}"] = (point - width).T.reshape(-1)
                frame[f"hi-{100 * level:g}"] = (point + width).T.reshape(-1)
        return pd.DataFrame(frame)


def comparison(errors: pd.DataFrame) -> str:
    """One line that compares the models of :meth:`Forecaster.held_out_errors` and names the best."""
    listing = ", ".join(f"{name} {mse:.4g}" for name, mse in errors["mse"].items())
    best = errors["mse"].idxmin()
    verdict = f"{best} is the best" + ("" if best == errors.index[0] else f": use model {best!r} instead")
    return (
        f"held-out MSE ({errors['windows'].iloc[0]} windows, standardised values, models fitted on the rows before): "
        f"{listing}: {verdict}"
    )


def _first_rows(panel: Panel, rows: int) -> Panel:
    return replace(panel, values=panel.values[:rows], stamps=panel.stamps[:rows], split=None)
