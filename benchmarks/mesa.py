"""Train a forecasting Transformer with and without Mesa: ``python benchmarks/mesa.py --csv FILE``.

The experiment is ``etth1-96-transformer``, cut to 300 steps of 32 windows, for three seeds. All kinds of training take
turns of ten steps, with the same weights at the start, batches and dropout, so that they differ in nothing but the
gradients, and so that other processes slow all of them alike. In turns of one step each kind would begin with the cache
and the heap of another, as no training on its own does. ``cpu_s`` is the CPU time of forward pass, backward pass and
optimiser.

``saved_mb`` counts the bytes that autograd keeps for the backward pass, parameters excluded. ``peak_growth_mb`` is the
growth of the peak resident memory during two steps of 512 windows, in a process of its own that has trained one step of
8 windows before. ``peak_growth_mmap_mb`` is the same with ``MALLOC_MMAP_THRESHOLD_=1000000``: every tensor above a
megabyte is then mapped by itself. By default glibc takes blocks of this size from its heap as soon as one has been
freed, and holes between the codes keep the heap large.

``--published`` trains the network at its published size instead, in turns of one step, without validation and without
the peak.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from manyheads.core.methods.mesa import Mesa
from manyheads.forecasting.training.experiments import network_experiment
from manyheads.lab.data.files import write_csv

KINDS = ("full", "exact", "running")
EXPERIMENT = network_experiment("ETTh1", 96, "transformer")
# of the published size of the experiment
PUBLISHED = {"width": 512, "heads": 8, "expansion": 4.0}
LARGE = 512
# steps of one kind before the next
TURN = 10
MB = 1 << 20


class Training:
    """One model and its optimiser, with a kind of memory."""

    def __init__(self, model: nn.Module, kind: str, seed: int) -> None:
        self.model, self.kind = model.train(), kind
        self.mesa = None if kind == "full" else Mesa(model, ranges=kind, seed=seed)
        # for full training only the count of the bytes is of interest
        self.counter = Mesa(model) if kind == "full" else self.mesa
        self.optimiser = torch.optim.Adam(model.parameters(), EXPERIMENT.optimiser.learning_rate)
        self.cpu, self.losses = 0.0, []

    def step(self, batch: tuple[torch.Tensor, torch.Tensor], *, counts: bool = False) -> None:
        """One step of the optimiser."""
        start = time.process_time()
        self.optimiser.zero_grad()
        with self.counter if counts else self.mesa or nullcontext():
            loss = EXPERIMENT.objective.loss(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), EXPERIMENT.optimiser.clip_norm or 1.0)
        self.optimiser.step()
        self.cpu += time.process_time() - start
        self.losses.append(float(loss.detach()))

    @torch.no_grad()
    def validation(self, part) -> float:
        """The mean squared error over all windows of the validation part."""
        self.model.eval()
        total = 0.0
        for indices in torch.arange(len(part)).split(128):
            total += float(EXPERIMENT.objective.loss(self.model, part.batch(indices))) * len(indices)
        return total / len(part)


def train(seed: int, steps: int, splits, published: bool) -> list[dict[str, object]]:
    """Rows of all kinds for one seed."""
    torch.manual_seed(seed)
    model = (replace(EXPERIMENT.model, **PUBLISHED) if published else EXPERIMENT.model).build(splits)
    runs = [Training(copy.deepcopy(model), kind, seed) for kind in KINDS]
    size = EXPERIMENT.budget.batch_size
    order = torch.randperm(len(splits.train))
    turn = 1 if published else TURN
    for first in range(0, steps, turn):
        state = torch.random.get_rng_state()
        leader = first // turn % len(runs)
        for run in runs[leader:] + runs[:leader]:
            torch.random.set_rng_state(state)
            for index in range(first, min(first + turn, steps)):
                run.step(splits.train.batch(order[torch.arange(index * size, (index + 1) * size) % len(order)]))
    rows = []
    for run in runs:
        assert run.counter is not None
        found = {"cpu_s": f"{run.cpu:.1f}", "train_mse": f"{sum(run.losses[-50:]) / len(run.losses[-50:]):.4f}"}
        if not published:
            found["validation_mse"] = f"{run.validation(splits.validation):.4f}"
            run.model.train()
        run.step(splits.train.batch(torch.arange(size)), counts=True)
        saved = run.counter.saved_bytes
        kept = saved.before if run.kind == "full" else saved.after
        rows.append(
            {"kind": run.kind, "seed": seed, "steps": steps, "batch": size, **found, "saved_mb": f"{kept / MB:.2f}"}
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def peak(kind: str) -> int:
    """The growth of the peak of this process."""
    splits = EXPERIMENT.data.open()
    torch.manual_seed(0)
    run = Training(EXPERIMENT.model.build(splits), kind, 0)
    run.step(splits.train.batch(torch.arange(8)))
    large = splits.train.batch(torch.arange(LARGE))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        run.step(large)
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return growth // 1024


def peaks(kind: str) -> dict[str, int]:
    """The growth in processes of their own."""
    found = {}
    for name, settings in (("peak_growth_mb", {}), ("peak_growth_mmap_mb", {"MALLOC_MMAP_THRESHOLD_": "1000000"})):
        command, own = [sys.executable, __file__, "--peak", kind], {**os.environ, **settings}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=own)
        found[name] = int(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--published", action="store_true", help="the network at its published size")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.peak is not None:
        print(peak(asked.peak))
        return
    growth = {kind: {} if asked.published else peaks(kind) for kind in KINDS}
    print(growth, file=sys.stderr, flush=True)
    splits = EXPERIMENT.data.open()
    found = [row for seed in asked.seeds for row in train(seed, asked.steps, splits, asked.published)]
    rows = [{**row, **growth[str(row["kind"])]} for row in found]
    if asked.csv is not None:
        write_csv(asked.csv, rows)


if __name__ == "__main__":
    main()
