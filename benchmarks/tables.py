"""Writes the tables of the pages from ``benchmarks/results/*.csv``: ``python benchmarks/tables.py [--check]``.

A page marks a place with ``<!-- table: NAME -->`` and ``<!-- end -->``; what stands between is made here, so that no
figure is copied by hand. ``--check`` changes nothing and fails where a page is not what the results say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable

from kws_tables import kws_accuracy, kws_aims, kws_arabic_tried, kws_ends, kws_speed, kws_spikes, kws_streams, kws_tried
from layer_tables import cost, decoding, factors, peers, schedules, sequences
from recsys_more_tables import recsys_maps, recsys_memory
from recsys_tables import (
    recsys_adult,
    recsys_calibrated,
    recsys_frappe,
    recsys_frappe_paired,
    recsys_movielens,
    recsys_synthetic,
    recsys_synthetic_paired,
    recsys_throughput,
    recsys_tuning,
)
from serving_tables import (
    int8_recommenders,
    int8_spotters,
    recsys_ranks,
    serving_latency,
    serving_ratios,
    serving_sharing,
)
from table_rows import ROOT, Row, figure, markdown, read
from transformer_tables import transformers

PAGES = (
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "docs" / "forecasting.md",
    ROOT / "docs" / "running.md",
    ROOT / "docs/layers/cost.md",
    ROOT / "docs" / "kws.md",
    ROOT / "docs" / "recsys.md",
)
SETS = ("ETTh1", "ETTh2", "ETTm1", "ETTm2", "weather", "exchange_rate", "national_illness")
HORIZONS = (96, 192, 336, 720)
WEEKS = (24, 36, 48, 60)


def horizons(set_name: str) -> tuple[int, ...]:
    return WEEKS if set_name == "national_illness" else HORIZONS


def mse(rows: Iterable[Row], model: str, protocol: str = "honest") -> dict[tuple[str, int], float]:
    wanted = (row for row in rows if row["model"] == model and row["protocol"] == protocol)
    return {(row["set"], int(row["horizon"])): float(row["mse"]) for row in wanted}


def published(rows: Iterable[Row], model: str) -> dict[tuple[str, int], float]:
    wanted = (row for row in rows if row["model"] == model and row["published_mse"])
    return {(row["set"], int(row["horizon"])): float(row["published_mse"]) for row in wanted}


def reached() -> tuple[dict[tuple[str, int], float], dict[tuple[str, int], float]]:
    """The test errors of closed-form-auto, and what they are held against."""
    ours = read("forecasting_auto")
    target = published(ours, "closed-form-auto")
    seasonal = mse(read("forecasting_naive"), "seasonal-naive")
    target |= {cell: error for cell, error in seasonal.items() if cell[0] == "national_illness"}
    return mse(ours, "closed-form-auto"), target


def auto() -> str:
    """closed-form-auto against the best published linear forecaster, all cells."""
    ours, target = reached()
    train_only = mse(read("forecasting_auto_train"), "closed-form-auto-train")
    rows, rounded, exact = [], 0, 0
    for name in SETS:
        for horizon in horizons(name):
            cell = (name, horizon)
            held = round(ours[cell], 3) <= round(target[cell], 3)
            rounded, exact = rounded + held, exact + (ours[cell] <= target[cell])
            shown = f"**{figure(ours[cell])}**" if held else figure(ours[cell])
            against = figure(target[cell]) if name == "national_illness" else f"{target[cell]:.3f}".lstrip("0")
            rows.append((f"{name} {horizon}", shown, figure(train_only[cell]), against))
    total = (
        f"At or below on {rounded} of {len(rows)} cells at the three decimals that are published, {exact} unrounded."
    )
    return markdown(("test MSE", "closed-form-auto", "train rows only", "best published linear"), rows) + "\n\n" + total


def summary() -> str:
    """One line a set: mean over the horizons."""
    ours, target = reached()
    simple = mse(read("forecasting_closed_form"), "nlinear-cf")
    repeat = mse(read("forecasting_naive"), "repeat")
    rows = []
    for name in SETS:
        means = [sum(table[name, h] for h in horizons(name)) / 4 for table in (repeat, simple, ours, target)]
        rows.append((name, *(f"{mean:.3f}" for mean in means)))
    header = ("mean test MSE of four horizons", "repeat", "nlinear-cf", "closed-form-auto", "best published linear")
    return markdown(header, rows)


def naive() -> str:
    """What dropping the last incomplete batch does to a forecast without parameters."""
    rows = read("forecasting_naive")
    honest, paper, said = mse(rows, "repeat"), mse(rows, "repeat", "paper"), published(rows, "repeat")
    cells = [("national_illness", h) for h in WEEKS] + [("exchange_rate", 720)]
    shown = [
        (f"{name} {h}", f"{honest[name, h]:.3f}", f"{paper[name, h]:.3f}", f"{said[name, h]:.3f}") for name, h in cells
    ]
    return markdown(("MSE of Repeat", "all windows", "last batch dropped", "published"), shown)


def closed_form() -> str:
    """NLinear in closed form, all cells."""
    rows = read("forecasting_closed_form")
    errors, said = mse(rows, "nlinear-cf"), published(rows, "nlinear-cf")
    shown = [
        (name, *(f"{figure(errors[name, h])} ({said[name, h]:.3f})".replace("(0", "(") for h in horizons(name)))
        for name in SETS
    ]
    return markdown(("nlinear-cf (published NLinear)", "1st horizon", "2nd", "3rd", "4th"), shown)


def gradient() -> str:
    """The family by gradient descent on ETTh1-96."""
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
    """The original repository's code, run beside ours."""
    names = ("what", "seed", "test_mse", "cpu_s", "machine")
    shown = [tuple(row[name] for name in names) for row in read("original_dlinear")]
    return markdown(("DLinear, ETTh1-96", "seed", "test MSE", "CPU s, whole process", "processor"), shown)


def ratio() -> str:
    """NLinear in closed form against the authors' training of DLinear, on the same processor."""
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


def speed() -> str:
    """What the jobs cost."""
    rows = [row for row in read("processes") if "train" not in row["command"] or "auto-train" in row["command"]]
    rows = [row for row in rows if not row["job"].startswith("kws")]
    shown = [
        (f"`{row['command'].split(' --csv')[0]}`", row["cpu_s"], row["peak_mb"], row["machine"].split(",")[0])
        for row in rows
    ]
    return markdown(("one process", "CPU s", "peak MB", "processor"), shown)


TABLES: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        *(auto, summary, naive, closed_form, gradient, original, ratio, speed, transformers),
        *(schedules, decoding, sequences, factors),
        *(cost, peers),
        *(kws_accuracy, kws_aims, kws_tried, kws_arabic_tried, kws_streams, kws_ends, kws_spikes, kws_speed),
        *(recsys_frappe, recsys_frappe_paired, recsys_calibrated, recsys_tuning),
        *(recsys_synthetic, recsys_synthetic_paired, recsys_movielens, recsys_adult, recsys_throughput),
        *(recsys_maps, recsys_memory),
        *(serving_latency, serving_sharing, serving_ratios, recsys_ranks),
        *(int8_spotters, int8_recommenders),
    )
}


def filled(text: str) -> str:
    """The page with every marked place filled."""

    def fill(place: re.Match[str]) -> str:
        return f"{place[1]}\n{TABLES[place[2]]()}\n{place[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", fill, text, flags=re.S)


def main(check: bool) -> None:
    for page in PAGES:
        text = page.read_text()
        made = filled(text)
        if check and made != text:
            raise SystemExit(f"{page} is not what the results say: python benchmarks/tables.py")
        page.write_text(made)


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
