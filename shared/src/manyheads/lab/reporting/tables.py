"""Tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_STAMP = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d|$)")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Table:
    """Return a rich table; columns of numbers are right-aligned, and no number, name or time stamp wraps."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for index, name in enumerate(header):
        figures = all(_numeric(row[index]) for row in rows) and bool(rows)
        whole = all(" " not in str(row[index]) or _STAMP.match(str(row[index])) for row in rows)
        longest = max((len(str(row[index])) for row in rows if row[index] is not None), default=0)
        # rich takes the longest single word as the minimum width of a column
        least = max(longest, len(name)) if whole else None
        made.add_column(name, justify="right" if figures else "left", no_wrap=whole, min_width=least)
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    return made


def _numeric(cell: Any) -> bool:
    if cell is None or cell == "" or isinstance(cell, int | float):
        return True
    try:
        float(str(cell).rstrip("*%"))
    except ValueError:
        return False
    return True
