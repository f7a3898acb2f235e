"""Draw an explanation as a picture or an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from manyheads.lab.reporting.html import HtmlReport
from manyheads.recsys.explain.explanation import Explanation


def draw(found: Explanation) -> Figure:
    """Draw the attention map beside the mixed logit of the pairs."""
    panels = []
    if found.maps is not None:
        panels.append((found.maps.mean, found.maps.tokens, found.maps.title, "attends to"))
    if found.importance.mixed is not None:
        panels.append((found.importance.mixed, found.importance.fields, "mixed logit, from permutations", ""))
    return heat_maps(panels)


def heat_maps(panels: Sequence[tuple[np.ndarray, Sequence[str], str, str]]) -> Figure:
    """Draw matrices side by side with square cells.

    Each panel: matrix ``(Q, T)``, names of its columns (its rows have the last Q names), title, label of the x axis.
    """
    widest = max(len(names) for _, names, _, _ in panels)
    longest = max(len(name) for _, names, _, _ in panels for name in names)
    side = max(3.0, 0.24 * widest) + 0.085 * longest
    figure = Figure(figsize=(len(panels) * (side + 0.7), side), layout="constrained")
    for axes, (matrix, names, title, below) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        image = axes.imshow(matrix, cmap="Blues", vmin=0.0, vmax=float(matrix.max()) or 1.0, aspect="equal")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(matrix)), names[-len(matrix) :], fontsize=7)
        axes.set_xlabel(below)
        axes.set_title(title, loc="left", fontsize="small")
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure


def write_page(found: Explanation, path: Path) -> Path:
    """Write the page; return its path."""
    measured, maps = found.importance, found.maps
    page = HtmlReport(
        f"What the model looks at: {found.task}",
        f"{found.network} on {found.rows_used}, AUC {measured.auc:.4f}; each field permuted {measured.repeats} times.",
    )
    if maps is None:
        page.text(f"{found.without}. What predictions depend on is measured for all models.")
    page.section("Fields")
    attended = maps.importance() if maps and maps.tokens[: maps.fields] == measured.fields else None
    rows = [
        (
            measured.fields[i],
            measured.text(i),
            "" if attended is None else f"{attended[i]:.3f}",
        )
        for i in np.argsort(-measured.single)
    ]
    page.table(("field", "AUC lost when permuted", "attention"), rows)
    if pairs := found.pairs():
        page.section("Pairs")
        page.figure(
            draw(found),
            "Rows look at columns. Mixed logit: the part of the prediction that two fields have together, in log-odds.",
        )
        rows = [(a, b, f"{x:.4f}", f"{m:.3f}", "" if w is None else f"{w:.3f}") for a, b, x, m, w in pairs[:30]]
        page.table(("field", "and field", "AUC interaction", "mixed logit", "attention"), rows)
    elif maps is not None:
        page.section("Pairs")
        page.figure(draw(found), "Rows look at columns.")
    if maps is not None and len(maps.layers) > 1:
        page.section("Layers")
        for index, layer in enumerate(maps.layers):
            page.figure(heat_maps([(layer, maps.tokens, f"layer {index + 1}", "attends to")]), f"Layer {index + 1}.")
    if correlations := found.correlations():
        page.section("Does the map tell what predictions depend on?")
        page.table(
            ("map against permutation", "rank correlation"),
            [(name, "" if value is None else f"{value:.2f}") for name, value in correlations.items()],
        )
        page.text("Spearman's. Near 1: the map may be read as an explanation. Near 0: it may not.", quiet=True)
    return page.write(path)
