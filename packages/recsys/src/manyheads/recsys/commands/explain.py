"""``manyheads recsys explain``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import Outcome


def explain(
    model: Path,
    /,
    *,
    data: Path,
    out: Path | None = None,
    label: str | None = None,
    which: Literal["held-out", "all"] = "held-out",
    rows: int = 2000,
    repeats: int = 3,
    pairs: bool = True,
    seed: int = 0,
) -> Outcome:
    """Measure permutation importance of fields, feature interactions and attention of a model.

    Args:
        model: the folder that 'fit' saved, or runs/NAME/HASH/seed-N of 'train'.
        data: a table with the label column.
        out: picture of the interaction map, .png or .svg, or a page with all results, .html.
        label: the label to explain if the model has several; the first by default.
        which: leave out rows that the model was fitted on, or use all. If every row was fitted, all are used, and the
            result says so.
        rows: maximum number of rows, sampled from the table.
        repeats: permutations of each field.
        pairs: permute pairs of fields too. Cost: F squared / 2 predictions of all rows per repeat, F fields.
        seed: seed of the sampled rows and of the permutations.
    """
    from rich.console import Group

    from manyheads.lab.data.files import check_suffix, write_figure
    from manyheads.lab.progress import progress
    from manyheads.lab.reporting.tables import table
    from manyheads.recsys.explain.explanation import explain as explained
    from manyheads.recsys.explain.maps import WITH_MAPS, has_maps
    from manyheads.recsys.features.tables import read_table
    from manyheads.recsys.training.recommender import Recommender

    check_suffix("out", out, (".png", ".svg", ".html"))
    recommender = Recommender.load(model)
    if out is not None and out.suffix != ".html" and not has_maps(recommender.network_):
        raise ArgumentError(
            f"out: found a picture of {type(recommender.network_).__name__}, which has no attention to draw, expected "
            f"a page (.html) with permutation importance, or one of {', '.join(WITH_MAPS)}"
        )
    frame = read_table(data)
    with progress("permuting", repeats) as advance:
        found = explained(
            recommender,
            frame,
            task=label,
            which=which,
            rows=rows,
            pairs=pairs,
            repeats=repeats,
            seed=seed,
            advance=advance,
        )
    measured, maps = found.importance, found.maps
    attended = maps.importance() if maps and maps.tokens[: maps.fields] == measured.fields else None
    shown = [
        (
            measured.fields[i],
            measured.text(i),
            "" if attended is None else f"{attended[i]:.3f}",
        )
        for i in (-measured.single).argsort()
    ]
    lines = [
        f"{found.task}: {found.rows_used}, AUC {measured.auc:.4f}, each field permuted {measured.repeats} times",
        table(("field", "AUC lost when permuted", "attention"), shown),
    ]
    if best := found.pairs()[:10]:
        rows_of_pairs = [
            (f"{a}, {b}", f"{x:.4f}", f"{mixed:.3f}", "" if w is None else f"{w:.3f}") for a, b, x, mixed, w in best
        ]
        lines.append(table(("pair", "AUC interaction", "mixed logit", "attention"), rows_of_pairs))
    if correlations := found.correlations():
        cells = [(name, "" if value is None else f"{value:.2f}") for name, value in correlations.items()]
        lines.append(table(("attention against permutation", "rank correlation"), cells))
    if found.without:
        lines.append(found.without)
    if out is not None:
        from manyheads.recsys.explain.plots import draw, write_page

        if out.suffix == ".html":
            write_page(found, out)
        else:
            write_figure(out, draw(found))
        lines.append(f"written: {out}")
    return Outcome({**found.document(), "out": None if out is None else str(out)}, Group(*lines))


commands: dict[str, Callable[..., Outcome]] = {"explain": explain}
