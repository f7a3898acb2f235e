"""Tables of served recommenders. Each says so while its results are not there."""

from __future__ import annotations

from collections.abc import Callable

from table_rows import RESULTS, Row, markdown, read

NOT_YET = "Not measured yet: `python benchmarks/run.py recsys_serving` makes the figures."


def serving_rows(group: str) -> list[Row]:
    """Of one group, none where nothing was measured."""
    if not (RESULTS / "recsys_serving.csv").is_file():
        return []
    return [row for row in read("recsys_serving") if row["group"] == group]


def serving_latency() -> str:
    """CPU milliseconds of a request, torch and ONNX Runtime."""
    rows = serving_rows("time")
    if not rows:
        return NOT_YET
    found = {(row["model"], row["way"], row["candidates"]): float(row["cpu_ms"]) for row in rows}
    sizes = list(dict.fromkeys(row["candidates"] for row in rows))
    shown = []
    for model in dict.fromkeys(row["model"] for row in rows):
        about = next(row for row in rows if row["model"] == model)
        cells = [f"{_ms(found[model, 'eager', n])} / {_ms(found[model, 'onnx', n])}" for n in sizes]
        shown.append((model, _thousands(about["dense_parameters"]), *cells))
    header = ("CPU ms, torch / ONNX Runtime", "dense parameters", *(f"{int(n):,}" for n in sizes))
    return f"{markdown(header, shown)}\n\n{rows[0]['machine']}; `{rows[0]['command']}`."


def serving_sharing() -> str:
    """What it saves to compute the request's part once, beside what arithmetic allows."""
    rows = serving_rows("time")
    if not rows:
        return NOT_YET
    largest = max((row["candidates"] for row in rows), key=int)
    found = {(row["model"], row["way"]): float(row["cpu_ms"]) for row in rows if row["candidates"] == largest}
    shown = []
    for model in dict.fromkeys(row["model"] for row in rows):
        about = next(row for row in rows if row["model"] == model)
        whole, shared = float(about["macs"]), float(about["macs_shared"])
        times = [found[model, way] for way in ("onnx, one batch", "onnx", "onnx, shared")]
        saved = [f"{times[1] / times[2]:.2f}", f"{whole / shared:.2f}"]
        rate = shared * int(largest) / times[2] / 1e6
        shown.append((model, *map(_ms, times), *saved, f"{shared / 1e6:.2f} of {whole / 1e6:.2f}", f"{rate:.0f}"))
    header = (
        f"{int(largest):,} candidates, CPU ms",
        "one batch",
        "in pieces",
        "in pieces, shared",
        "times faster",
        "by arithmetic",
        "million multiply-adds",
        "billion of them a second",
    )
    raw = {row["way"]: float(row["cpu_ms"]) for row in rows if row["model"] == "hiformer, rank 64"}
    told = (
        f"From raw values to probabilities, rank 64: {_ms(raw['raw request and candidates'])} ms a request and its "
        f"candidates, {_ms(raw['raw rows'])} ms whole rows, {_ms(raw['raw table, torch'])} ms "
        "`Recommender.predict_proba`."
    )
    for row in serving_rows("machine"):
        told += f" A large product of matrices alone runs at {row['value']} {row['what'].split(' in ')[0]}."
    return f"{markdown(header, shown)}\n\n{told}"


def serving_ratios() -> str:
    """The ratios that are held against something."""
    rows = [row for row in serving_rows("ratio") if row["target"]]
    if not rows:
        return NOT_YET
    shown = [(row["what"], row["value"], row["target"], "yes" if row["met"] == "True" else "**no**") for row in rows]
    return markdown(("ratio of CPU times", "measured", "aim", "met"), shown)


def recsys_ranks() -> str:
    """What cutting to a rank costs and saves."""
    if not (RESULTS / "recsys_ranks.csv").is_file():
        return NOT_YET
    rows = read("recsys_ranks")
    whole = float(rows[0]["validation_auc"])
    shown = []
    for row in rows:
        auc = float(row["validation_auc"])
        cells = (row["projections"], _thousands(row["parameters"]), f"{float(row['cpu_ms']):.2f}", f"{auc:.4f}")
        shown.append((*cells, "" if row is rows[0] else f"{auc - whole:+.4f}", row["sigma_cut"]))
    header = ("projections", "parameters", f"CPU ms, {rows[0]['candidates']} rows", "validation AUC", "against trained")
    return markdown((*header, "sigma cut"), shown)


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _thousands(count: str) -> str:
    return f"{int(count):,}"


def int8_spotters() -> str:
    """Three ways to write the weights of keyword networks in 8 bits."""
    return _int8(lambda row: not row["model"].startswith("adult"), "words that change", "other_words")


def int8_recommenders() -> str:
    """The same for recommenders."""
    return _int8(lambda row: row["model"].startswith("adult"), "AUC", "auc")


def _int8(chosen: Callable[[Row], bool], header: str, name: str) -> str:
    if not (RESULTS / "int8.csv").is_file():
        return "Not measured yet: `python benchmarks/run.py int8` makes the figures."
    rows = [row for row in read("int8") if chosen(row)]
    shown = [
        (row["model"], row["form"], row["error"], row[name], row["us_1"], row["us_many"], row["at_once"])
        for row in rows
    ]
    head = ("model", "weights", "relative error", header, "us, one", "us, many", "at once")
    return f"{markdown(head, shown)}\n\n{rows[0]['machine']}; `{rows[0]['command']}`."
