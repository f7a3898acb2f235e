"""Tables of recommenders: leaderboards, paired tests, calibration, tuning, attention maps, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from statistics import fmean, stdev

from rows import Row, markdown, not_measured, read_if_measured
from scipy import stats

# AUC and log-loss on Frappe_x1 of the same functions, from BARS (2205.09626); best published first.
BARS = {
    "final-mlp": (0.986072, 0.148415),
    "dcnv2": (0.984478, 0.149149),
    "deepfm": (0.984243, 0.148174),
    "dnn": (0.984036, 0.157776),
    "dnn-cat": (0.983995, 0.144441),  # called DLRM in BARS
    "fm": (0.967108, 0.206515),
    "lr": (0.935584, 0.307643),
}
METRICS = ("auc", "log_loss", "gauc")
VIEWS = ("attention", "AUC interaction", "mixed logit")

Values = dict[int, float]  # seed -> value


@cache
def _results(job: str) -> dict[str, dict[str, Row]]:
    """Return experiment -> metric -> row; empty if the job has not been run."""
    found: dict[str, dict[str, Row]] = {}
    for row in read_if_measured(job):
        found.setdefault(row["experiment"], {})[row["metric"]] = row
    return found


def _with_peers(job: str, prefix: str) -> dict[str, dict[str, Row]]:
    """Return the results of a job, together with scikit-learn's and LightGBM's on the same rows."""
    peers = {name: rows for name, rows in _results("recsys_peers").items() if name.startswith(prefix)}
    return {**_results(job), **peers} if _results(job) else {}


def _values(row: Row) -> Values:
    return dict(zip(map(int, row["seeds"].split()), map(float, row["values"].split()), strict=True))


def _spread(row: Row, digits: int = 5) -> str:
    mean = f"{float(row['mean']):.{digits}f}".lstrip("0")
    return f"{mean} ± {float(row['sd']):.{digits}f}".replace("± 0", "± ") if row["sd"] else mean


def _seeds(row: Row) -> int:
    return len(row["seeds"].split())


def _cpu(row: Row) -> str:
    return f"{float(row['cpu_s']) / _seeds(row):.0f}"


def paired(ours: Values, theirs: Values) -> tuple[int, float, float, float]:
    """Return the number of common seeds, the mean difference, and p of the paired t-test and of Wilcoxon's test."""
    seeds = sorted(ours.keys() & theirs.keys())
    a, b = [ours[s] for s in seeds], [theirs[s] for s in seeds]
    mean = math.fsum(x - y for x, y in zip(a, b, strict=True)) / len(seeds)
    if len(seeds) < 2:
        return len(seeds), mean, float("nan"), float("nan")
    return len(seeds), mean, float(stats.ttest_rel(a, b).pvalue), float(stats.wilcoxon(a, b).pvalue)


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _paired_table(job: str, pairs: Iterable[tuple[str, str]], metric: str = "auc") -> str:
    results, shown = _results(job), []
    for first, second in pairs:
        if first in results and second in results:
            count, mean, t, w = paired(*(_values(results[name][metric]) for name in (first, second)))
            if count > 1:
                shown.append((f"{first} - {second}", f"{mean:+.5f}", str(count), _p(t), _p(w)))
    if not shown:
        return not_measured()
    return markdown((f"test {metric.upper()}", "mean difference", "seeds", "paired t-test p", "Wilcoxon p"), shown)


def recsys_frappe() -> str:
    """Compare our figures on Frappe with those of BARS, the best first.

    A model that was not run here has the figures of BARS alone.
    """
    results = {
        name.removeprefix("frappe-x1r-"): rows for name, rows in _with_peers("recsys_frappe", "frappe-x1r-").items()
    }
    if not results:
        return not_measured()
    order = {model: float(rows["auc"]["mean"]) for model, rows in results.items()}
    order |= {model: auc for model, (auc, _) in BARS.items() if model not in order}
    shown = []
    for model in sorted(order, key=lambda model: -order[model]):
        published = (f"{x:.6f}".lstrip("0") for x in BARS[model]) if model in BARS else ("none", "none")
        ours = ("0", "not run", "", "", "", "")
        if model in results:
            row = results[model]["auc"]
            cells = (_spread(results[model][metric]) for metric in METRICS)
            ours = (str(_seeds(row)), *cells, f"{int(row['parameters']):,}", _cpu(row))
        shown.append((model, *ours, *published))
    header = ("frappe-x1r, test", "seeds", "AUC", "log-loss", "GAUC", "parameters", "CPU s a seed")
    return markdown((*header, "BARS' AUC", "BARS' log-loss"), shown)


def recsys_frappe_paired() -> str:
    """Test whether the three layers differ on Frappe, paired by seed."""
    name = "frappe-x1r-{}+".format
    layers = ("hiformer", "heterogeneous"), ("hiformer", "vanilla"), ("heterogeneous", "vanilla")
    return _paired_table("recsys_frappe", ((name(a), name(b)) for a, b in layers))


def recsys_calibrated() -> str:
    """List log-loss and ECE before and after temperature scaling, fitted on the validation part."""
    groups: dict[str, list[Row]] = {}
    for row in read_if_measured("recsys_calibration"):
        groups.setdefault(row["experiment"], []).append(row)
    if not groups:
        return not_measured()
    shown = []
    for name, rows in groups.items():
        cells = (_mean([float(r[c]) for r in rows]) for c in ("log_loss", "calibrated_log_loss", "ece"))
        after = _mean([float(r["calibrated_ece"]) for r in rows])
        shown.append((name, str(len(rows)), *cells, after, _mean([float(r["temperature"]) for r in rows])))
    header = ("test", "seeds", "log-loss", "calibrated", "ECE", "calibrated", "temperature")
    return markdown(header, shown)


def recsys_tuning() -> str:
    """List the validation AUC and log-loss of every setting that was tried."""
    settings: dict[tuple[str, str], dict[str, Row]] = {}
    for row in sorted(read_if_measured("recsys_tuning"), key=lambda row: int(row["try"])):
        settings.setdefault((row["set"], row["setting"]), {})[row["model"]] = row
    if not settings:
        return not_measured()
    blocks = []
    for name in dict.fromkeys(key[0] for key in settings):
        mine = {setting: rows for (of, setting), rows in settings.items() if of == name}
        models = list(dict.fromkeys(model for rows in mine.values() for model in rows))
        best = {m: max(float(rows[m]["validation_auc"]) for rows in mine.values() if m in rows) for m in models}
        shown = [(setting, *(_tried(rows.get(m), best[m]) for m in models)) for setting, rows in mine.items()]
        blocks.append(markdown((f"{name}, validation AUC (log-loss)", *models), shown))
    return "\n\n".join(blocks)


def _tried(row: Row | None, best: float) -> str:
    if row is None:
        return ""
    auc, log_loss = float(row["validation_auc"]), float(row["validation_log_loss"])
    text = f"{auc:.4f} ({log_loss:.4f})".replace("0.", ".")
    return f"**{text}**" if auc == best else text


def recsys_synthetic() -> str:
    """Compare the layers on the synthetic set, whose interactions are known."""
    results = _with_peers("recsys_synthetic", "synthetic-")
    if not results:
        return not_measured()
    shown = [
        (
            name.removeprefix("synthetic-"),
            str(_seeds(rows["auc"])),
            _spread(rows["auc"], 4),
            _spread(rows["log_loss"], 4),
            f"{int(rows['auc']['parameters']):,}",
            _cpu(rows["auc"]),
        )
        for name, rows in sorted(results.items(), key=lambda item: -float(item[1]["auc"]["mean"]))
    ]
    return markdown(("synthetic, test", "seeds", "AUC", "log-loss", "parameters", "CPU s a seed"), shown)


def recsys_synthetic_paired() -> str:
    """Test neighbours in the paper's order of layers, and the vanilla layer with and without positions, by seed."""
    pairs = (
        ("hiformer", "heterogeneous"),
        ("heterogeneous", "vanilla-positions"),
        ("heterogeneous", "vanilla"),
        ("vanilla-positions", "vanilla"),
    )
    named = ((f"synthetic-{way}{a}", f"synthetic-{way}{b}") for way in ("", "long-") for a, b in pairs)
    return _paired_table("recsys_synthetic", named)


def recsys_movielens() -> str:
    """Compare every model on MovieLens-100K, split by time, with Hiformer+."""
    results = _with_peers("recsys_movielens", "ml-100k-time-")
    ours = results.get("ml-100k-time-hiformer+")
    if ours is None:
        return not_measured()
    shown = []
    for name, rows in sorted(results.items(), key=lambda item: -float(item[1]["auc"]["mean"])):
        count, mean, t, _ = paired(_values(ours["auc"]), _values(rows["auc"]))
        against = ("", "") if rows is ours else (f"{mean:+.4f}", _p(t) if count > 1 else "")
        cells = (_spread(rows[metric], 4) for metric in METRICS)
        model = name.removeprefix("ml-100k-time-")
        shown.append((model, str(_seeds(rows["auc"])), *cells, *against, _cpu(rows["auc"])))
    header = ("ml-100k-time, test", "seeds", "AUC", "log-loss", "GAUC", "hiformer+ minus it", "paired t-test p")
    return markdown((*header, "CPU s a seed"), shown)


def recsys_adult() -> str:
    """List the accuracy of scikit-learn and LightGBM on Adult."""
    results = {name: rows for name, rows in _results("recsys_peers").items() if name.startswith("adult-")}
    if not results:
        return not_measured()
    shown = [
        (name.removeprefix("adult-"), str(_seeds(rows["auc"])), _spread(rows["auc"]), _spread(rows["log_loss"]))
        for name, rows in results.items()
    ]
    return markdown(("adult, test", "seeds", "AUC", "log-loss"), shown)


def recsys_throughput() -> str:
    """List the CPU time of a training epoch and of validation."""
    shown = [
        (r["model"], r["epoch_cpu_s"], r["validation_cpu_s"], f"{float(r['rows_per_cpu_s']):,.0f}", r["times_fuxictr"])
        for r in read_if_measured("recsys_throughput")
    ]
    if not shown:
        return not_measured()
    header = ("frappe-x1r, one epoch", "training, CPU s", "validation", "rows a CPU second", "times FuxiCTR's")
    return markdown(header, shown)


def recsys_maps() -> str:
    """List how well each view of a trained model ranks the true pairs of the synthetic set (AUC)."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in read_if_measured("recsys_maps"):
        columns = found.setdefault(row["experiment"].removeprefix("synthetic-"), {})
        columns.setdefault(row["view"], []).append(float(row["true_pairs_auc"]))
        if row["view"] == VIEWS[-1]:
            columns.setdefault("model", []).append(float(row["model_auc"]))
    if not found:
        return not_measured()
    rows = [(name, *(_mean_sd(columns[view]) for view in (*VIEWS, "model"))) for name, columns in found.items()]
    rows.sort(key=lambda row: row[1], reverse=True)
    return markdown(("AUC of the true pairs, ordered by", *VIEWS, "the model's own test AUC"), rows)


def recsys_memory() -> str:
    """List peak memory and CPU time of the training run under a memory limit."""
    rows = []
    for r in read_if_measured("recsys_memory"):
        limit, file, peak = (f"{int(r[name]):,} MB" for name in ("limit_mb", "file_mb", "peak_resident_mb"))
        rows.append((limit, file, f"{int(r['rows']):,}", r["columns"], peak, r["cpu_s"], r["reading_a_tenth_whole"]))
    if not rows:
        return not_measured()
    header = ("limit", "file", "rows", "columns", "peak resident", "CPU s", "reading a tenth of it whole")
    return markdown(header, rows)


def _mean_sd(values: list[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def _mean(values: list[float], digits: int = 4) -> str:
    mean = math.fsum(values) / len(values)
    return f"{mean:.{digits}f}".removeprefix("0") if mean < 1 else f"{mean:.2f}"


TABLES = (
    *(recsys_frappe, recsys_frappe_paired, recsys_calibrated, recsys_tuning),
    *(recsys_synthetic, recsys_synthetic_paired, recsys_movielens, recsys_adult, recsys_throughput),
    *(recsys_maps, recsys_memory),
)
