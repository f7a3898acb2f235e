"""The leaderboard: a fold over the ``report.json`` of all runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from manyheads.core.errors import DataError
from manyheads.lab.command import Outcome
from manyheads.lab.experiment import Report


def read_reports(root: str | Path) -> list[Report]:
    """All reports below ``root`` by name. Raises :class:`DataError` for an absent folder and a damaged report."""
    if not Path(root).is_dir():
        raise DataError(f"{root} is no folder: run an experiment first (manyheads <domain> train …) or name another")
    reports = []
    for path in sorted(Path(root).rglob("report.json")):
        try:
            reports.append(Report.read(path))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} is damaged ({type(error).__name__}): remove it and run the experiment again"
            ) from error
    return sorted(reports, key=lambda report: report.name)


def leaderboard(root: str | Path, html: str | None = None) -> Outcome:
    """One line a metric: mean ± sd over seeds, the published figure with its source, the command."""
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
    return Outcome(document, table(header, rows) if rows else f"no report.json below {root}")
