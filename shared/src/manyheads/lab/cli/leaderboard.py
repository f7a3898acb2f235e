"""The command ``manyheads report``: the leaderboard of all runs below a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from manyheads.lab.cli.command import Outcome


def leaderboard(root: str | Path, html: Path | None = None, csv: Path | None = None) -> Outcome:
    """Return one row per metric: mean ± sd over seeds, the published figure with its source, the command.

    ``html`` and ``csv`` are files to write as well.
    """
    from manyheads.lab.data.files import write_csv
    from manyheads.lab.reporting.leaderboard import HEADER, as_cells, as_table, read_reports, write_page
    from manyheads.lab.reporting.tables import table

    reports = read_reports(root)
    rows = as_cells(reports)
    if html is not None:
        write_page(reports, root, html)
    if csv is not None:
        write_csv(csv, as_table(reports))
    document = [asdict(report) for report in reports]
    return Outcome(document, table(HEADER, rows) if rows else f"no report.json below {root}")
