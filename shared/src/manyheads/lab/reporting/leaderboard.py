"""The leaderboard: collect the ``report.json`` of all runs below a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manyheads.core.errors import DataError
from manyheads.lab.reporting.html import HtmlReport
from manyheads.lab.training.report import Report


def read_reports(root: str | Path) -> list[Report]:
    """Read all reports below ``root``, sorted by name.

    Raises :class:`DataError` if the folder is absent, and :class:`CheckpointError` for a damaged report.
    """
    if not Path(root).is_dir():
        raise DataError(f"{root} is no folder: run an experiment first (manyheads <domain> train …) or name another")
    reports = [Report.read(path) for path in sorted(Path(root).rglob("report.json"))]
    return sorted(reports, key=lambda report: report.name)


HEADER = ("experiment", "metric", "mean ± sd", "seeds", "published", "source", "command")


def as_cells(reports: Sequence[Report]) -> list[tuple[Any, ...]]:
    """Return one row of cells per metric, under :data:`HEADER`: mean ± sd over seeds beside the published figure."""
    rows = []
    for report in reports:
        source = report.source or {}
        for metric, mean in report.mean.items():
            sd = report.sd[metric]
            published = source.get("reported", {}).get(metric)
            rows.append(
                (
                    report.name,
                    metric,
                    f"{mean:.4f}" + ("" if sd is None else f" ± {sd:.4f}"),
                    len(report.seeds),
                    "" if published is None else f"{published:g}",
                    f"{source.get('paper', '')} {source.get('table', '')}".strip(),
                    report.command,
                )
            )
    return rows


def write_page(reports: Sequence[Report], root: str | Path, path: Path) -> None:
    """Write the rows of :func:`as_cells` as an HTML page."""
    page = HtmlReport("Leaderboard", f"All runs below {root}. Mean ± sample standard deviation over seeds.")
    page.table(HEADER, as_cells(reports))
    page.write(path)


def as_table(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return one row per metric for a CSV file, with the value of every seed, the versions and the command."""
    rows = []
    for report in reports:
        source = report.source or {}
        for metric, mean in report.mean.items():
            sd = report.sd[metric]
            rows.append(
                {
                    "experiment": report.name,
                    "hash": report.hash,
                    "metric": metric,
                    "mean": f"{mean:.6f}",
                    "sd": None if sd is None else f"{sd:.6f}",
                    "seeds": " ".join(map(str, report.seeds)),
                    "values": " ".join(f"{report.metrics[str(seed)][metric]:.6f}" for seed in report.seeds),
                    "published": source.get("reported", {}).get(metric),
                    "source": f"{source.get('paper', '')} {source.get('table', '')}".strip(),
                    "parameters": report.parameters,
                    "cpu_s": f"{report.cpu_seconds:.1f}",
                    "versions": " ".join(f"{name}={number}" for name, number in report.environment.items()),
                    "command": report.command,
                }
            )
    return rows
