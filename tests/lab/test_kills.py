"""Trainings of the three applications, killed at 100 random moments: each resumed run equals an uninterrupted one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from manyheads.lab.data.storage import load_model
from manyheads.lab.domain import find_domain
from manyheads.lab.training import checkpoint
from manyheads.lab.training.experiment import Experiment, Splits
from manyheads.lab.training.loop import fit_supervised

pytestmark = pytest.mark.slow

# Number of kills per training, 100 in total.
MOMENTS = {
    ("forecasting", "national_illness-24-nlinear"): 34,
    ("recsys", "adult-hiformer"): 33,
    ("kws", "arabic-lmuformer"): 33,
}


@cache
def opened(domain: str, name: str) -> Splits:
    experiments = {one.name: one for one in find_domain(domain).load_experiments()}
    return experiments[name].data.open()


@dataclass(frozen=True)
class Held:
    """Data that were opened before the process forks."""

    domain: str
    name: str

    def open(self) -> Splits:
        return opened(self.domain, self.name)


def short(domain: str, name: str) -> Experiment:
    """Return the experiment with 20 steps, over several epochs for small data, and a checkpoint every second step."""
    experiments = {one.name: one for one in find_domain(domain).load_experiments()}
    whole: Experiment = experiments[name]
    data: Any = Held(domain, name)
    budget = replace(whole.budget, epochs=3, max_steps=20, checkpoint_every=2)
    return replace(whole, name=f"{name}-killed", data=data, budget=budget)


def train(experiment: Experiment, folder: Path) -> None:
    torch.set_num_threads(1)
    fit_supervised(experiment, 1, folder, progress=False)


def train_and_count(experiment: Experiment, folder: Path, begun: Any) -> None:
    """Train and count the checkpoints begun, for the process that kills this one."""
    saved = checkpoint.save_checkpoint

    def counting(*args: Any) -> None:
        begun.value += 1
        saved(*args)

    checkpoint.save_checkpoint = counting
    train(experiment, folder)


def outcome(folder: Path) -> tuple[bytes, dict[str, Any], Any, list[str]]:
    weights, header = load_model(folder, fix="")
    held = {name: tensor.numpy().tobytes() for name, tensor in weights.items()}
    left = sorted(path.name for path in folder.rglob("*") if ".part" in path.name)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    untimed = [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]
    return json.dumps(untimed).encode(), held, header["metrics"], left


@pytest.mark.parametrize(("domain", "name"), MOMENTS)
def test_a_run_killed_at_random_moments_ends_like_an_uninterrupted_one(domain, name, tmp_path):
    fork = multiprocessing.get_context("fork")
    experiment = short(domain, name)
    begun = fork.Value("i", 0)
    train_and_count(experiment, tmp_path / "uninterrupted", begun)
    checkpoint.save_checkpoint = checkpoint_save
    expected, count = outcome(tmp_path / "uninterrupted"), begun.value
    assert count >= 8
    moments, killed, resumed = random.Random(11), 0, set()
    for attempt in range(MOMENTS[domain, name]):
        folder, begun = tmp_path / f"killed-{attempt}", fork.Value("i", 0)
        process = fork.Process(target=train_and_count, args=(experiment, folder, begun))
        process.start()
        after = moments.randrange(count)
        while begun.value < after and process.is_alive():
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 0.05))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        found = checkpoint.load_latest(folder / "checkpoints", expect={"seed": 1})
        resumed.add(0 if found is None else found[1]["position"]["step"])
        train(experiment, folder)
        assert outcome(folder) == expected, f"moment {attempt}: after {after} checkpoints"
    assert killed >= 0.8 * MOMENTS[domain, name], "done before it was killed: the test shows nothing"
    assert len(resumed) >= 4, f"killed at the same place again and again: {resumed}"


checkpoint_save = checkpoint.save_checkpoint
