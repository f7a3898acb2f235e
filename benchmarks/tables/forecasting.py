"""Tables of forecasting: closed forms, gradient descent, Transformers, and the authors' own code."""

from __future__ import annotations

from collections.abc import Iterable

from rows import Row, figure, markdown, read, read_if_measured

SETS = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather", "exchange_rate", "national_illness")
HORIZONS = (96, 192, 336, 720)
WEEKS = (24, 36, 48, 60)
TRANSFORMER_SETS = {"etth1": "ETTh1", "etth2": "ETTh2", "ettm2": "ETTm2", "national_illness": "national_illness"}
NETWORKS = ("itransformer", "patchtst", "fedformer", "autoformer", "informer", "transformer")


def horizons(set_name: str) -> tuple[int, ...]:
    """Return the four horizons of the paper for a data set."""
    return WEEKS if set_name == "national_illness" else HORIZONS


def mse(rows: Iterable[Row], model: str, protocol: str = "honest") -> dict[tuple[str, int], float]:
    """Return the test MSE of a model by data set and horizon."""
    wanted = (row for row in rows if row["model"] == model and row["protocol"] == protocol)
    return {(row["set"], int(row["horizon"])): float(row["mse"]) for row in wanted}


def published(rows: Iterable[Row], model: str) -> dict[tuple[str, int], float]:
    """Return the published MSE of a model by data set and horizon."""
    wanted = (row for row in rows if row["model"] == model and row["published_mse"])
    return {(row["set"], int(row["horizon"])): float(row["published_mse"]) for row in wanted}


def ours_and_target() -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], float]]:
    """Return the test MSE of closed-form-auto, and the MSE that it is compared with."""
    ours = read("forecasting_auto")
    target = published(ours, "closed-form-auto")
    seasonal = mse(read("forecasting_naive"), "seasonal-naive")
    target |= {cell: error for cell, error in seasonal.items() if cell[0] == "national_illness"}
    return mse(ours, "closed-form-auto"), target


def auto() -> str:
    """Compare closed-form-auto with the best published linear forecaster, all cells."""
    ours, target = ours_and_target()
    train_only = mse(read("forecasting_auto_train"), "closed-form-auto-train")
    rows, rounded, exact = [], 0, 0
    for name in SETS:
        for horizon in horizons(name):
            cell = (name, horizon)
            reached = round(ours[cell], 3) <= round(target[cell], 3)
            rounded, exact = rounded + reached, exact + (ours[cell] <= target[cell])
            shown = f"**{figure(ours[cell])}**" if reached else figure(ours[cell])
            against = figure(target[cell]) if name == "national_illness" else f"{target[cell]:.3f}".lstrip("0")
            rows.append((f"{name} {horizon}", shown, figure(train_only[cell]), against))
    total = (
        f"At or below on {rounded} of {len(rows)} cells at the three decimals that are published, {exact} unrounded."
    )
    return markdown(("test MSE", "closed-form-auto", "train rows only", "best published linear"), rows) + "\n\n" + total


def summary() -> str:
    """Average the test MSE over the horizons, one line per data set."""
    ours, target = ours_and_target()
    simple = mse(read("forecasting_closed_form"), "nlinear-cf")
    repeat = mse(read("forecasting_naive"), "repeat")
    rows = []
    for name in SETS:
        means = [sum(table[name, h] for h in horizons(name)) / 4 for table in (repeat, simple, ours, target)]
        rows.append((name, *(f"{mean:.3f}" for mean in means)))
    header = ("mean test MSE of four horizons", "repeat", "nlinear-cf", "closed-form-auto", "best published linear")
    return markdown(header, rows)


def naive() -> str:
    """Compare the test MSE of *Repeat* with and without the last incomplete batch."""
    rows = read("forecasting_naive")
    honest, paper, stated = mse(rows, "repeat"), mse(rows, "repeat", "paper"), published(rows, "repeat")
    cells = [("national_illness", h) for h in WEEKS] + [("exchange_rate", 720)]
    shown = [
        (f"{name} {h}", f"{honest[name, h]:.3f}", f"{paper[name, h]:.3f}", f"{stated[name, h]:.3f}")
        for name, h in cells
    ]
    return markdown(("MSE of Repeat", "all windows", "last batch dropped", "published"), shown)


def closed_form() -> str:
    """List the test MSE of NLinear in closed form, all cells, with the published figures."""
    rows = read("forecasting_closed_form")
    errors, stated = mse(rows, "nlinear-cf"), published(rows, "nlinear-cf")
    shown = [
        (name, *(f"{figure(errors[name, h])} ({stated[name, h]:.3f})".replace("(0", "(") for h in horizons(name)))
        for name in SETS
    ]
    return markdown(("nlinear-cf (published NLinear)", "1st horizon", "2nd", "3rd", "4th"), shown)


def gradient() -> str:
    """List the linear family trained by gradient descent on ETTh1-96: mean ± sd, range, seeds, CPU time."""
    rows = [row for row in read("forecasting_sgd") if row["metric"] == "mse"]
    shown = [
        (
            row["experiment"],
            f"{float(row['mean']):.4f} ± {float(row['sd']):.4f}",
            f"{min(map(float, row['values'].split())):.4f} to {max(map(float, row['values'].split())):.4f}",
            str(len(row["seeds"].split())),
            row["published"] or "none",
            f"{float(row['cpu_s']) / len(row['seeds'].split()):.1f}",
        )
        for row in rows
    ]
    return markdown(("test MSE", "mean ± sd", "range", "seeds", "published", "CPU s a seed"), shown)


def original() -> str:
    """List the runs of the authors' code and of ours on the same processors."""
    names = ("what", "seed", "test_mse", "cpu_s", "machine")
    shown = [tuple(row[name] for name in names) for row in read("original_dlinear")]
    return markdown(("DLinear, ETTh1-96", "seed", "test MSE", "CPU s, whole process", "processor"), shown)


def ratio() -> str:
    """Compare the CPU time of NLinear in closed form with the authors' training of DLinear, same processor."""
    process = next(row for row in read("processes") if row["job"] == "forecasting_nlinear")
    theirs = next(
        row
        for row in read("original_dlinear")
        if row["seed"] == "2021" and row["what"] != "ours" and process["machine"].startswith(row["machine"])
    )
    [ours] = read("forecasting_nlinear")
    cost = float(ours["fit_cpu_s"]) + float(ours["score_cpu_s"])
    cpu_s, error = float(theirs["cpu_s"]), figure(float(ours["mse"]))
    shown = [
        ("the authors' DLinear, seed 2021, whole process", theirs["test_mse"].lstrip("0"), f"{cpu_s:.1f}", "1"),
        ("NLinear in closed form, whole process", error, process["cpu_s"], _times(process, cpu_s)),
        ("fit, choice among 11 penalties and exact test error alone", error, f"{cost:.2f}", f"{cpu_s / cost:.0f}"),
    ]
    return markdown(("ETTh1-96", "test MSE", "CPU s", "times faster"), shown)


def _times(row: Row, cpu_s: float) -> str:
    return f"{cpu_s / float(row['cpu_s']):.0f}"


def transformers() -> str:
    """Compare Transformers with linear forecasters: test MSE, mean ± sd over seeds, published figure.

    The linear forecasters have no seed.
    """
    found = {
        (set_name, row["experiment"].split("-")[-2], row["experiment"].split("-")[-1]): row
        for set_name in TRANSFORMER_SETS
        for row in read_if_measured(f"forecasting_transformers_{set_name}")
        if row["metric"] == "mse"
    }
    linear = {
        (row["set"], row["horizon"], row["model"]): row
        for name in ("forecasting_auto", "forecasting_closed_form")
        for row in read(name)
    }
    shown = []
    for set_name, horizon in dict.fromkeys((key[0], key[1]) for key in found):
        title = TRANSFORMER_SETS[set_name]
        cells = [f"{float(linear[title, horizon, m]['mse']):.3f}" for m in ("closed-form-auto", "nlinear-cf")]
        for network in NETWORKS:
            row = found.get((set_name, horizon, network))
            cells.append("not run" if row is None else _cell(row))
        shown.append((f"{title} {horizon}", *cells))
    return markdown(("test MSE ± sd (published)", "closed-form-auto", "nlinear-cf", *NETWORKS), shown)


def _cell(row: Row) -> str:
    published = f" ({float(row['published']):.3f})".replace("(0.", "(.") if row["published"] else ""
    return f"{float(row['mean']):.3f} ± {float(row['sd']):.3f}{published}"


TABLES = (auto, summary, naive, closed_form, gradient, original, ratio, transformers)
