"""The commands collect, pretrain, train and probe, from recording to table."""

from __future__ import annotations

import json

import pytest
import torch

from manyheads.lab.cli.main import main
from manyheads.lab.training.loop import fit_supervised
from manyheads.rl.encoders.frames import FrameEncoder
from manyheads.rl.pretraining.data import RecordingData
from manyheads.rl.pretraining.experiments import PretrainingModel, experiments
from manyheads.rl.pretraining.recording import Recording

from .play import moving_ball

LENGTHS = (60,) * 12


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moving_ball(LENGTHS).save(tmp_path / "play.safetensors")
    return tmp_path


def run(capsys, *arguments):
    status = main(["rl", *arguments, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


SMALL = ("model.dim=16", "model.heads=2", "model.patch=7", "model.projector=16", "budget.batch_size=32")


def test_an_encoder_is_pretrained_and_probed(here, capsys):
    recording = ("--recording", "play.safetensors")
    status, report, _ = run(capsys, "pretrain", "tov-vicreg-small", *SMALL, *recording, "--smoke")
    assert status == 0
    assert {"r2_pooled", "order_accuracy", "own_order_accuracy", "effective_rank"} <= set(report["mean"])
    (path,) = report["encoders"]
    status, document, _ = run(capsys, "probe", path, *recording, "--plot", "attention.png")
    assert status == 0
    random, found = document
    assert (random["encoder"], found["encoder"]) == ("random weights", path)
    assert found["metrics"]["r2_pooled"] == pytest.approx(report["mean"]["r2_pooled"], abs=1e-6)
    assert {"value", "low", "high"} == set(found["intervals"]["r2_pooled_above_random"])
    assert (here / "attention.png").stat().st_size > 1000
    assert FrameEncoder.load(path).stack == 3


@pytest.mark.parametrize("method", ["vicreg", "order", "moco", "dino"])
def test_the_common_train_command_trains_every_method(here, capsys, method):
    data = ("data.path=play.safetensors", "data.size=14")
    status, report, _ = run(capsys, "train", f"{method}-small", *SMALL, *data, "budget.max_steps=3", "--seeds", "1")
    assert status == 0
    assert 1 <= report["mean"]["effective_rank"] <= 16


def test_training_resumes_bit_for_bit(here):
    from dataclasses import replace

    (chosen,) = (e for e in experiments() if e.name == "moco-small")
    chosen = replace(
        chosen,
        data=RecordingData(size=14, path=here / "play.safetensors"),
        model=PretrainingModel("moco", dim=16, heads=2, patch=7, projector=16),
        budget=replace(chosen.budget, epochs=2, batch_size=64, checkpoint_every=3),
    )
    whole = fit_supervised(chosen, 1, here / "a", progress=False)
    fit_supervised(chosen, 1, here / "b", progress=False)
    # the newest checkpoint is the end; without it training continues from the one before
    newest = max((here / "b" / "checkpoints").glob("step-*.safetensors"))
    newest.unlink()
    assert fit_supervised(chosen, 1, here / "b", progress=False).metrics == whole.metrics


def test_collect_writes_a_recording(here, capsys):
    pytest.importorskip("ale_py")
    status, found, _ = run(capsys, "collect", "breakout", "--frames", "60", "--size", "21", "--out", "x.safetensors")
    assert status == 0
    made = Recording.load("x.safetensors")
    assert (found["frames"], found["digest"]) == (60, made.digest)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("collect", "pongg"), "did you mean 'pong'"),
        (("collect", "pong", "--out", "x.npz"), "expected a name that ends in .safetensors"),
        (("pretrain", "tov-vicreg-smal"), "did you mean 'tov-vicreg-small'"),
        (("pretrain", "order-small", "--recording", "absent.safetensors"), "no such file"),
        (("probe", "absent.safetensors", "--recording", "play.safetensors"), "no such file"),
        (("probe", "--recording", "play.safetensors"), "encoders: found none"),
        (("train", "order-small", "data.path=play.safetensors"), "size: found 14, expected 42"),
    ],
)
def test_bad_input_is_one_line_and_status_2(here, capsys, arguments, words):
    if arguments[0] == "collect":
        pytest.importorskip("ale_py")
    status, document, err = run(capsys, *arguments)
    assert (status, document) == (2, None)
    assert words in err
    assert "Traceback" not in err


def test_an_encoder_of_another_size_is_refused(here, capsys):
    made = FrameEncoder(28, {"channels": 3, "dim": 8, "depth": 1, "heads": 2, "patch": 14})
    made.save("x.safetensors")
    status, _, err = run(capsys, "probe", "x.safetensors", "--recording", "play.safetensors")
    assert status == 2
    assert "collect with --size 28" in err


def test_random_weights_are_those_of_their_seed():
    made = FrameEncoder(14, {"channels": 3, "dim": 8, "depth": 1, "heads": 2, "patch": 7})
    a, b, c = (made.with_random_weights(seed)(torch.ones(1, 3, 14, 14)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
