"""Tables of the agents on memory tasks, and of the pretraining of encoders."""

from __future__ import annotations

import re
from collections import defaultdict

from rows import markdown, not_measured, read_if_measured
from scipy.stats import ttest_ind


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
        reached, steps, mean = _outcome(metrics)
        cost = f"{float(first['cpu_s']) / seeds:.0f}"
        lines.append((f"`{experiment}`", mean, reached, steps, f"{int(first['parameters']):,}", cost))
    header = (
        "experiment",
        "return",
        "seeds that reach the target",
        "steps to the target",
        "parameters",
        "CPU s a seed",
    )
    return markdown(header, lines)


def rl_gates() -> str:
    """List steps to the target of the short maze for each gate and bias."""
    lines = []
    for command, metrics in _runs("rl_gates"):
        bias = re.search(r"gate_bias,(\S+)", command)
        cells = (command.partition("model.gate=")[2].split()[0], bias.group(1) if bias else "")
        lines.append((*cells, *_outcome(metrics)))
    header = ("gate", "bias at the start", "seeds that reach the target", "steps to the target", "return")
    return markdown(header, lines) if lines else not_measured("rl_gates")


def rl_memory() -> str:
    """List steps to the target of a maze for each length of the memory."""
    lines = [
        (command.partition("model.memory=")[2].split()[0], *_outcome(metrics))
        for command, metrics in _runs("rl_memory")
    ]
    lines.sort(key=lambda line: int(line[0]))
    header = ("memory (steps a layer)", "seeds that reach the target", "steps to the target", "return")
    return markdown(header, lines) if lines else not_measured("rl_memory")


def rl_speed() -> str:
    """List the CPU time of learning in Pong beside that of other learners."""
    lines = [
        (
            row["learner"],
            f"{float(row['cpu_s_per_1000_steps']):.2f}",
            row["steps_per_cpu_s"],
            f"{row['times_as_fast']} times {row['compared_with']}" if row["compared_with"] else "",
        )
        for row in read_if_measured("rl_speed") or ()
    ]
    header = ("learner", "CPU s per 1,000 steps", "steps per CPU s", "speed")
    return markdown(header, lines) if lines else not_measured("rl_speed")


def rl_curves() -> str:
    """List the returns over the training of two learners, and the difference of their means."""
    found: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in read_if_measured("rl_curves") or ():
        found[row["task"], row["learner"]].append(row)
    lines = []
    for (task, learner), seeds in found.items():
        means, last = ([float(row[name]) for row in seeds] for name in ("mean_return", "last_return"))
        cost = sum(float(row["cpu_s"]) for row in seeds) / len(seeds)
        difference = ""
        if learner != "manyheads":
            mine = [float(row["mean_return"]) for row in found[task, "manyheads"]]
            interval = ttest_ind(means, mine, equal_var=False).confidence_interval()
            gap = sum(means) / len(means) - sum(mine) / len(mine)
            difference = f"{gap:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
        lines.append((task, learner, _spread(means), _spread(last), difference, str(len(seeds)), f"{cost:.0f}"))
    header = ("task", "learner", "return over the training", "last return", "difference", "seeds", "CPU s a seed")
    return markdown(header, lines) if lines else not_measured("rl_curves")


def _runs(job: str) -> list[tuple[str, dict[str, dict[str, str]]]]:
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in read_if_measured(job) or ():
        found[row["command"]][row["metric"]] = row
    return list(found.items())


def _outcome(metrics: dict[str, dict[str, str]]) -> tuple[str, str, str]:
    reached = [float(one) for one in metrics["reached"]["values"].split()]
    steps = _mean(metrics["steps_to_target"]) if all(reached) else ""
    return f"{sum(reached):.0f} of {len(reached)}", steps, _mean(metrics["return"])


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


TABLES = (rl_tasks, rl_gates, rl_memory, rl_curves, rl_speed, rl_order, rl_pretraining)
