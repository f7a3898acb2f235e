"""Shared by the tables: read a result file as rows, write rows as a Markdown table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

Row = dict[str, str]


def read(name: str) -> list[Row]:
    """Read ``benchmarks/results/<name>.csv``."""
    with (RESULTS / f"{name}.csv").open() as stream:
        return list(csv.DictReader(stream))


def read_if_measured(name: str) -> list[Row]:
    """Read ``benchmarks/results/<name>.csv``; return no rows if the job has not been run."""
    return read(name) if (RESULTS / f"{name}.csv").is_file() else []


def not_measured(job: str = "") -> str:
    """Return the sentence that replaces a table without results."""
    command = f"python benchmarks/run.py {job}".strip()
    return f"Not measured yet: `{command}` makes the figures."


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; the first column is aligned left, all others right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: float) -> str:
    """Write a number with four decimals, without the leading zero."""
    return f"{value:.4f}".lstrip("0")
