"""The commands ``manyheads forecasting bench | models``: the benchmark of the papers, and the list of models."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from manyheads.lab.cli.command import Outcome


def bench(
    *,
    sets: tuple[str, ...] = (),
    horizons: tuple[int, ...] = (),
    models: tuple[str, ...] = (),
    protocol: Literal["honest", "paper", "both"] = "honest",
    batch: int = 32,
    look_back: int | None = None,
    seed: int = 0,
    clean: bool = False,
    summary: bool = False,
    report: Path | None = None,
    csv: Path | None = None,
) -> Outcome:
    """Run the benchmark of the papers: test errors of every model on every set and horizon.

    Args:
        sets: data sets; by default all that are found on this machine (manyheads data list).
        horizons: steps to forecast; by default the four of the paper.
        models: names from 'manyheads forecasting models'; by default the naive and the simple closed-form models.
            'all-closed-form' runs the naive and all closed-form models.
        protocol: honest (all test windows), paper (last incomplete batch dropped) or both side by side.
        batch: batch size of the protocol 'paper'.
        look_back: past steps that the models use; by default those of the paper, 336, and 104 for illness.
        seed: random seed of the models trained by gradient descent.
        clean: interpolate the sentinels and gaps of a set; by default they stay as published.
        summary: print one line for each set, the mean over its horizons; --report and --csv get all rows.
        report: write an HTML page with all rows and plots to this file.
        csv: write the rows to this CSV file.
    """
    from manyheads.forecasting.evaluation.bench import DEFAULT_MODELS, as_table, choose_sets, run_bench
    from manyheads.forecasting.evaluation.bench_page import summary_rows, table_rows, write_report
    from manyheads.forecasting.models import MODELS, fitted_together
    from manyheads.lab.data.files import write_csv
    from manyheads.lab.progress import progress
    from manyheads.lab.reporting.tables import table

    if models == ("all-closed-form",):
        models = tuple(name for name, spec in MODELS.items() if spec.kind != "gradient")
    models = models or DEFAULT_MODELS
    protocols = ("honest", "paper") if protocol == "both" else (protocol,)
    total = len(choose_sets(sets)[0]) * len(fitted_together(models))
    with progress("bench", total) as advance:
        result = run_bench(
            sets,
            horizons,
            models,
            protocols=protocols,
            batch=batch,
            look_back=look_back,
            seed=seed,
            clean=clean,
            keep=report is not None,
            advance=advance,
        )
    words = ["manyheads", "forecasting", "bench"]
    for flag, value in (("--sets", sets), ("--horizons", horizons), ("--models", models)):
        words += [flag, *map(str, value)] if value else []
    words += ["--protocol", protocol] + (["--batch", str(batch)] if batch != 32 else [])
    words += ["--look-back", str(look_back)] if look_back is not None else []
    words += (["--seed", str(seed)] if seed else []) + (["--clean"] if clean else [])
    command = shlex.join(words)
    document: dict[str, Any] = {
        "rows": [asdict(row) for row in result.rows],
        "left_out": result.left_out,
        "notes": result.notes,
    }
    document["command"] = command
    if csv is not None:
        write_csv(csv, as_table(result.rows, command))
    closing = [f"note: {name}: {note}" for name, notes in result.notes.items() for note in notes]
    closing += [f"left out: {name}: {why}" for name, why in result.left_out.items()]
    if report is not None:
        written = write_report(result, report, command)
        document["report"] = str(written.resolve())
        closing.append(f"report: {written.resolve()}")
    from rich.console import Group

    shown = summary_rows(result.rows) if summary else table_rows(result.rows)
    title = "Test MSE, mean over the horizons" if summary else None
    return Outcome(document, Group(table(*shown, title=title), *closing))


def models() -> Outcome:
    """List the forecasting models."""
    from manyheads.forecasting.models import MODELS
    from manyheads.lab.reporting.tables import table

    rows = [(spec.name, spec.kind, spec.title) for spec in MODELS.values()]
    document = [{"name": name, "kind": kind, "title": title} for name, kind, title in rows]
    return Outcome(document, table(("name", "kind", "what"), rows))


commands: dict[str, Callable[..., Outcome]] = {"bench": bench, "models": models}
