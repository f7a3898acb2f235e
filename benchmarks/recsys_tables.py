"""Tables of recommenders. Each says so while its results are not there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

from scipy import stats
from table_rows import RESULTS, Row, markdown, read

NOT_YET = "Not measured yet: `python benchmarks/run.py` makes the figures."
BARS = {  # AUC and log-loss on Frappe_x1, 2205.09626, of the same functions; best published first
    "final-mlp": (0.986072, 0.148415),
    "dcnv2": (0.984478, 0.149149),
    "deepfm": (0.984243, 0.148174),
    "dnn": (0.984036, 0.157776),
    "dnn-cat": (0.983995, 0.144441),  # "DLRM" there
    "fm": (0.967108, 0.206515),
    "lr": (0.935584, 0.307643),
}
METRICS = ("auc", "log_loss", "gauc")

Values = dict[int, float]  # seed -> value


@cache
def _results(job: str) -> dict[str, dict[str, Row]]:
    """experiment -> metric -> row; empty where the job has not been run."""
    found: dict[str, dict[str, Row]] = {}
    if (RESULTS / f"{job}.csv").is_file():
        for row in read(job):
            found.setdefault(row["experiment"], {})[row["metric"]] = row
    return found


def _with_peers(job: str, prefix: str) -> dict[str, dict[str, Row]]:
    """The results of a job, with scikit-learn's and LightGBM's on the same rows."""
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
    """Seeds in common, mean difference, p of the paired t-test and of Wilcoxon's signed ranks."""
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
        return NOT_YET
    return markdown((f"test {metric.upper()}", "mean difference", "seeds", "paired t-test p", "Wilcoxon p"), shown)


def recsys_frappe() -> str:
    """The leaderboard: ours and BARS' side by side, the best first; what was not run here stands with BARS' alone."""
    results = {
        name.removeprefix("frappe-x1r-"): rows for name, rows in _with_peers("recsys_frappe", "frappe-x1r-").items()
    }
    if not results:
        return NOT_YET
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
    """Whether the layers differ."""
    name = "frappe-x1r-{}+".format
    layers = ("hiformer", "heterogeneous"), ("hiformer", "vanilla"), ("heterogeneous", "vanilla")
    return _paired_table("recsys_frappe", ((name(a), name(b)) for a, b in layers))


def recsys_calibrated() -> str:
    """Log-loss before and after one temperature, fitted on the validation part."""
    if not (RESULTS / "recsys_calibration.csv").is_file():
        return NOT_YET
    groups: dict[str, list[Row]] = {}
    for row in read("recsys_calibration"):
        groups.setdefault(row["experiment"], []).append(row)
    shown = []
    for name, rows in groups.items():
        cells = (_mean([float(r[c]) for r in rows]) for c in ("log_loss", "calibrated_log_loss", "ece"))
        after = _mean([float(r["calibrated_ece"]) for r in rows])
        shown.append((name, str(len(rows)), *cells, after, _mean([float(r["temperature"]) for r in rows])))
    header = ("test", "seeds", "log-loss", "calibrated", "ECE", "calibrated", "temperature")
    return markdown(header, shown)


def recsys_tuning() -> str:
    """Every setting that was tried, on the validation part."""
    if not (RESULTS / "recsys_tuning.csv").is_file():
        return NOT_YET
    settings: dict[tuple[str, str], dict[str, Row]] = {}
    for row in sorted(read("recsys_tuning"), key=lambda row: int(row["try"])):
        settings.setdefault((row["set"], row["setting"]), {})[row["model"]] = row
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
    """The layers where the interactions are known."""
    results = _with_peers("recsys_synthetic", "synthetic-")
    if not results:
        return NOT_YET
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
    """Neighbours in the paper's order, and what the vanilla layer lacks."""
    pairs = (
        ("hiformer", "heterogeneous"),
        ("heterogeneous", "vanilla-positions"),
        ("heterogeneous", "vanilla"),
        ("vanilla-positions", "vanilla"),
    )
    named = ((f"synthetic-{way}{a}", f"synthetic-{way}{b}") for way in ("", "long-") for a, b in pairs)
    return _paired_table("recsys_synthetic", named)


def recsys_movielens() -> str:
    """MovieLens-100K by time: every model, and Hiformer+ against it."""
    results = _with_peers("recsys_movielens", "ml-100k-time-")
    ours = results.get("ml-100k-time-hiformer+")
    if ours is None:
        return NOT_YET
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
    """Adult: what scikit-learn and LightGBM reach."""
    results = {name: rows for name, rows in _results("recsys_peers").items() if name.startswith("adult-")}
    if not results:
        return NOT_YET
    shown = [
        (name.removeprefix("adult-"), str(_seeds(rows["auc"])), _spread(rows["auc"]), _spread(rows["log_loss"]))
        for name, rows in results.items()
    ]
    return markdown(("adult, test", "seeds", "AUC", "log-loss"), shown)


def recsys_throughput() -> str:
    """What an epoch costs."""
    if not (RESULTS / "recsys_throughput.csv").is_file():
        return NOT_YET
    shown = [
        (r["model"], r["epoch_cpu_s"], r["validation_cpu_s"], f"{float(r['rows_per_cpu_s']):,.0f}", r["times_fuxictr"])
        for r in read("recsys_throughput")
    ]
    header = ("frappe-x1r, one epoch", "training, CPU s", "validation", "rows a CPU second", "times FuxiCTR's")
    return markdown(header, shown)


def _mean(values: list[float], digits: int = 4) -> str:
    mean = math.fsum(values) / len(values)
    return f"{mean:.{digits}f}".removeprefix("0") if mean < 1 else f"{mean:.2f}"
