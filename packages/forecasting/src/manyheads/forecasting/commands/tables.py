"""The commands ``manyheads forecasting fit | predict | backtest`` for a user's own table, and ``look-back``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from manyheads.core.errors import ArgumentError
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.forecasting.series.cells import Columns, listed
from manyheads.forecasting.series.frames import Reading, read_panels
from manyheads.forecasting.series.panels import collected_warnings
from manyheads.lab.cli.command import Outcome
from manyheads.lab.data.files import check_suffix, write_atomically, write_figure
from manyheads.lab.install import missing

if TYPE_CHECKING:
    from manyheads.forecasting.estimator.forecaster import Forecaster


PLAIN = Reading()


def fit(
    file: Path,
    /,
    *,
    horizon: int,
    out: Path = Path("forecaster.safetensors"),
    model: str = "closed-form-auto",
    layer: str | None = None,
    look_back: int | None = None,
    levels: tuple[float, ...] = (0.8, 0.95),
    reading: Reading = PLAIN,
    report: Path | None = None,
    seed: int = 0,
) -> Outcome:
    """Fit a forecaster on your own table and save it.

    The table is wide (a time column and one column for each series) or long (columns unique_id, ds, y). A model
    trained by gradient descent is compared with closed-form-auto and seasonal-naive on held-out rows.

    Args:
        file: the table: .csv (also .gz, .xz, .bz2, .zip) or .parquet.
        horizon: number of future steps to forecast.
        out: file for the fitted forecaster.
        model: name of the model (manyheads forecasting models).
        layer: layer inside a network such as transformer or patchtst (manyheads list).
        look_back: past steps that the model uses; closed-form-auto always chooses its own.
        levels: coverages of the prediction intervals, between 0 and 1.
        reading: how to read the table
        report: write an HTML page with forecasts, intervals and weights to this file.
        seed: random seed of a model trained by gradient descent.
    """
    from manyheads.forecasting.estimator.forecaster import Forecaster

    model = model if layer is None else f"{model}:{layer}"
    # the warnings are printed below
    with collected_warnings([]):
        forecaster = Forecaster(
            horizon, model=model, look_back=look_back, levels=levels, reading=reading, seed=seed
        ).fit(file)
    forecaster.save(out)
    note = _comparison_note(forecaster)
    if note is not None:
        print(f"note: {note}", file=sys.stderr, flush=True)
    document = {"model": str(out), "panels": _described(forecaster), "warnings": forecaster.warnings}
    lines = [_panel_line(panel) for panel in document["panels"]]
    if report is not None:
        document["report"] = str(_fit_report(forecaster, report))
        lines.append(f"report: {document['report']}")
    lines += [f"warning: {warning}" for warning in forecaster.warnings]
    return Outcome(document, "\n".join([*lines, f"saved: {out}", f"next: manyheads forecasting predict {out}"]))


def predict(
    model: Path,
    /,
    *,
    data: Path | None = None,
    reading: Reading = PLAIN,
    horizon: int | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    channel: str | None = None,
) -> Outcome:
    """Forecast the next rows with a saved forecaster, after its own table or after a newer one.

    Args:
        model: file that 'fit' saved.
        data: newer table of the same series, or of some of them; the model is not fitted again.
        reading: how to read the newer table; options that are not given are those of the fit
        horizon: number of future steps; by default as many as it was fitted for, at most so many.
        out: write the forecast to this file, .csv or .parquet.
        plot: draw one series with its intervals to this file, .png, .svg or .pdf.
        channel: series to draw; the last one by default.
    """
    from manyheads.forecasting.estimator.forecaster import Forecaster
    from manyheads.lab.reporting.tables import table

    check_suffix("out", out, (".csv", ".parquet"))
    check_suffix("plot", plot, (".png", ".svg", ".pdf"))
    forecaster = Forecaster.load(model)
    warned: list[str] = []
    with collected_warnings(warned):
        forecast = forecaster.predict(horizon, data=data, reading=_changed(forecaster.reading, reading))
    closing = [f"warning: {warning}" for warning in warned]
    if out is not None:
        _write_table(forecast, out)
        closing.append(f"written: {out}")
    if plot is not None:
        write_figure(plot, _fan(forecaster, forecast, channel))
        closing.append(f"drawn: {plot}")
    shown = forecast.assign(ds=forecast["ds"].astype(str))
    records = shown.to_dict("records")
    rows = [tuple(f"{v:.6g}" if isinstance(v, float) else v for v in r.values()) for r in records[:40]]
    if len(records) > len(rows):
        closing.append(f"{len(records) - len(rows)} more rows: --out forecast.csv writes all")
    from rich.console import Group

    return Outcome({"forecast": records, "warnings": warned}, Group(table(tuple(shown.columns), rows), *closing))


def backtest(
    file: Path,
    /,
    *,
    horizon: int,
    windows: int = 10,
    step: int | None = None,
    models: tuple[str, ...] = ("closed-form-auto", "seasonal-naive", "repeat"),
    look_back: int | None = None,
    levels: tuple[float, ...] = (0.8, 0.95),
    reading: Reading = PLAIN,
    out: Path | None = None,
) -> Outcome:
    """Compare models on past forecasts (backtest, rolling origin): MASE, MAE, MSE and interval coverage.

    Each model is fitted once, on the rows before the first origin, and forecasts from each of the origins.

    Args:
        file: the table, as for 'fit'.
        horizon: number of future steps to forecast.
        windows: number of past origins.
        step: rows between two origins; by default the horizon.
        models: names of the models to compare (manyheads forecasting models).
        look_back: past steps that the models use; closed-form-auto always chooses its own.
        levels: coverages of the prediction intervals, between 0 and 1.
        reading: how to read the table
        out: write every forecast to this file, .csv or .parquet.
    """
    from rich.console import Group

    from manyheads.forecasting.estimator.forecaster import Forecaster
    from manyheads.forecasting.evaluation.backtest import backtest_errors, mase
    from manyheads.forecasting.models import find_model
    from manyheads.lab.progress import progress
    from manyheads.lab.reporting.tables import table

    check_suffix("out", out, (".csv", ".parquet"))
    for name in models:
        find_model(name)
    panels = read_panels(file, reading)
    frames, rows, warned = [], [], list(dict.fromkeys(note for panel in panels for note in panel.notes))
    with progress("backtest", len(models)) as advance:
        for name in models:
            advance(name)
            forecaster = Forecaster(horizon, model=name, look_back=look_back, levels=levels)
            with collected_warnings(warned):
                frame = forecaster.cross_validation(panels, windows=windows, step=step)
            frames.append(frame.assign(model=name))
            rows.append({"model": name, **backtest_errors(frame, panels)})
    scaled = mase(frames[0], panels)
    if scaled.isna().any():
        left_out = ", ".join(scaled.index[scaled.isna()][:8])
        warned.append(f"mase leaves out {left_out}: no movement over a season before the origins")
    if out is not None:
        _write_table(pd.concat(frames, ignore_index=True), out)
    header = tuple(dict.fromkeys(key for row in rows for key in row))
    cells = [tuple(f"{row[k]:.4g}" if isinstance(row.get(k), float) else row.get(k) for k in header) for row in rows]
    note = (
        f"{frames[0]['cutoff'].nunique()} origins. mase: mean absolute error divided by that of the value one season "
        "ago, mean over series; mae, mse: in original units; covered: share of actual values inside the interval"
    )
    lines = [f"warning: {warning}" for warning in warned]
    return Outcome({"rows": rows, "warnings": warned}, Group(table(header, cells), note, *lines))


def look_back(
    *,
    set: str = "ETTh1",
    horizon: int = 96,
    models: tuple[str, ...] = ("linear-cf", "nlinear-cf", "rlinear-cf"),
    look_backs: tuple[int, ...] = (24, 48, 72, 96, 120, 144, 168, 192, 336, 504, 672, 720),
    plot: Path | None = None,
) -> Outcome:
    """Compare lengths of the look-back window by test error on a benchmark set (study of 2205.13504).

    Args:
        set: benchmark set (manyheads data list).
        horizon: number of future steps to forecast.
        models: names of the models to compare (manyheads forecasting models).
        look_backs: lengths of the look-back window, in steps.
        plot: draw the curves to this file, .png, .svg or .pdf.
    """
    from manyheads.forecasting.evaluation import plots
    from manyheads.forecasting.evaluation.bench import run_bench
    from manyheads.lab.progress import progress
    from manyheads.lab.reporting.tables import table

    check_suffix("plot", plot, (".png", ".svg", ".pdf"))
    rows = []
    with progress("look-back", len(look_backs) * len(models)) as advance:
        for length in look_backs:
            rows += run_bench([set], [horizon], models, look_back=length, advance=advance).rows
    curves = {name: [row.mse for row in rows if row.model == name] for name in models}
    if plot is not None:
        write_figure(plot, plots.look_back_curve(look_backs, curves, title=f"{set}, horizon {horizon}"))
    document = [
        {"set": r.set, "horizon": r.horizon, "model": r.model, "look_back": r.look_back, "mse": r.mse} for r in rows
    ]
    cells = [(length, *(f"{curves[name][i]:.4f}" for name in models)) for i, length in enumerate(look_backs)]
    return Outcome({"rows": document}, table(("look-back", *models), cells))


def _comparison_note(forecaster: Forecaster) -> str | None:
    """One line that compares a model trained by gradient descent with its baselines; None for any other model."""
    from manyheads.forecasting.estimator.forecaster import BASELINES, comparison
    from manyheads.forecasting.models import find_model

    if find_model(forecaster.model).kind != "gradient":
        return None
    errors = forecaster.held_out_errors()
    if len(errors):
        return comparison(errors)
    return (
        f"{forecaster.model} was not compared with {' and '.join(BASELINES)}, for no rows were held out (no --levels, "
        "or too few rows): 'manyheads forecasting backtest' compares them"
    )


def _changed(stored: Reading, given: Reading) -> Reading:
    """The options of the fit, overridden by those that are given (those that differ from the defaults)."""
    named = {
        f.name: v for f in fields(Columns) if (v := getattr(given.columns, f.name)) != getattr(PLAIN.columns, f.name)
    }
    others = {f.name: v for f in fields(Reading) if (v := getattr(given, f.name)) != getattr(PLAIN, f.name)}
    return replace(stored, **others | {"columns": replace(stored.columns, **named)})


def _described(forecaster: Forecaster) -> list[dict]:
    """The panels of a forecaster for the JSON document."""
    described = []
    for part in forecaster.panels:
        coverage = {}
        if part.intervals is not None and not np.isnan(part.intervals.coverage).all():
            coverage = {
                f"{level:.0%}": round(float(part.intervals.coverage[i].mean()), 3)
                for i, level in enumerate(part.intervals.levels)
            }
        described.append(
            {
                "name": part.panel.name,
                "rows": part.panel.rows,
                "channels": list(part.panel.channels),
                "season": part.panel.season,
                "look_back": part.map.look_back,
                "coverage": coverage,
            }
        )
    return described


def _panel_line(panel: dict) -> str:
    coverage = ", ".join(f"{share:.1%} of {level}" for level, share in panel["coverage"].items()) or "not known"
    return (
        f"{panel['name']}: {panel['rows']} rows, {len(panel['channels'])} series ({listed(panel['channels'])}), "
        f"season {panel['season']}, look-back {panel['look_back']}; measured coverage: {coverage}"
    )


def _fan(forecaster: Forecaster, forecast: pd.DataFrame, channel: str | None):
    """The fan chart of one channel, by default the last one."""
    from manyheads.forecasting.evaluation import plots

    names = list(dict.fromkeys(forecast["unique_id"]))
    chosen = names[-1] if channel is None else channel
    if chosen not in names:
        raise ArgumentError(f"channel: found {chosen!r}, expected one of {', '.join(names[:20])}")
    part = next(part for part in forecaster.panels if chosen in part.panel.channels)
    rows = forecast[forecast["unique_id"] == chosen]
    past = part.panel.values[-max(2 * len(rows), 2 * part.panel.season) :, part.panel.channels.index(chosen)]
    intervals = {
        float(column[3:]) / 100: (rows[column].to_numpy(), rows[f"hi-{column[3:]}"].to_numpy())
        for column in rows.columns
        if column.startswith("lo-")
    }
    # matplotlib would show UTC: draw the clock of the table
    stamps = part.panel.stamps[-len(past) :].tz_localize(None)
    after = pd.DatetimeIndex(rows["ds"]).tz_localize(None)
    continues = after[0] > stamps[-1]
    return plots.forecast_fan(
        past,
        rows["y_hat"].to_numpy(),
        past_stamps=list(stamps) if continues else None,
        forecast_stamps=list(after) if continues else None,
        intervals=intervals,
        title=chosen,
    )


def _fit_report(forecaster: Forecaster, path: Path) -> Path:
    """Write the HTML page of a fit and return its absolute path."""
    from manyheads.forecasting.estimator.forecaster import comparison
    from manyheads.forecasting.evaluation import plots
    from manyheads.lab.reporting.html import HtmlReport

    forecast = forecaster.predict()
    page = HtmlReport(f"Forecast, {forecaster.horizon} steps", f"Model: {forecaster.model}. Original units.")
    for warning in forecaster.warnings:
        page.text(warning)
    for part in forecaster.panels:
        page.section(part.panel.name)
        for name in part.panel.channels[:12]:
            what = "the past and the forecast" if part.intervals is None else "the past, the forecast and its intervals"
            page.figure(_fan(forecaster, forecast, name), f"{name}: {what}.")
        if isinstance(part.map, LinearMap):
            page.figure(
                plots.weight_map(part.map, channel=len(part.panel.channels) - 1, title=part.panel.channels[-1]),
                "Weights: how much each step of the forecast takes from each step of the past.",
            )
    errors = forecaster.held_out_errors()
    if len(errors) > 1:
        page.section("Held-out errors")
        page.text(f"{comparison(errors)}.", quiet=True)
        rows = [(name, f"{row['mse']:.4f}", f"{row['mae']:.4f}") for name, row in errors.iterrows()]
        page.table(("model", "MSE", "MAE"), rows, best={(int(errors["mse"].argmin()), 1)})
    measured = forecaster.coverage()
    if len(measured):
        page.section("Measured coverage of the intervals")
        mean = measured.groupby(["panel", "level"])["coverage"].mean().reset_index()
        page.table(("panel", "level", "covered"), [(p, f"{lv:.2f}", f"{c:.3f}") for p, lv, c in mean.to_numpy()])
    page.section("Forecast")
    page.table(tuple(forecast.columns), forecast.astype({"ds": str}).round(4).head(200).to_numpy().tolist())
    return page.write(path).resolve()


def _write_table(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        try:
            content = frame.to_parquet(index=False)
        except ImportError as error:
            raise missing("pyarrow", "manyheads-forecasting", "parquet", place=str(path)) from error
        write_atomically(path, content if isinstance(content, bytes) else b"")
        return
    write_atomically(path, frame.to_csv(index=False).encode())


commands: dict[str, Callable[..., Outcome]] = {
    "fit": fit,
    "predict": predict,
    "backtest": backtest,
    "look-back": look_back,
}
