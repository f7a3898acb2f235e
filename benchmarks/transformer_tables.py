"""The table of the Transformers beside the linear family: ``benchmarks/results/forecasting_transformers_*.csv``."""

from __future__ import annotations

from table_rows import RESULTS, markdown, read

SETS = {"etth1": "ETTh1", "etth2": "ETTh2", "ettm2": "ETTm2", "national_illness": "national_illness"}
NETWORKS = ("itransformer", "patchtst", "fedformer", "autoformer", "informer", "transformer")


def transformers() -> str:
    """Test MSE, mean ± sd over seeds, and the published figure; the linear forecasters have no seed."""
    found = {
        (set_name, row["experiment"].split("-")[-2], row["experiment"].split("-")[-1]): row
        for set_name in SETS
        if (RESULTS / f"forecasting_transformers_{set_name}.csv").is_file()
        for row in read(f"forecasting_transformers_{set_name}")
        if row["metric"] == "mse"
    }
    linear = {
        (row["set"], row["horizon"], row["model"]): row
        for name in ("forecasting_auto", "forecasting_closed_form")
        for row in read(name)
    }
    shown = []
    for set_name, horizon in dict.fromkeys((key[0], key[1]) for key in found):
        title = SETS[set_name]
        cells = [f"{float(linear[title, horizon, m]['mse']):.3f}" for m in ("closed-form-auto", "nlinear-cf")]
        for network in NETWORKS:
            row = found.get((set_name, horizon, network))
            cells.append("not run" if row is None else _cell(row))
        shown.append((f"{title} {horizon}", *cells))
    return markdown(("test MSE ± sd (published)", "closed-form-auto", "nlinear-cf", *NETWORKS), shown)


def _cell(row: dict[str, str]) -> str:
    published = f" ({float(row['published']):.3f})".replace("(0.", "(.") if row["published"] else ""
    return f"{float(row['mean']):.3f} ± {float(row['sd']):.3f}{published}"
