"""CPU time of a forward pass against the number of tokens: ``python benchmarks/fit.py``. FIT, full attention.

FIT has groups of ``n = round(N^(1/3))`` tokens, ``t = round(N / n)`` groups, 4 latents a group and the schedule
"(1)1(1)1(1)"; the other model is a stack of as many softmax layers over all tokens, up to ``--full`` tokens. Width 64,
4 heads, float32, one row. CPU seconds of one thread at nice 5; lengths and models take turns ``--runs`` times, and the
median of each counts. The slope is that of the logarithms by least squares, over all lengths of the model.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from manyheads.core.backbones.fit import FIT
from manyheads.core.backbones.stack import build_stack
from manyheads.lab.data.files import write_csv

WIDTH, SCHEDULE, LATENTS = 64, "(1)1(1)1(1)", 4
DEPTH = 5  # layers of the schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--full", type=int, default=8192, help="longest input of full attention")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--csv", type=Path, default=Path("benchmarks/results/fit.csv"))
    asked = parser.parse_args()
    os.nice(max(0, 5 - os.nice(0)))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fit = FIT(SCHEDULE, inputs=WIDTH, dim=WIDTH, latent_dim=WIDTH, latents=LATENTS, positions="sinusoidal").eval()
    full = build_stack("softmax", WIDTH, depth=DEPTH, options={"heads": 4, "bias": True}).eval()
    jobs: list[tuple[str, int, int, Callable[..., Any], torch.Tensor]] = []
    for length in asked.lengths:
        size = round(length ** (1 / 3))
        groups = round(length / size)
        jobs.append(("fit", groups * size, size, fit, torch.randn(1, groups, size, WIDTH)))
        if length <= asked.full:
            jobs.append(("full attention", length, length, full, torch.randn(1, length, WIDTH)))
    seconds: list[list[float]] = [[] for _ in jobs]
    with torch.no_grad():
        for run in range(asked.runs + 1):
            for (_, _, _, model, x), found in zip(jobs, seconds, strict=True):
                begun = time.process_time()
                model(x)
                # The first turn warms up.
                if run:
                    found.append(time.process_time() - begun)
    medians = [statistics.median(found) for found in seconds]
    rows = []
    for (name, tokens, size, _, _), found, median in zip(jobs, seconds, medians, strict=True):
        same = [(job[1], one) for job, one in zip(jobs, medians, strict=True) if job[0] == name]
        rows.append(
            {
                "model": name,
                "tokens": tokens,
                "group_size": size,
                "forward_cpu_s": f"{median:.4f}",
                "sd": f"{statistics.stdev(found) if asked.runs > 1 else 0:.4f}",
                "runs": asked.runs,
                "slope": f"{slope(same):.2f}",
                "machine": f"{platform.machine()}, 1 thread, nice {os.nice(0)}",
                "torch": torch.__version__,
                "command": " ".join(["python", "benchmarks/fit.py", *sys.argv[1:]]),
            }
        )
        print({key: rows[-1][key] for key in ("model", "tokens", "group_size", "forward_cpu_s", "slope")})
    write_csv(asked.csv, rows)


def slope(points: list[tuple[int, float]]) -> float:
    """Least-squares slope of log seconds over log tokens."""
    x, y = [math.log(tokens) for tokens, _ in points], [math.log(seconds) for _, seconds in points]
    a, b = statistics.fmean(x), statistics.fmean(y)
    return sum((p - a) * (q - b) for p, q in zip(x, y, strict=True)) / sum((p - a) ** 2 for p in x)


if __name__ == "__main__":
    main()
