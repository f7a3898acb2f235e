"""Two processes under torchrun train like one: batch norm, dropout, missing labels, L2 and schedule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from manyheads.lab.data.storage import load_model
from manyheads.lab.training.loop import train_model
from manyheads.recsys.models.global_batch import BatchNorm, Dropout, everyones, summed
from manyheads.recsys.training.objective import predict_logits

from .two_processes import cases

HERE = Path(__file__).parent


def python(*arguments):
    command = [sys.executable, *(str(a) for a in arguments)]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def torchrun(*arguments):
    return python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Run the cases in two processes."""
    folder = tmp_path_factory.mktemp("together")
    python(HERE / "two_processes.py", "lab", folder)
    return folder


def compare(case, folder):
    """Return the largest differences from a run in one process: of weights, of logits (relative to the largest), of
    losses per epoch; and the epochs that both report."""
    experiment = cases()[case]
    alone = folder / f"{case}-alone"
    model, _ = train_model(experiment, 1, alone, progress=False)
    tensors, _ = load_model(folder / case, fix="")
    state = model.state_dict()
    assert tensors.keys() == state.keys()
    weights = {name: float((tensors[name] - state[name]).abs().max()) for name in state}
    held = experiment.data.open().test
    here = predict_logits(model, held)
    model.load_state_dict(tensors)
    logits = float(np.abs(predict_logits(model, held) - here).max() / np.abs(here).max())
    lines = [
        [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (folder / case, alone)
    ]
    assert [h["learning_rate"] for h in lines[0]] == [h["learning_rate"] for h in lines[1]]
    names = ("train_loss", "validation_loss")
    chosen = [abs(a[name] - b[name]) for a, b in zip(*lines, strict=True) for name in names]
    return weights, logits, max(chosen), lines


@pytest.mark.parametrize("case", ["tower", "norm", "apart", "shared"])
def test_two_processes_end_with_the_weights_of_one(case, together):
    weights, logits, chosen, _ = compare(case, together)
    assert max(weights.values()) < 1e-6, weights
    assert logits < 1e-6
    assert chosen < 1e-6


def test_without_a_process_group_the_modules_are_those_of_torch():
    x = torch.randn(16, 5)
    torch.manual_seed(3)
    expected = torch.nn.Dropout(0.3)(torch.nn.BatchNorm1d(5)(x))
    torch.manual_seed(3)
    torch.testing.assert_close(Dropout(0.3)(BatchNorm(5)(x)), expected, rtol=0, atol=0)
    assert everyones(x) is x
    assert summed(x) is x


@pytest.mark.slow
def test_the_command_under_torchrun_writes_the_run_of_one_process(tmp_path):
    """As a user types it. With SGD, because Adam turns the rounding of a tiny gradient into a full step."""
    command = ("-m", "manyheads.recsys", "train", "adult-hiformer+", "--optimiser.name", "sgd")
    command += ("--optimiser.learning-rate", "0.05", "--model.tower", "32", "--model.batch-norm", "False")
    command += ("--model.init-sd", "0.1", "--seeds", "1", "--smoke", "--json")
    report = json.loads(torchrun(*command, "--root", tmp_path / "two"))  # one document, though there are two processes
    alone = json.loads(python(*command, "--root", tmp_path / "one"))
    assert report["hash"] == alone["hash"]
    for name, value in alone["mean"].items():
        assert report["mean"][name] == pytest.approx(value, abs=1e-6)
    weights = [load_model(next((tmp_path / n).glob("*/*/seed-1")), fix="")[0] for n in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-6)
