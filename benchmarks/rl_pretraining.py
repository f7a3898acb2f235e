"""Pretrain small encoders on random play and probe them: ``python benchmarks/rl_pretraining.py --csv FILE``.

Each game has 30,000 frames of 42 x 42 pixels, a quarter of them, in whole episodes, held out. The encoder is a vision
transformer of 2 blocks of width 64 with patches of 14, whose class token is probed. For each seed:

    random                its weights at the start
    vicreg                two epochs
    tov-vicreg            two epochs: as many iterations
    vicreg-3              three epochs: as much CPU time as tov-vicreg
    order                 two epochs of the order term alone

Columns: mean R^2 of the RAM labels by ridge regression, with a 95 % bootstrap interval over held-out episodes; the same
minus that of the random weights, and minus that of vicreg, on the same resamples; balanced accuracy of an order head on
frozen features, of the head that was trained with the encoder, and of the action; effective rank (of 64), mean absolute
off-diagonal covariance, least standard deviation of a dimension; iterations, CPU seconds of training with its probes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from manyheads.lab.data.files import write_csv
from manyheads.lab.training.experiment import find_experiment
from manyheads.lab.training.run import run
from manyheads.rl.encoders.frames import FILE, FrameEncoder
from manyheads.rl.pretraining.data import ProbePart, RecordingData
from manyheads.rl.pretraining.evaluate import Evaluation, evaluate
from manyheads.rl.pretraining.experiments import PretrainingModel, experiments

METHODS = {"vicreg": ("vicreg-small", 2), "tov-vicreg": ("tov-vicreg-small", 2), "vicreg-3": ("vicreg-small", 3)}
METHODS |= {"order": ("order-small", 2)}


def row(found: Evaluation, random: Evaluation, vicreg: Evaluation | None) -> dict[str, object]:
    """The scores of one encoder."""
    metrics, made = found.metrics(), {}
    score = found.state["pooled"]
    intervals = {"r2": score.mean(), "order": found.order.balanced(), "action": found.action.balanced()}
    if found is not random:
        intervals["above_random"] = score.above(random.state["pooled"])
    if vicreg is not None:
        intervals["above_vicreg"] = score.above(vicreg.state["pooled"])
    if found.own_order is not None:
        intervals["own_order"] = found.own_order.balanced()
    for name, one in intervals.items():
        made |= {name: f"{one.value:.4f}", f"{name}_low": f"{one.low:.4f}", f"{name}_high": f"{one.high:.4f}"}
    made |= {name.replace("r2_pooled.", "r2_"): f"{metrics[name]:.4f}" for name in metrics if "pooled." in name}
    for name in ("r2_patches", "effective_rank", "off_diagonal", "least_deviation"):
        made[name] = f"{metrics[name]:.4f}"
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--games", nargs="+", default=["pong", "breakout", "freeway"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--root", type=Path, default=Path("benchmarks/runs/rl-pretraining"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []

    def keep(game: str, seed: int, method: str, more: dict[str, object]) -> None:
        rows.append({"game": game, "seed": seed, "method": method, **more})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        if asked.csv is not None:
            write_csv(asked.csv, rows)

    for seed in asked.seeds:
        for game in asked.games:
            data = RecordingData(game, size=42)
            part = data.open().test
            assert isinstance(part, ProbePart)
            torch.manual_seed(seed)
            random = evaluate(PretrainingModel().encoder(42, part.stack).eval(), part)
            keep(game, seed, "random", row(random, random, None))
            vicreg: Evaluation | None = None
            for method in asked.methods:
                name, epochs = METHODS[method]
                chosen = find_experiment(name, experiments())
                chosen = replace(chosen, data=data, budget=replace(chosen.budget, epochs=epochs))
                report = run(chosen, root=asked.root, seeds=[seed])
                folder = asked.root / chosen.name / chosen.hash / f"seed-{seed}"
                found = evaluate(FrameEncoder.load(folder / FILE), part)
                vicreg = found if method == "vicreg" else vicreg
                more = row(found, random, None if method == "vicreg" else vicreg)
                if "own_order_accuracy" in report.mean:
                    more["own_order"] = f"{report.mean['own_order_accuracy']:.4f}"
                steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
                keep(game, seed, method, {**more, "iterations": steps[-1], "cpu_s": f"{report.cpu_seconds:.0f}"})


if __name__ == "__main__":
    main()
