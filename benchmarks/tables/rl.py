"""Tables of the agents on memory tasks, and of the pretraining of encoders."""

from __future__ import annotations

from collections import defaultdict

from rows import markdown, not_measured, read_if_measured

# metrics of a task
COLUMNS = ("return", "steps_to_target")


def rl_tasks() -> str:
    """List steps to the target, return of the evaluation and CPU time of each task."""
    rows = read_if_measured("rl_tasks")
    if not rows:
        return not_measured("rl_tasks")
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        found[row["experiment"]][row["metric"]] = row
    lines = []
    for experiment, metrics in found.items():
        first = next(iter(metrics.values()))
        seeds = len(first["seeds"].split())
        cells = [_mean(metrics.get(name)) for name in COLUMNS]
        lines.append(
            (
                f"`{experiment}`",
                *cells,
                str(seeds),
                f"{int(first['parameters']):,}",
                f"{float(first['cpu_s']) / seeds:.0f}",
            )
        )
    return markdown(("experiment", "return", "steps to the target", "seeds", "parameters", "CPU s a seed"), lines)


def rl_order() -> str:
    """List the balanced accuracy of each order head."""
    rows = read_if_measured("rl_order")
    if not rows:
        return not_measured("rl_order")
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        found[row["input"], row["head"], row["views"]].append(float(row["accuracy"]))
    lines = [(*key, _spread(values), str(len(values))) for key, values in found.items()]
    return markdown(("input", "head", "views", "balanced accuracy", "seeds"), lines)


def rl_pretraining() -> str:
    """List what a linear probe reads from each encoder."""
    rows = read_if_measured("rl_pretraining")
    if not rows:
        return not_measured("rl_pretraining")
    found: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        found[row["game"], row["method"]].append(row)
    lines = []
    for (game, method), seeds in found.items():
        columns = [
            _spread([float(row[name]) for row in seeds if row[name]])
            for name in ("r2", "order", "action", "effective_rank", "above_random")
        ]
        lines.append((game, method, *columns, str(len(seeds))))
    header = ("game", "encoder", "state R²", "order", "action", "effective rank", "R² above random", "seeds")
    return markdown(header, lines)


def _mean(row: dict[str, str] | None) -> str:
    if row is None or not row["mean"]:
        return ""
    mean, deviation = float(row["mean"]), row["sd"]
    digits = 0 if abs(mean) >= 1000 else 3
    return f"{mean:,.{digits}f}" + (f" ± {float(deviation):,.{digits}f}" if deviation else "")


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    mean = sum(values) / len(values)
    deviation = (sum((one - mean) ** 2 for one in values) / max(len(values) - 1, 1)) ** 0.5
    return f"{mean:.3f} ± {deviation:.3f}" if len(values) > 1 else f"{mean:.3f}"


TABLES = (rl_tasks, rl_order, rl_pretraining)
