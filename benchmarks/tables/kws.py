"""Tables of keyword spotting: accuracy, streams, spikes, speed, and the recipes that were tried."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean, stdev

from rows import RESULTS, Row, markdown, not_measured, read

DEVELOPMENT = ("george", "jackson")


def kws_rows(*columns: str) -> list[Row]:
    """Return the rows of all result files of keyword spotting that have these columns."""
    found = [read(path.stem) for path in sorted(RESULTS.glob("kws_*.csv"))]
    return [row for rows in found if rows and set(columns) <= set(rows[0]) for row in rows]


def kws_accuracy() -> str:
    """List the accuracy of every experiment: on its own set, on another set, and as published.

    The mean over the held-out speakers follows the table.
    """
    every = kws_rows("experiment", "hash", "metric", "mean", "sd")
    rows = [row for row in every if row["metric"] == "accuracy"]
    if not rows:
        return not_measured()
    other = {row["hash"]: row for row in every if row["metric"] == "elsewhere_accuracy"}
    shown = [
        (
            _name(row),
            _mean(row),
            _mean(other[row["hash"]]) if row["hash"] in other else "",
            str(len(row["seeds"].split())),
            f"{int(row['parameters']):,}" if row.get("parameters") else "",
            row.get("published") or "none",
        )
        for row in rows
    ]
    header = ("accuracy, %", "mean ± sd", "Google digits", "seeds", "parameters", "published")
    return f"{markdown(header, shown)}\n\n{_held_out(rows)}".rstrip()


def kws_aims() -> str:
    """Compare the targets, fixed before the first measurement, with the mean over the seeds."""
    rows = [row for row in kws_rows("experiment", "hash", "metric", "mean", "sd") if _name(row) == row["experiment"]]
    found = {(row["experiment"], row["metric"]): float(row["mean"]) for row in rows}
    folds = [value for (name, metric), value in found.items() if metric == "accuracy" and _speaker(name)]
    spikes = _spike_rows().get("arabic-spiking-lmuformer", [])
    aims: list[tuple[str, float, float | None]] = [
        ("digits: mean over the speakers held out", 91, fmean(folds) if len(folds) == 6 else None),
        ("digits: the worst of them", 80, min(folds, default=None)),
        ("digits: official split", 99, found.get(("fsdd-lmuformer", "accuracy"))),
        ("official split, on the Google digits", 84, found.get(("fsdd-lmuformer", "elsewhere_accuracy"))),
        ("Arabic test part", 97, found.get(("arabic-lmuformer", "accuracy"))),
        ("Arabic test part, spiking", 95.5, found.get(("arabic-spiking-lmuformer", "accuracy"))),
        (
            "spiking: outputs of neurons that are zero, %",
            85,
            fmean(100 * float(r["zero_share"]) for r in spikes) if spikes else None,
        ),
        ("spiking: times fewer operations", 5, fmean(float(row["saving"]) for row in spikes) if spikes else None),
    ]
    shown = [
        (what, f">= {aim:g}", "" if value is None else f"{value:.2f}", "" if value is None else _met(value >= aim))
        for what, aim, value in aims
    ]
    return markdown(("accuracy, % unless said", "aim", "reached", ""), shown)


def _met(met: bool) -> str:
    return "" if met else "missed"


def _speaker(experiment: str) -> str | None:
    """Return the held-out speaker of an experiment that also trains on the Arabic set, else None."""
    found = re.fullmatch(r"fsdd-([a-z]+)-lmuformer", experiment)
    return found[1] if found and found[1] != "alone" else None


def _name(row: Row) -> str:
    """Return the name of the experiment with its overrides."""
    changes = [word for word in row["command"].split() if re.match(r"(data|model|objective|optimiser|budget)\.", word)]
    return " ".join([row["experiment"], *(f"`{change}`" for change in changes)])


def _mean(row: Row) -> str:
    return f"{float(row['mean']):.2f}" + (f" ± {float(row['sd']):.2f}" if row["sd"] else "")


def _held_out(rows: list[Row]) -> str:
    folds = [row for row in rows if _speaker(row["experiment"])]
    if not folds:
        return ""
    seeds = [fmean(map(float, column)) for column in zip(*(row["values"].split() for row in folds), strict=True)]
    worst = min(folds, key=lambda row: float(row["mean"]))
    return (
        f"Mean over the {len(folds)} speakers held out of Free Spoken Digits: {fmean(seeds):.2f} ± {stdev(seeds):.2f} "
        f"({len(seeds)} seeds); the worst of them is {_speaker(worst['experiment'])} with {_mean(worst)}."
    )


def kws_tried() -> str:
    """List the recipes tried on the two development speakers, in the order of trying."""
    variants: dict[str, dict[str, list[float]]] = {}
    for row in kws_rows("variant", "fold", "accuracy"):
        variants.setdefault(row["variant"], {}).setdefault(row["fold"], []).append(float(row["accuracy"]))
    shown = [
        (variant, *(f"{_spread(folds[name])} ({len(folds[name])})" if name in folds else "" for name in DEVELOPMENT))
        for variant, folds in variants.items()
    ]
    return markdown(("accuracy, % (seeds)", *DEVELOPMENT), shown)


def kws_arabic_tried() -> str:
    """List the recipes tried on the validation part of the Arabic set."""
    variants: dict[tuple[str, str], list[Row]] = {}
    for row in kws_rows("variant", "weights", "cross_entropy"):
        variants.setdefault((f"{row['variant']}, {row['epochs']} epochs", row["weights"]), []).append(row)
    shown = []
    for (variant, weights), rows in variants.items():
        accuracy, entropy = ([float(row[name]) for row in rows] for name in ("accuracy", "cross_entropy"))
        shown.append((variant, weights, str(len(rows)), _spread(accuracy), f"{fmean(entropy):.3f}"))
    return markdown(("on the validation part", "weights", "seeds", "accuracy, %", "cross-entropy"), shown)


def kws_streams() -> str:
    """List miss rate, false alarms and latency in streams, at the threshold chosen on the validation part."""
    names = ("false_alarms_per_hour", "latency_after_start", "latency_after_end")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in kws_rows("experiment", "snr_db", *names):
        groups.setdefault((row["experiment"], row["snr_db"]), []).append(row)
    if not groups:
        return not_measured()
    shown = []
    for (experiment, snr), rows in groups.items():
        alarms, start, end = (_spread([float(row[name]) for row in rows]) for name in names)
        missed, at_sixty = (
            _spread([100 * float(row[name]) for row in rows]) for name in ("miss_rate", "miss_rate_at_60_an_hour")
        )
        shown.append((experiment, f"{snr} dB", str(len(rows)), missed, alarms, at_sixty, start, end))
    header = (
        *("streams", "noise", "seeds", "missed, %", "false alarms an hour"),
        *("missed at 60 an hour, %", "s after start", "s after end"),
    )
    return markdown(header, shown)


def kws_ends() -> str:
    """Count the words detected in the middle and at both ends of a recording, by noise."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in read("kws_ends"):
        if row["of"]:
            cell = f"{float(row['mean']):.1f} ± {float(row['sd']):.1f}"
            cells.setdefault((row["noise_rms"], row["noise"]), {})[row["place_or_sound"]] = cell
    places = ("in the middle", "at the very start", "at the very end")
    rows = [(level, noise, *(found[place] for place in places)) for (level, noise), found in cells.items()]
    return markdown(("noise, RMS", "noise lies", *places), rows)


def _spike_rows() -> dict[str, list[Row]]:
    """Return one row per seed, grouped by experiment."""
    groups: dict[str, dict[str, Row]] = {}
    for row in kws_rows("experiment", "zero_share", "saving"):
        if row["zero_share"]:
            groups.setdefault(row["experiment"], {})[row["seed"]] = row
    return {experiment: list(rows.values()) for experiment, rows in groups.items()}


def kws_spikes() -> str:
    """List the operations and energy of a step with spikes and without."""
    groups = _spike_rows()
    if not groups:
        return not_measured()
    shown = []
    for experiment, rows in groups.items():
        names = ("effective_acs", "effective_macs", "dense_macs", "saving", "energy_nj", "dense_energy_nj")
        cells = (_spread([float(row[name]) for row in rows]) for name in names)
        zeros = _spread([100 * float(row["zero_share"]) for row in rows])
        shown.append((experiment, str(len(rows)), zeros, *cells))
    header = ("a step", "seeds", "zeros, %", "additions", "multiply-adds", "dense", "times fewer", "nJ", "dense nJ")
    return markdown(header, shown)


def kws_speed() -> str:
    """List the CPU time of a step, one thread."""
    rows = kws_rows("group", "what", "at_once", "us_per_stream")
    steps = [row for row in rows if row["group"] == "stream"]
    if not steps:
        return not_measured()
    shown = [(row["what"], row["at_once"], row["us_per_stream"], row["target"] or "none") for row in steps]
    table = markdown(("one step, published size", "streams at once", "us a stream", "aim"), shown)
    clips = [row for row in rows if row["group"] == "clips"]
    whole = [
        (
            row["what"],
            f"{float(row['cpu_us']) / 1000:.0f}",
            row["times_faster"] or "1",
            f"{100 * float(row['of_product_rate']):.0f} %",
            row["target"] or "none",
        )
        for row in clips
    ]
    header = ("32 clips of 128 frames", "ms", "times faster", "of the rate of one large product", "aim")
    closing = f"{steps[0]['machine']}; `{steps[0]['command']}`."
    return "\n\n".join([table, *([markdown(header, whole)] if whole else []), closing])


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    digits = 0 if mean >= 100 else 1 if mean >= 10 else 2
    if len(values) < 2:
        return f"{mean:,.{digits}f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"


TABLES = (kws_accuracy, kws_aims, kws_tried, kws_arabic_tried, kws_streams, kws_ends, kws_spikes, kws_speed)
