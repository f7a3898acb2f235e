"""Tables of served recommenders: latency, shared computation, and low-rank projections."""

from __future__ import annotations

from rows import Row, markdown, not_measured, read_if_measured

JOB = "recsys_serving"


def serving_rows(group: str) -> list[Row]:
    """Return the rows of one group; empty if the job has not been run."""
    return [row for row in read_if_measured(JOB) if row["group"] == group]


def serving_latency() -> str:
    """List the CPU milliseconds of a request with torch and with ONNX Runtime, by number of candidates."""
    rows = serving_rows("time")
    if not rows:
        return not_measured(JOB)
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
    """Compare the time saved by computing the request's part once with the saving in multiply-adds."""
    rows = serving_rows("time")
    if not rows:
        return not_measured(JOB)
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
    caption = (
        f"From raw values to probabilities, rank 64: {_ms(raw['raw request and candidates'])} ms a request and its "
        f"candidates, {_ms(raw['raw rows'])} ms whole rows, {_ms(raw['raw table, torch'])} ms "
        "`Recommender.predict_proba`."
    )
    for row in serving_rows("machine"):
        caption += f" A large product of matrices alone runs at {row['value']} {row['what'].split(' in ')[0]}."
    return f"{markdown(header, shown)}\n\n{caption}"


def serving_ratios() -> str:
    """List the ratios of CPU times that have a target."""
    rows = [row for row in serving_rows("ratio") if row["target"]]
    if not rows:
        return not_measured(JOB)
    shown = [(row["what"], row["value"], row["target"], "yes" if row["met"] == "True" else "**no**") for row in rows]
    return markdown(("ratio of CPU times", "measured", "aim", "met"), shown)


def recsys_ranks() -> str:
    """List accuracy and CPU time of composite projections cut to each rank."""
    rows = read_if_measured("recsys_ranks")
    if not rows:
        return not_measured("recsys_ranks")
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


TABLES = (serving_latency, serving_sharing, serving_ratios, recsys_ranks)
