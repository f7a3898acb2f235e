"""Measure coverage and width of prediction intervals on simulated series with a known optimal interval.

    python benchmarks/forecasting_intervals.py --csv benchmarks/results/forecasting_intervals.csv

Each row of the file is one kind of series, size and level: the coverage (share of future rows inside the interval, over
all steps and series), and the mean width relative to the optimal interval, which knows the process and its whole past.
Seeds 0 to 24 of eight kinds give 200 series per size. The method was chosen on other seeds, from 10,000 on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from manyheads.forecasting import Forecaster, Panel
from manyheads.forecasting.series.panels import collected_warnings
from manyheads.lab.data.files import write_csv

# (rows, horizon, season); the season says monthly (12), quarterly (4), yearly (1) or daily (7)
SIZES = ((36, 12, 12), (48, 12, 12), (60, 12, 12), (100, 12, 12), (150, 12, 12), (300, 12, 12))
SIZES += ((40, 8, 4), (30, 6, 1), (200, 14, 7))
LEVELS = (0.8, 0.95)


def autoregression(rng: np.random.Generator, coefficients: tuple[float, ...], rows: int, burn: int = 200) -> np.ndarray:
    """Simulate an autoregressive process with standard normal innovations."""
    innovations, values = rng.normal(size=rows + burn), np.zeros(rows + burn)
    for t in range(len(coefficients), rows + burn):
        values[t] = innovations[t] + sum(c * values[t - 1 - lag] for lag, c in enumerate(coefficients))
    return values[burn:]


def best_deviation(coefficients: tuple[float, ...], horizon: int) -> np.ndarray:
    """Return the standard deviation ``(H,)`` of the error of the optimal forecast, ``sqrt(sum psi^2)``."""
    psi = np.zeros(horizon)
    psi[0] = 1.0
    for h in range(1, horizon):
        psi[h] = sum(c * psi[h - 1 - lag] for lag, c in enumerate(coefficients) if h > lag)
    return np.sqrt(np.cumsum(psi**2))


def simulate(kind: str, seed: int, rows: int, horizon: int, season: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate ``rows + horizon`` values; return them and the deviation of the optimal forecast at each step."""
    rng, total = np.random.default_rng([seed, KINDS.index(kind)]), rows + horizon
    t = np.arange(total)
    if kind in PROCESSES:
        return autoregression(rng, PROCESSES[kind], total), best_deviation(PROCESSES[kind], horizon)
    if kind == "random walk":
        return rng.normal(size=total).cumsum(), np.sqrt(np.arange(1.0, horizon + 1))
    if kind == "sine + AR(1) .5":
        wave = 4.0 * np.sin(2.0 * np.pi * t / max(season, 6) + rng.uniform(0.0, 6.0))
        return wave + autoregression(rng, (0.5,), total), best_deviation((0.5,), horizon)
    pattern = 3.0 * rng.normal(size=season)
    if kind == "season + trend + noise":
        return pattern[t % season] + 0.1 * t + rng.normal(size=total), np.ones(horizon)
    if kind == "season + AR(1) .8":
        return pattern[t % season] + autoregression(rng, (0.8,), total), best_deviation((0.8,), horizon)
    # each month of the season is a random walk of steps .5, observed with noise
    values = np.zeros(total)
    for row in range(total):
        pattern[row % season] += 0.5 * rng.normal()
        values[row] = pattern[row % season] + rng.normal()
    # steady state of the Kalman filter of each month: x = x / (x + 1) + .25
    return values, np.full(horizon, np.sqrt(1.0 + (0.25 + np.sqrt(0.25**2 + 1.0)) / 2.0))


PROCESSES = {"AR(1) .5": (0.5,), "AR(1) .9": (0.9,), "AR(2) 1.2 -.5": (1.2, -0.5)}
SEASONAL = ("sine + AR(1) .5", "season + trend + noise", "season + AR(1) .8", "moving season")
KINDS = (*PROCESSES, "random walk", *SEASONAL)


def measure(kind: str, size: tuple[int, int, int], seeds: range, model: str) -> list[tuple[float, float, float]]:
    """Return level, coverage and relative width, averaged over the series."""
    rows, horizon, season = size
    found = []
    for seed in seeds:
        values, deviation = simulate(kind, seed, rows, horizon, season)
        panel = Panel(values[:rows, None], ("y",), pd.date_range("2000-01-01", periods=rows, freq="D"), season)
        with collected_warnings([]):
            forecast = Forecaster(horizon, model=model, levels=LEVELS).fit(panel).predict()
        for level in LEVELS:
            low, high = forecast[f"lo-{100 * level:g}"], forecast[f"hi-{100 * level:g}"]
            inside = (values[rows:] >= low) & (values[rows:] <= high)
            best = 2.0 * norm.ppf((1.0 + level) / 2.0) * deviation
            found.append((level, inside.mean(), ((high - low) / best).mean()))
    frame = pd.DataFrame(found, columns=["level", "covered", "width"]).groupby("level").mean().reset_index()
    return [tuple(row) for row in frame.to_numpy()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--model", default="closed-form-auto", help="forecaster")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--series", type=int, default=25, help="number of series of each kind, one seed each")
    chosen = parser.parse_args()
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.series)
    command = f"python benchmarks/forecasting_intervals.py --model {chosen.model} --first-seed {chosen.first_seed} "
    command += f"--series {chosen.series}"
    written = []
    for size in SIZES:
        lines = {kind: measure(kind, size, seeds, chosen.model) for kind in KINDS}
        lines["all"] = [tuple(np.mean(rows, axis=0)) for rows in zip(*lines.values(), strict=True)]
        for kind, rows in lines.items():
            for level, covered, width in rows:
                names = ("model", "rows", "horizon", "season", "kind", "level", "series", "covered", "width_over_best")
                count = len(seeds) * (len(KINDS) if kind == "all" else 1)
                cells = (chosen.model, *size, kind, f"{level:g}", count, f"{covered:.4f}", f"{width:.3f}", command)
                written.append(dict(zip((*names, "command"), cells, strict=True)))
        print(size, [f"{covered:.3f} of {level:g}, width {width:.2f}" for level, covered, width in lines["all"]])
    if chosen.csv is not None:
        write_csv(chosen.csv, written)


if __name__ == "__main__":
    main()
