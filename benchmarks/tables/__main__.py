"""Write the tables of the pages from ``benchmarks/results/*.csv``: ``python benchmarks/tables [--check]``.

A page marks a place with ``<!-- table: NAME -->`` and ``<!-- end -->``. The text between the two marks is generated
here, so that no figure is copied by hand. NAME is a function of a module of this folder; each module lists its
functions in ``TABLES``. ``--check`` changes no page and fails if a page differs from the results.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import int8
import layers
import methods
import processes
import recsys_serving
from rows import ROOT

import forecasting
import images
import kws
import recsys
import rl

PAGES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "notes" / "keyword-recipes.md",
    ROOT / "docs" / "forecasting.md",
    ROOT / "docs" / "running.md",
    ROOT / "docs/layers/cost.md",
    ROOT / "docs" / "images.md",
    ROOT / "docs" / "rl.md",
    ROOT / "docs" / "kws.md",
    ROOT / "docs" / "recsys.md",
    ROOT / "docs" / "methods" / "mesa.md",
    ROOT / "docs" / "methods" / "iared2.md",
)
MODULES = (forecasting, images, int8, kws, layers, methods, processes, recsys, recsys_serving, rl)
TABLES: dict[str, Callable[[], str]] = {table.__name__: table for module in MODULES for table in module.TABLES}


def filled(text: str) -> str:
    """Return the page with every marked place filled."""

    def fill(place: re.Match[str]) -> str:
        return f"{place[1]}\n{TABLES[place[2]]()}\n{place[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", fill, text, flags=re.S)


def main(check: bool) -> None:
    """Fill every page; with ``check``, only compare."""
    for page in PAGES:
        text = page.read_text()
        made = filled(text)
        if check and made != text:
            raise SystemExit(f"{page} is not what the results say: python benchmarks/tables")
        page.write_text(made)


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
