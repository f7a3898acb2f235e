"""What the modules of tables share: the results as rows, and a table as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Row = dict[str, str]


def read(name: str) -> list[Row]:
    with (RESULTS / f"{name}.csv").open() as stream:
        return list(csv.DictReader(stream))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: float) -> str:
    return f"{value:.4f}".lstrip("0")
