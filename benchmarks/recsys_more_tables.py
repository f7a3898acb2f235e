"""Tables of what recommenders look at, and of the memory that they train in."""

from __future__ import annotations

from statistics import fmean, stdev

from table_rows import RESULTS, markdown, read

NOT_YET = "Not measured yet: `python benchmarks/run.py` makes the figures."
VIEWS = ("attention", "AUC interaction", "mixed logit")


def recsys_maps() -> str:
    """The AUC of the true pairs, a line a model of the synthetic set."""
    if not (RESULTS / "recsys_maps.csv").is_file():
        return NOT_YET
    found: dict[str, dict[str, list[float]]] = {}
    for row in read("recsys_maps"):
        columns = found.setdefault(row["experiment"].removeprefix("synthetic-"), {})
        columns.setdefault(row["view"], []).append(float(row["true_pairs_auc"]))
        if row["view"] == VIEWS[-1]:
            columns.setdefault("model", []).append(float(row["model_auc"]))
    rows = [(name, *(_spread(columns[view]) for view in (*VIEWS, "model"))) for name, columns in found.items()]
    rows.sort(key=lambda row: row[1], reverse=True)
    return markdown(("AUC of the true pairs, ordered by", *VIEWS, "the model's own test AUC"), rows)


def recsys_memory() -> str:
    """The one run under its limit."""
    if not (RESULTS / "recsys_memory.csv").is_file():
        return NOT_YET
    rows = []
    for r in read("recsys_memory"):
        limit, file, peak = (f"{int(r[name]):,} MB" for name in ("limit_mb", "file_mb", "peak_resident_mb"))
        rows.append((limit, file, f"{int(r['rows']):,}", r["columns"], peak, r["cpu_s"], r["reading_a_tenth_whole"]))
    header = ("limit", "file", "rows", "columns", "peak resident", "CPU s", "reading a tenth of it whole")
    return markdown(header, rows)


def _spread(values: list[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
