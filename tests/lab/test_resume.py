"""Resuming: a run killed at any moment resumes and gives bit-identical results."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from manyheads.core.errors import CheckpointError, ManyheadsWarning
from manyheads.lab.data import files
from manyheads.lab.data.storage import load_model, load_tensors, save_tensors
from manyheads.lab.training import checkpoint
from manyheads.lab.training.checkpoint import load_latest, save_checkpoint, save_cpu_seconds
from manyheads.lab.training.experiment import Budget
from manyheads.lab.training.loop import fit_supervised, latest_of_all

from .toy import ToyData, ToyModel, toy

KILLED = toy(budget=Budget(epochs=6, batch_size=4, checkpoint_every=3))


def train(folder):
    torch.set_num_threads(1)
    return fit_supervised(KILLED, 1, Path(folder), progress=False)


def outcome(folder):
    weights, metadata = load_model(folder, fix="")
    return (folder / "metrics.jsonl").read_bytes(), {k: v.tolist() for k, v in weights.items()}, metadata["metrics"]


def train_and_count(folder, begun):
    """Train and count the checkpoints begun, for the process that kills this one."""
    saved = checkpoint.save_checkpoint

    def counting(*args):
        begun.value += 1
        saved(*args)

    checkpoint.save_checkpoint = counting
    train(folder)


def test_a_run_killed_at_ten_random_moments_gives_the_same_result(tmp_path):
    """A moment is a random number of checkpoints plus a random delay, so that it does not depend on the machine's load.

    The processes are forked from this one, which has torch loaded, so that ten starts are cheap.
    """
    fork = multiprocessing.get_context("fork")
    train(tmp_path / "uninterrupted")
    expected = outcome(tmp_path / "uninterrupted")
    moments = random.Random(5)
    killed, resumed_from = 0, set()
    for attempt in range(10):
        folder, begun = tmp_path / f"killed-{attempt}", fork.Value("i", 0)
        process = fork.Process(target=train_and_count, args=(folder, begun))
        process.start()
        after = moments.randrange(18)
        while begun.value < after and process.is_alive():
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 0.01))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        found = load_latest(folder / "checkpoints", expect={"seed": 1})
        if found is not None:
            resumed_from.add(found[1]["position"]["step"])
        train(folder)
        assert outcome(folder) == expected
    assert killed >= 8, "the process was done before it was killed: the test shows nothing"
    assert len(resumed_from) >= 3, f"killed at the same place again and again: {resumed_from}"


@pytest.mark.parametrize(("keep", "stop"), [*[("best", n) for n in (1, 3, 8, 9, 17, 24)], ("mean", 39), ("mean", 42)])
def test_resuming_inside_and_between_epochs_is_exact(tmp_path, monkeypatch, keep, stop):
    experiment = replace(KILLED, budget=replace(KILLED.budget, keep=keep))

    def train(folder):
        fit_supervised(experiment, 1, folder, progress=False)

    train(tmp_path / "whole")

    class Stopped(Exception):
        pass

    saved = checkpoint.save_checkpoint

    def save_and_stop(folder, step, tensors, metadata):
        saved(folder, step, tensors, metadata)
        if step >= stop:
            raise Stopped

    monkeypatch.setattr(checkpoint, "save_checkpoint", save_and_stop)
    with pytest.raises(Stopped):
        train(tmp_path / "broken")
    monkeypatch.setattr(checkpoint, "save_checkpoint", saved)
    train(tmp_path / "broken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("theirs", "expected"), [(3, 3), (2, 2), (-1, None)])
def test_processes_resume_from_the_newest_checkpoint_that_all_have(tmp_path, theirs, expected):
    """The other process has none after step ``theirs``."""
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"x": torch.tensor([step])}, {"seed": 1, "position": {"step": step}})
    two = SimpleNamespace(all_gather=lambda own: torch.stack([own, torch.tensor(theirs)]))
    found = latest_of_all(tmp_path, {"seed": 1}, two)
    assert (None if found is None else found[0]["x"].item()) == expected


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"a": torch.full((3,), float(step))}, {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002.safetensors", "step-000000003.safetensors"]
    newest = tmp_path / "step-000000003.safetensors"
    content = newest.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b""):
        newest.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="step-000000003"):
            load_tensors(newest, kind="checkpoint", fix="")
        with pytest.warns(ManyheadsWarning, match=r"step-000000003.*the one before is taken"):
            found = load_latest(tmp_path, expect={})
        assert found is not None
        assert found[1]["step"] == 2


def test_a_fresh_run_never_resumes_an_older_one(tmp_path, monkeypatch):
    train(tmp_path)

    class Stopped(Exception):
        pass

    def save_once(folder, step, tensors, metadata):
        save_checkpoint(folder, step, tensors, metadata)
        raise Stopped

    monkeypatch.setattr(checkpoint, "save_checkpoint", save_once)
    with pytest.raises(Stopped):
        fit_supervised(KILLED, 1, tmp_path, progress=False, resume=False)
    found = load_latest(tmp_path / "checkpoints", expect={"seed": 1})
    assert found is not None
    assert found[1]["position"]["step"] == 3


def test_the_cpu_seconds_of_a_resumed_run_count_its_earlier_part(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def save_once(folder, seconds):
        save_cpu_seconds(folder, seconds + 1000.0)
        raise Stopped

    monkeypatch.setattr(checkpoint, "save_cpu_seconds", save_once)
    with pytest.raises(Stopped):
        fit_supervised(KILLED, 1, tmp_path, progress=False)
    monkeypatch.undo()
    assert fit_supervised(KILLED, 1, tmp_path, progress=False).cpu_seconds > 1000.0


def test_the_checkpoint_of_another_experiment_is_refused(tmp_path):
    save_checkpoint(tmp_path, 1, {"a": torch.zeros(1)}, {"experiment": "other", "seed": 1})
    with pytest.raises(CheckpointError, match=r"experiment is 'other', expected 'mine'"):
        load_latest(tmp_path, expect={"experiment": "mine"})


def test_tensors_keep_dtype_and_shape(tmp_path):
    tensors = {
        "a": torch.randn(2, 3).bfloat16(),
        "b": torch.arange(4)[::2],
        "c": torch.zeros(()),
        "d": torch.zeros(0, 2),
    }
    save_tensors(tmp_path / "t", tensors, {"x": [1, None]}, kind="test")
    loaded, metadata = load_tensors(tmp_path / "t", kind="test", fix="")
    assert metadata == {"x": [1, None]}
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


SCRIPT = """
import sys, torch
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
from tests.lab.toy import ToyModel, toy
from manyheads.lab.training.experiment import Budget
from manyheads.lab.data.storage import load_model, load_tensors, save_tensors
from manyheads.lab.training.loop import fit_supervised, latest_of_all
experiment = toy(model=ToyModel(dropout=0.0), budget=Budget(epochs=2, batch_size=4, precision="64-true"))
fit_supervised(experiment, 1, Path({folder!r}), progress=False)
"""


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    root = str(Path(__file__).parents[2])
    weights = {}
    for count in (1, 2):
        script = tmp_path / f"run{count}.py"
        script.write_text(textwrap.dedent(SCRIPT.format(root=root, folder=str(tmp_path / str(count)))))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        done = subprocess.run(
            [*(launcher if count > 1 else [sys.executable]), str(script)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        weights[count], _ = load_model(tmp_path / str(count), fix="")
    initial = toy(model=ToyModel(dropout=0.0))
    torch.manual_seed(1)
    start = initial.model.build(ToyData().open()).state_dict()
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[2][name], tensor, rtol=0, atol=1e-12)
        assert not torch.allclose(start[name].double(), tensor), f"{name} was not trained"
