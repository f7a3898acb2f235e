"""Measure the effect of one unusual channel on the forecasts of the other channels.

    python benchmarks/forecasting_channels.py --csv benchmarks/results/forecasting_channels.csv

Two daily waves with noise of variance 1 are forecast 24 hours ahead by ``closed-form-auto``: once alone, once in a
table with a third channel, which is constant for 5 % to 50 % of the time, has spikes, a huge scale, a late start, …
Each row of the file is one kind of third channel: the mean squared error of the two waves with it and without it, the
ratio of the two, the largest ratio of any table, and the number of tables in which a wave got the naive forecast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from manyheads.forecasting import Forecaster, Panel
from manyheads.forecasting.series.panels import collected_warnings
from manyheads.lab.data.files import write_csv

HORIZON, SEASON = 24, 24

# (random generator, row numbers, mask of the constant part) -> values of the channel
Maker = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]

KINDS: dict[str, Maker] = {
    "rain with a dry spell": lambda rng, t, still: np.where(still, 0.0, rng.gamma(0.3, 2.0, len(t)).round(3)),
    "valve that stays shut": lambda rng, t, still: np.where(still, 3.0, 3.0 + 0.1 * rng.normal(size=len(t)).cumsum()),
    "late start": lambda rng, t, still: np.where(t < len(t) - still.sum(), 0.0, rng.normal(50.0, 5.0, len(t))),
    "early stop": lambda rng, t, still: np.where(t < len(t) - still.sum(), rng.normal(50.0, 5.0, len(t)), 0.0),
    "rare sales": lambda rng, t, still: np.where(
        still | (rng.random(len(t)) > 0.01), 0.0, rng.gamma(1.0, 100.0, len(t))
    ),
    "rounded to integers": lambda rng, t, still: np.where(still, 0.0, np.round(0.4 * rng.normal(size=len(t)))),
    "one spike": lambda rng, t, still: rng.normal(size=len(t)) + 1e4 * (t == np.argmax(still)),
    "huge scale": lambda rng, t, still: 1e9 * rng.normal(size=len(t)).cumsum(),
    "random walk": lambda rng, t, still: rng.normal(size=len(t)).cumsum(),
    "growth of e^30": lambda rng, t, still: np.exp(30.0 * t / len(t)) + rng.normal(size=len(t)),
    "on and off": lambda rng, t, still: (t // 300 % 2) * (1.0 + 0.3 * rng.normal(size=len(t))),
    "all zero": lambda rng, t, still: np.zeros(len(t)),
}


def table(kind: str, seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a table: the two waves ``(rows, 2)`` and the unusual channel ``(rows,)``."""
    rng, t = np.random.default_rng([seed, list(KINDS).index(kind)]), np.arange(rows)
    waves = [10.0, 5.0] * np.sin(2.0 * np.pi * t[:, None] / SEASON + [0.0, 1.0]) + rng.normal(size=(rows, 2))
    length = int(rng.uniform(0.05, 0.5) * rows)
    begin = rng.integers(0, rows - length)
    return waves, KINDS[kind](rng, t, (t >= begin) & (t < begin + length))


def errors(values: np.ndarray, waves: np.ndarray, model: str) -> tuple[float, bool]:
    """Return the mean squared error of the waves' last rows, and whether a wave got the naive forecast."""
    rows = len(values) - HORIZON
    stamps = pd.date_range("2024-01-01", periods=rows, freq="h")
    panel = Panel(values[:rows], ("load", "temperature", "odd")[: values.shape[1]], stamps, SEASON)
    with collected_warnings([]):
        forecaster = Forecaster(HORIZON, model=model, levels=()).fit(panel)
    forecast = forecaster.predict()["y_hat"].to_numpy()[: 2 * HORIZON].reshape(2, HORIZON).T
    messages = [text.removeprefix("series: ") for text in forecaster.warnings if "no gain" in text]
    naive = any(text.startswith("no gain") or "load" in text or "temperature" in text for text in messages)
    return float(((forecast - waves[rows:]) ** 2).mean()), naive


def measure(kind: str, seeds: range, rows: int, model: str) -> dict[str, object]:
    """Return the row of one kind of channel, over all seeds."""
    together, alone, naive = [], [], 0
    for seed in seeds:
        waves, odd = table(kind, seed, rows)
        error, is_naive = errors(np.column_stack([waves, odd]), waves, model)
        together.append(error)
        alone.append(errors(waves, waves, model)[0])
        naive += is_naive
    ratios = np.array(together) / np.array(alone)
    return {
        "model": model,
        "rows": rows,
        "channel": kind,
        "tables": len(seeds),
        "mse_with": f"{np.mean(together):.4f}",
        "mse_without": f"{np.mean(alone):.4f}",
        "ratio": f"{np.mean(together) / np.mean(alone):.4f}",
        "largest_ratio": f"{ratios.max():.4f}",
        "naive_tables": naive,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--model", default="closed-form-auto", help="forecaster")
    parser.add_argument("--rows", type=int, nargs="+", default=[600, 3024], help="lengths of the tables")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--tables", type=int, default=40, help="number of tables of each kind, one seed each")
    chosen = parser.parse_args()
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.tables)
    rows = " ".join(map(str, chosen.rows))
    command = f"python benchmarks/forecasting_channels.py --model {chosen.model} --rows {rows}"
    command += f" --first-seed {chosen.first_seed} --tables {chosen.tables}"
    written = []
    for length in chosen.rows:
        for kind in KINDS:
            line = measure(kind, seeds, length, chosen.model)
            print(
                {name: line[name] for name in ("rows", "channel", "ratio", "largest_ratio", "naive_tables")}, flush=True
            )
            written.append({**line, "command": command})
    if chosen.csv is not None:
        write_csv(chosen.csv, written)


if __name__ == "__main__":
    main()
