"""``Forecaster(horizon=24).fit(frame).predict()``: forecasts with intervals for any table, in its own units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manyheads.core.errors import ArgumentError, CheckpointError, DataError
from manyheads.forecasting.conformal import Intervals, check_levels
from manyheads.forecasting.fitting import FittedPanel, Recipe, fit_panel
from manyheads.forecasting.frames import Reading, read_panels
from manyheads.forecasting.frequencies import frequency, future_stamps, same_frequency
from manyheads.forecasting.models import find_model
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series import Panel, Scaler, fit_warning
from manyheads.forecasting.stamps import zone_of
from manyheads.lab.storage import load_arrays, save_tensors

KIND = "forecaster"
FORMAT = 1


class Forecaster:
    """Fits one model a panel and forecasts the rows that come next.

    Args:
        horizon: steps to forecast.
        model: a name of ``manyheads forecasting models``; the default needs no tuning.
        look_back: past steps that the model reads; ``closed-form-auto`` takes its own, the others 336 or what there is.
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

    def fit(self, data: str | Path | pd.DataFrame | Panel | Sequence[Panel]) -> Forecaster:
        """Fit on all rows; the models trained by gradient descent hold the last fifth out to stop in time.

        A constant series, and one with too few rows, gets the naive forecast. :attr:`warnings` names these; without
        :func:`manyheads.forecasting.series.collected_warnings` each is also a :class:`FitWarning`.
        Raises :class:`DataError` for bad tables, and where every series is too short for the ``look_back`` asked for.
        """
        panels = self._as_panels(data)
        recipe = self._recipe()
        asked = recipe.asked_look_back
        longest = max(panels, key=lambda panel: panel.rows, default=None)
        if asked is not None and longest is not None and longest.rows < asked + self.horizon:
            raise DataError(
                f"{longest.name} has {longest.rows} rows, fewer than look-back + horizon = {asked} + {self.horizon}: "
                "give more rows, a shorter look-back or a shorter horizon"
            )
        self.panels = [fit_panel(panel, recipe) for panel in panels]
        for warning in self.warnings:
            fit_warning(warning)
        return self

    def predict(self, horizon: int | None = None, *, data: str | Path | pd.DataFrame | None = None) -> pd.DataFrame:
        """The next rows as ``unique_id, ds, y_hat, lo-80, hi-80, …`` in original units.

        Stamps are in the time zone of the table. ``horizon`` may be shorter than the fitted one. ``data`` continues
        from newer rows without fitting again: of all series or some, in any order, each with its own last row.

        Warns with :class:`FitWarning` of negative forecasts of a series that never was negative. Raises
        :class:`DataError` for series that were not fitted, another frequency, and too few rows.
        """
        fitted = self._fitted()
        steps = self.horizon if horizon is None else horizon
        if not 1 <= steps <= self.horizon:
            raise ArgumentError(f"horizon: found {steps}, expected 1 to the fitted {self.horizon}")
        frames = []
        if data is None:
            continued = [(part, part.panel, part.panel.channels) for part in fitted]
        else:
            continued = continuations(fitted, read_panels(data, self.reading, usual=_frequency_of(fitted)))
        for part, panel, channels in continued:
            if panel.rows < part.map.look_back:
                raise DataError(f"{panel.name} has {panel.rows} rows, the model reads {part.map.look_back}: give more")
            window = part.scaler.transform(panel.values[-part.map.look_back :])
            forecast = part.map.forecast(window[None])[0]
            frames.append(self._frame(part, panel, forecast, steps, channels))
        return pd.concat(frames, ignore_index=True)

    def cross_validation(
        self, data: str | Path | pd.DataFrame | Panel | Sequence[Panel], *, windows: int = 10, step: int | None = None
    ) -> pd.DataFrame:
        """Forecasts from ``windows`` past origins, ``step`` rows apart (the horizon by default), by a model fitted once
        on the rows before the first: ``unique_id, ds, cutoff, y, y_hat, lo-80, hi-80, …``.

        A series too short for all windows gets the last ones that fit, with a :class:`FitWarning`. Raises
        :class:`DataError` where none fits in any.
        """
        step = self.horizon if step is None else step
        if windows < 1 or step < 1:
            raise ArgumentError(f"windows and step: found {windows} and {step}, expected 1 or more")
        frames = []
        panels = self._as_panels(data)
        for panel in panels:
            fitting = min(windows, (panel.rows - 2 * self.horizon - 2) // step + 1)
            if fitting < windows:
                found = f"{panel.name} has {panel.rows} rows, enough for {max(fitting, 0)} of {windows} windows of"
                named = ", ".join(panel.channels[:5])
                fit_warning(f"{found} {self.horizon} steps, {step} rows apart: only these are forecast ({named})")
            if fitting < 1:
                continue
            first = panel.rows - self.horizon - (fitting - 1) * step
            part = fit_panel(_head(panel, first), self._recipe())
            for index in range(fitting):
                origin = first + index * step
                past = _head(panel, origin)
                window = part.scaler.transform(past.values[-part.map.look_back :])
                frame = self._frame(part, past, part.map.forecast(window[None])[0], self.horizon)
                actual = panel.values[origin : origin + self.horizon]
                frame.insert(2, "cutoff", past.stamps[-1])
                frame.insert(3, "y", actual.T.reshape(-1))
                frames.append(frame)
        if not frames:
            most = max((panel.rows for panel in panels), default=0)
            raise DataError(
                f"the longest series has {most} rows, too few for one window of {self.horizon} steps: give more rows "
                "or a shorter horizon"
            )
        return pd.concat(frames, ignore_index=True)

    def coverage(self) -> pd.DataFrame:
        """Measured coverage of the intervals by level and step: ``panel, level, step, coverage``."""
        rows = [
            (part.panel.name, level, step + 1, part.intervals.coverage[index, step])
            for part in self._fitted()
            if part.intervals is not None
            for index, level in enumerate(part.intervals.levels)
            for step in range(part.intervals.coverage.shape[1])
        ]
        return pd.DataFrame(rows, columns=["panel", "level", "step", "coverage"])

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(warning for part in self.panels for warning in part.warnings)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with JSON in its header and a digest, atomically; nothing is pickled."""
        arrays: dict[str, np.ndarray] = {}
        described = []
        for index, part in enumerate(self._fitted()):
            if not isinstance(part.map, LinearMap):
                raise ArgumentError(
                    f"save: found the model {self.model!r}, which is no LinearMap, expected one that is: keep this "
                    "Forecaster in memory"
                )
            tail = part.panel.values[-max(part.map.look_back, 2 * part.panel.season) :]
            named = {
                "weight": part.map.weight,
                "bias": part.map.bias,
                "scale_bias": part.map.scale_bias,
                "mean": part.scaler.mean,
                "scale": part.scaler.scale,
                "tail": tail,
                "half_widths": None if part.intervals is None else part.intervals.half_widths,
                "coverage": None if part.intervals is None else part.intervals.coverage,
            }
            kept = {key: np.ascontiguousarray(value) for key, value in named.items() if value is not None}
            arrays |= {f"{index}.{key}": value for key, value in kept.items()}
            stamps = part.panel.stamps
            described.append(
                {
                    "name": part.panel.name,
                    "channels": part.panel.channels,
                    "season": part.panel.season,
                    "last": str(stamps[-1] if stamps.tz is None else stamps[-1].tz_convert("UTC")),
                    "zone": zone_of(stamps),
                    "freq": frequency(stamps),
                    "levels": part.intervals.levels if part.intervals else (),
                    "windows": part.intervals.windows if part.intervals else 0,
                    "warnings": part.warnings,
                }
            )
        settings = {name: getattr(self, name) for name in ("horizon", "model", "look_back", "levels", "seed")}
        header = {"format": FORMAT, **settings, "reading": asdict(self.reading), "panels": described}
        save_tensors(path, arrays, header, kind=KIND)

    @classmethod
    def load(cls, path: str | Path) -> Forecaster:
        """Read what :meth:`save` wrote. Raises :class:`CheckpointError` for any other file."""
        fix = "fit again, or name a file that 'manyheads forecasting fit' or Forecaster.save wrote"
        arrays, header = load_arrays(path, kind=KIND, fix=fix)
        if header.get("format") != FORMAT:
            raise CheckpointError(f"{path}: found format {header.get('format')}, this version reads {FORMAT}: {fix}")
        try:
            return cls._restored(header, arrays)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: its arrays and its description do not fit each other ({type(error).__name__}): {fix}"
            ) from error

    @classmethod
    def _restored(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Forecaster:
        settings = {name: header[name] for name in ("model", "look_back", "levels", "seed")}
        made = cls(header["horizon"], reading=Reading.from_dict(header["reading"]), **settings)
        for index, described in enumerate(header["panels"]):
            part = {k.split(".", 1)[1]: v for k, v in arrays.items() if k.split(".", 1)[0] == str(index)}
            tail = part["tail"]
            last = pd.Timestamp(described["last"])
            last = last if described["zone"] is None else last.tz_convert(described["zone"])
            stamps = pd.date_range(end=last, periods=len(tail), freq=described["freq"])
            panel = Panel(tail, tuple(described["channels"]), stamps, described["season"], name=described["name"])
            levels = tuple(described["levels"])
            intervals = (
                Intervals(levels, part["half_widths"], part["coverage"], described["windows"]) if levels else None
            )
            linear_map = LinearMap(part["weight"], part["bias"], part.get("scale_bias"))
            scaler = Scaler(part["mean"], part["scale"])
            made.panels.append(FittedPanel(panel, scaler, linear_map, intervals, tuple(described["warnings"])))
        return made

    def _as_panels(self, data: str | Path | pd.DataFrame | Panel | Sequence[Panel]) -> list[Panel]:
        if isinstance(data, Panel):
            return [data]
        if isinstance(data, list | tuple) and all(isinstance(one, Panel) for one in data):
            if not data:
                raise DataError("the table: found no panels, expected at least one")
            return list(data)
        return read_panels(data, self.reading)

    def _recipe(self) -> Recipe:
        return Recipe(self.horizon, self.model, self.look_back, self.levels, self.seed)

    def _fitted(self) -> list[FittedPanel]:
        if not self.panels:
            raise ArgumentError("this Forecaster is not fitted: call fit first")
        return self.panels

    def _frame(
        self,
        part: FittedPanel,
        panel: Panel,
        forecast_HC: np.ndarray,
        steps: int,
        channels: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """The rows of ``channels``, all by default; ``panel`` has all channels of ``part``, in their order."""
        everything = part.panel.channels
        channels = everything if channels is None else channels
        chosen = [everything.index(name) for name in channels]
        point = part.scaler.inverse(forecast_HC)[:steps, chosen]
        _warn_of_negatives(part, point, chosen)
        columns: dict[str, Any] = {
            "unique_id": np.repeat(channels, steps),
            "ds": np.tile(future_stamps(panel.stamps, steps), len(channels)),
            "y_hat": point.T.reshape(-1),
        }
        if part.intervals is not None:
            for level, half in zip(part.intervals.levels, part.intervals.half_widths, strict=True):
                width = (half[:steps] * part.scaler.scale)[:, chosen]
                columns[f"lo-{100 * level:g}"] = (point - width).T.reshape(-1)
                columns[f"hi-{100 * level:g}"] = (point + width).T.reshape(-1)
        return pd.DataFrame(columns)


def continuations(
    fitted: Sequence[FittedPanel], newer: Sequence[Panel]
) -> list[tuple[FittedPanel, Panel, tuple[str, ...]]]:
    """The newer rows of each fitted part, as panels of all its channels, and which of these are there.

    Raises :class:`DataError` for series that no part was fitted on, for another frequency, and where a model that mixes
    its channels lacks one.
    """
    known = {name for part in fitted for name in part.panel.channels}
    given = [name for panel in newer for name in panel.channels]
    if not set(given) <= known:
        wanted = ", ".join([name for part in fitted for name in part.panel.channels][:5])
        raise DataError(
            f"the model was fitted on the series {wanted}; the new data hold {', '.join(given[:5])}: give some of the "
            "series that were fitted"
        )
    found = []
    for part in fitted:
        for panel in newer:
            channels = tuple(name for name in part.panel.channels if name in panel.channels)
            if not channels:
                continue
            theirs, ours = frequency(panel.stamps), frequency(part.panel.stamps)
            if not same_frequency(theirs, ours):
                raise DataError(
                    f"{panel.name}, series {channels[0]!r}: found rows at frequency {theirs}, expected {ours}, as the "
                    "model was fitted: give rows of that frequency, or fit again"
                )
            if channels != part.panel.channels and not isinstance(part.map, LinearMap):
                lacking = next(name for name in part.panel.channels if name not in channels)
                raise DataError(
                    f"{panel.name}: found no series {lacking!r} with the stamps of {channels[0]!r}, expected all that "
                    "the model reads together: give them all"
                )
            values = np.repeat(part.scaler.mean[None], panel.rows, axis=0)  # what is not there has no effect
            for name in channels:
                values[:, part.panel.channels.index(name)] = panel.values[:, panel.channels.index(name)]
            found.append((part, replace(panel, values=values, channels=part.panel.channels), channels))
    return found


def _frequency_of(fitted: Sequence[FittedPanel]) -> str | None:
    return next((freq for part in fitted if (freq := frequency(part.panel.stamps))), None)


def _warn_of_negatives(part: FittedPanel, point_HC: np.ndarray, chosen: Sequence[int]) -> None:
    lowest = part.panel.values.min(axis=0)
    for column, index in enumerate(chosen):
        least = point_HC[:, column].min()
        if lowest[index] >= 0 and least < -1e-6 * part.panel.values[:, index].max():
            fit_warning(
                f"{part.panel.name}: {part.panel.channels[index]} was never negative, and its forecast goes down to "
                f"{least:.6g}: cut it at 0 where less has no meaning"
            )


def _head(panel: Panel, rows: int) -> Panel:
    return Panel(panel.values[:rows], panel.channels, panel.stamps[:rows], panel.season, name=panel.name)
