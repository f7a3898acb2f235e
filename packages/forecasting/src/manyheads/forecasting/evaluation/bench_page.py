"""The benchmark as a table for the terminal and as an HTML page with plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manyheads.forecasting.datasets.benchmark_sets import standardise
from manyheads.forecasting.evaluation.bench import BenchResult, Row
from manyheads.forecasting.models import MODELS
from manyheads.forecasting.models.linear_map import LinearMap
from manyheads.lab.reporting.html import HtmlReport

HEADER = ("set", "horizon", "model", "MSE", "MAE", "windows", "published", "in", "fit CPU s", "score CPU s")
BOTH_HEADER = ("set", "horizon", "model", "MSE honest", "MSE paper", "change", "windows", "dropped", "published", "in")


def table_rows(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Header and cells; two protocols stand side by side, to show the effect of the dropped windows."""
    protocols = {row.protocol for row in rows}
    if len(protocols) == 1:
        return HEADER, [
            (
                row.set,
                row.horizon,
                row.model,
                f"{row.mse:.4f}",
                f"{row.mae:.4f}",
                row.windows,
                "" if row.published_mse is None else f"{row.published_mse:.3f}",
                row.published_in or "",
                f"{row.fit_cpu_s:.2f}",
                f"{row.score_cpu_s:.2f}",
            )
            for row in rows
        ]
    honest = {(r.set, r.horizon, r.model): r for r in rows if r.protocol == "honest"}
    paper = {(r.set, r.horizon, r.model): r for r in rows if r.protocol == "paper"}
    cells = []
    for key, a in honest.items():
        b = paper[key]
        published = "" if a.published_mse is None else f"{a.published_mse:.3f}"
        change = f"{100 * (b.mse / a.mse - 1):+.1f}%" if a.mse else ""
        dropped = a.windows - b.windows
        cells.append(
            (*key, f"{a.mse:.4f}", f"{b.mse:.4f}", change, a.windows, dropped, published, a.published_in or "")
        )
    return BOTH_HEADER, cells


def summary_rows(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Header, and one line for each set and protocol: the test MSE of each model, averaged over the horizons.

    The last column is ``100 (m / n - 1)`` with ``n`` the lowest naive error and ``m`` the lowest error of the other
    models. It is empty if one of the two kinds did not run.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    cells = []
    for name, protocol in dict.fromkeys((row.set, row.protocol) for row in rows):
        own = [row for row in rows if (row.set, row.protocol) == (name, protocol)]
        mse = {model: float(np.mean([row.mse for row in own if row.model == model])) for model in models}
        naive = min((mse[model] for model in models if MODELS[model].kind == "naive"), default=0.0)
        other = min((mse[model] for model in models if MODELS[model].kind != "naive"), default=np.nan)
        change = f"{100 * (other / naive - 1):+.0f}%" if naive and np.isfinite(other) else ""
        steps = sorted({row.horizon for row in own})
        horizons = f"{steps[0]}-{steps[-1]}" if len(steps) > 1 else str(steps[0])
        cells.append((name, protocol, horizons, *(f"{value:.3f}" for value in mse.values()), change))
    return ("set", "protocol", "horizons", *models, "against naive"), cells


def best_cells(rows: list[tuple[Any, ...]], column: int = 3) -> set[tuple[int, int]]:
    """The cells ``(row, column)`` with the lowest figure of each set and horizon."""
    lowest: dict[tuple[Any, Any], tuple[float, int]] = {}
    for index, row in enumerate(rows):
        candidate = (float(row[column]), index)
        lowest[row[0], row[1]] = min(lowest.get((row[0], row[1]), candidate), candidate)
    return {(index, column) for _, index in lowest.values()}


def write_report(result: BenchResult, path: Path, command: str) -> Path:
    """Write the HTML page and return its path."""
    report = HtmlReport(
        "Long-term forecasting, honestly",
        "Test errors on standardised values. Under the protocol 'honest' every window of the test part counts; under "
        "'paper' the last incomplete batch is dropped, as in Table 2 of 'Are Transformers Effective for Time Series "
        "Forecasting?' (2205.13504). CPU seconds are process time on this machine.",
    )
    report.text("Made by:", quiet=True)
    report.code(command)
    report.section("Summary")
    report.text("Test MSE, mean over the horizons; the best model against the best naive forecast.", quiet=True)
    report.table(*summary_rows(result.rows))
    report.section("Errors")
    header, cells = table_rows(result.rows)
    report.table(header, cells, best=best_cells(cells))
    for name, why in result.left_out.items():
        report.text(f"{name} is left out: {why}.", quiet=True)
    for name in result.panels:
        report.section(name)
        for note in result.notes.get(name, []):
            report.text(f"{note[0].upper()}{note[1:]}.", quiet=True)
        _draw_set(report, result, name)
    return report.write(path)


def _draw_set(report: HtmlReport, result: BenchResult, name: str) -> None:
    """Add the plots of one set at its longest horizon: error by step, first forecast and weights of the best model."""
    from manyheads.forecasting.evaluation import plots

    rows = [row for row in result.rows if row.set == name]
    horizon = max(row.horizon for row in rows)
    protocol = rows[0].protocol
    longest = [row for row in rows if row.horizon == horizon and row.protocol == protocol]
    best = min(longest, key=lambda row: row.mse)
    shown = sorted(longest, key=lambda row: row.mse)[:6]
    curves = {row.model: result.mse_by_step[name, horizon, row.model, protocol] for row in shown}
    report.figure(
        plots.error_by_step(curves, title=f"{name}: error by horizon step"),
        f"Mean squared error at each step of a {horizon}-step forecast; the six best models.",
    )
    panel, model = result.panels[name], result.fitted[name, horizon, best.model]
    values, scaler = standardise(panel)
    split = panel.split
    assert split is not None
    origin = split.validation_end
    forecast = scaler.inverse(model.forecast(values[None, origin - model.look_back : origin])[0])
    past = slice(max(0, origin - max(horizon, 2 * panel.season)), origin)
    channel = len(panel.channels) - 1
    figure = plots.forecast_fan(
        panel.values[past, channel],
        forecast[:, channel],
        past_stamps=panel.stamps[past],
        forecast_stamps=panel.stamps[origin : origin + horizon],
        actual=panel.values[origin : origin + horizon, channel],
        title=f"{name}: {panel.channels[channel]}",
    )
    report.figure(figure, f"The first test forecast of {best.model}, in original units.")
    if isinstance(model, LinearMap) and np.count_nonzero(model.weight[0]) > model.horizon:
        report.figure(
            plots.weight_map(model, channel=channel, title=f"{name}: weights of {best.model}"),
            "What each step of the forecast takes from each step of the past.",
        )
