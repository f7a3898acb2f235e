"""Self-contained HTML report pages: no scripts, no external fonts or pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyheads.lab.data.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --good: #1a7f37; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.number, th.number { text-align: right; } td.best { font-weight: 700; color: var(--good); }
.wide { overflow-x: auto; } .note, figcaption { color: var(--quiet); font-size: .9rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; } pre { overflow-x: auto; }
"""


class HtmlReport:
    """Collect sections, tables and figures in order and write one HTML file. All text is escaped."""

    def __init__(self, title: str, introduction: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        if introduction:
            self.text(introduction)

    def section(self, title: str) -> None:
        """Add a heading."""
        self._parts.append(f"<h2>{html.escape(title)}</h2>")

    def text(self, text: str, *, quiet: bool = False) -> None:
        """Add a paragraph; ``quiet`` sets it small and grey."""
        note = ' class="note"' if quiet else ""
        self._parts.append(f"<p{note}>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        """Add a block of code."""
        self._parts.append(f"<pre><code>{html.escape(text)}</code></pre>")

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[Any]], *, best: set[tuple[int, int]] | None = None
    ) -> None:
        """Add a table; numbers are right-aligned, cells in ``best`` (row, column) are highlighted."""

        def cell(value: Any, row: int, column: int) -> str:
            kinds = ["number"] if isinstance(value, int | float) or _is_figure(value) else []
            if best and (row, column) in best:
                kinds.append("best")
            attribute = f' class="{" ".join(kinds)}"' if kinds else ""
            return f"<td{attribute}>{html.escape('' if value is None else str(value))}</td>"

        numeric = [any(_is_figure(r[c]) for r in rows) for c in range(len(header))]
        head = "".join(
            f"<th{' class=number' if number else ''}>{html.escape(name)}</th>"
            for name, number in zip(header, numeric, strict=True)
        )
        body = "".join(
            "<tr>" + "".join(cell(value, i, j) for j, value in enumerate(row)) + "</tr>" for i, row in enumerate(rows)
        )
        self._parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figure(self, figure: Figure, caption: str) -> None:
        """Embed a matplotlib figure as PNG and clear it."""
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        figure.clear()
        data = base64.b64encode(picture.getvalue()).decode()
        escaped = html.escape(caption)
        picture_tag = f'<img alt="{escaped}" src="data:image/png;base64,{data}">'
        self._parts.append(f"<figure>{picture_tag}<figcaption>{escaped}</figcaption></figure>")

    def render(self) -> str:
        """Return the page as HTML."""
        body = "\n".join(self._parts)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page atomically and return its path."""
        write_atomically(path, self.render().encode())
        return Path(path)


def _is_figure(value: Any) -> bool:
    if isinstance(value, int | float):
        return True
    try:
        for part in str(value).split("±"):
            float(part.strip().replace(",", "").rstrip("*%x"))
    except ValueError:
        return False
    return True
