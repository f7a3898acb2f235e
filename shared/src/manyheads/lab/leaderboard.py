"""The leaderboard: a fold over the ``report.json`` of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from manyheads.core.errors import DataError
from manyheads.lab.command import Outcome
from manyheads.lab.experiment import Report


def read_reports(root: str | Path) -> list[Report]:
    """All reports below ``root`` by name.

    Raises :class:`DataError` for an absent folder and :class:`CheckpointError` for a damaged report.
    """
    if not Path(root).is_dir():
        raise DataError(f"{root} is no folder: run an experiment first (manyheads <domain> train …) or name another")
    reports = [Report.read(path) for path in sorted(Path(root).rglob("report.json"))]
    return sorted(reports, key=lambda report: report.name)


def leaderboard(root: str | Path, html: Path | None = None, csv: Path | None = None) -> Outcome:
    """One line a metric: mean ± sd over seeds, the published figure with its source, the command."""
    from manyheads.lab.files import write_csv
    from manyheads.lab.terminal import table

    reports = read_reports(root)
    header = ("experiment", "metric", "mean ± sd", "seeds", "published", "source", "command")
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
    document = [asdict(report) for report in reports]
    if html is not None:
        from manyheads.lab.html import HtmlReport

        page = HtmlReport("Leaderboard", f"All runs below {root}. Mean ± sample standard deviation over seeds.")
        page.table(header, rows)
        page.write(html)
    if csv is not None:
        write_csv(csv, as_table(reports))
    return Outcome(document, table(header, rows) if rows else f"no report.json below {root}")


def as_table(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """One row a metric for a CSV file, with every seed's value, the versions and the command."""
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
