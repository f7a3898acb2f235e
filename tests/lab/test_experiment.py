"""Experiments: description and hash, training loop, schedules, reports, overrides."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from manyheads.core.errors import ArgumentError, DataError, MissingPackageError, UnknownNameError
from manyheads.lab.cli.experiments import overridden
from manyheads.lab.cli.leaderboard import leaderboard
from manyheads.lab.data.storage import load_tensors, save_tensors
from manyheads.lab.training.experiment import Budget, find_experiment
from manyheads.lab.training.loop import fit_supervised, launch, rate_factor, train_model, validation_loss
from manyheads.lab.training.optimisers import Optimiser
from manyheads.lab.training.report import Report, SeedResult
from manyheads.lab.training.run import run

from .toy import Rows, ToyData, ToyModel, ToyObjective, toy


def quick(**changes):
    return toy(budget=Budget(epochs=1, batch_size=8), **changes)


def test_the_hash_changes_only_with_what_determines_the_result():
    base = toy()
    assert base.hash == toy().hash
    assert replace(base, seeds=(5,), source=None).hash == base.hash
    for other in (toy(model=ToyModel(hidden=9)), toy(data=ToyData(seed=8)), toy(optimiser=Optimiser("sgd"))):
        assert other.hash != base.hash


def test_a_run_writes_its_files_and_reports_mean_and_sd(tmp_path):
    report = run(quick(), root=tmp_path, progress=False)
    folder = tmp_path / "toy" / quick().hash
    assert {p.name for p in folder.iterdir()} == {"experiment.json", "report.json", "seed-1", "seed-2"}
    assert {p.name for p in (folder / "seed-1").iterdir()} == {
        "checkpoints",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    }
    a, b = report.metrics["1"]["mse"], report.metrics["2"]["mse"]
    assert a != b
    assert report.mean["mse"] == pytest.approx((a + b) / 2)
    assert report.sd["mse"] == pytest.approx(abs(a - b) / math.sqrt(2))
    assert report.parameters == 5 * 8 + 8 + 8 + 1
    assert Report.read(folder / "report.json") == report


def test_a_finished_run_is_read_from_disk_unless_resume_is_false(tmp_path):
    calls = []

    def counting(*args, **kwargs):
        calls.append(args[1])
        return fit_supervised(*args, **kwargs)

    first = run(quick(), root=tmp_path, progress=False, fit=counting)
    assert run(quick(), root=tmp_path, progress=False, fit=counting).metrics == first.metrics
    assert calls == [1, 2]
    run(quick(), root=tmp_path, seeds=[1], progress=False, fit=counting, resume=False)
    assert calls == [1, 2, 1]


def test_one_seed_has_no_standard_deviation(tmp_path):
    assert run(quick(), root=tmp_path, seeds=[3], progress=False).sd == {"mse": None}


def test_no_seed_and_a_repeated_seed_are_refused(tmp_path):
    for seeds in ([], [1, 1]):
        with pytest.raises(ArgumentError, match="seeds"):
            run(quick(), root=tmp_path, seeds=seeds, progress=False)


def test_smoke_is_one_epoch_of_twenty_steps_and_one_seed():
    small = toy().smoke()
    assert (small.budget.epochs, small.budget.max_steps, small.seeds) == (1, 20, (1,))


def test_early_stopping_keeps_the_best_weights():
    experiment = toy(
        optimiser=Optimiser("sgd", 0.05),
        budget=Budget(epochs=40, batch_size=4, patience=2),
        model=ToyModel(dropout=0.0),
    )
    model, result = train_model(experiment, 1, None, progress=False)
    assert result.epochs < 40
    again, shorter = train_model(
        replace(experiment, budget=replace(experiment.budget, epochs=result.epochs - 2, patience=None)), 1, None,
        progress=False,
    )  # fmt: skip
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert a.equal(b)
    assert shorter.metrics == result.metrics


def test_schedules_by_epoch_have_the_documented_factors():
    halving, cosine = Optimiser(schedule="halving"), Optimiser(schedule="cosine")
    assert [rate_factor(halving, e, 10) for e in range(4)] == [1, 1, 0.5, 0.25]
    assert rate_factor(cosine, 0, 10) == 1
    assert rate_factor(cosine, 10, 10) == pytest.approx(0)
    assert rate_factor(Optimiser(), 5, 10) == 1
    assert [rate_factor(Optimiser(schedule="steps"), e, 30) for e in (9, 10, 29)] == [1, 0.85, 0.85**2]
    plateau = Optimiser(schedule="plateau")
    assert [rate_factor(plateau, 9, 10, worse=w) for w in range(5)] == pytest.approx([1, 0.1, 0.01, 0.001, 0.001])


class Monitored(ToyObjective):
    """An objective whose monitor is best in the third epoch and worse in the second than in the first."""

    def __init__(self):
        self.measures = iter([3.0, 4.0, 1.0, 2.0, 2.0])

    def monitor(self, model, part):
        return next(self.measures)


def test_a_monitor_replaces_the_validation_loss_in_early_stopping(tmp_path):
    experiment = toy(objective=Monitored(), budget=Budget(epochs=9, batch_size=8, patience=2))
    _, result = train_model(experiment, 1, tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["validation_loss"] for line in lines] == [3, 4, 1, 2, 2]
    assert result.epochs == 5


def test_plateau_divides_the_rate_by_10_after_each_epoch_without_improvement(tmp_path):
    experiment = toy(
        objective=Monitored(),
        optimiser=Optimiser("adam", 0.01, schedule="plateau"),
        budget=Budget(epochs=5, batch_size=8),
    )
    train_model(experiment, 1, tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])


class Stream(Rows):
    """The same rows as a stream: no access by index."""

    batch = None

    def epoch(self, size, skip, seed):
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for start in range(skip * size, len(self) - size + 1, size):
            chosen = order[start : start + size]
            yield self.x[chosen], self.y[chosen]


class StreamedToy(ToyData):
    def open(self):
        splits = super().open()
        return replace(splits, train=Stream(splits.train.x, splits.train.y))


def test_an_interrupted_run_on_a_stream_resumes_to_the_same_weights(tmp_path):
    whole = toy(data=StreamedToy())
    model, result = train_model(whole, 1, tmp_path / "a", progress=False)
    half = replace(whole, budget=replace(whole.budget, max_steps=10))
    train_model(half, 1, tmp_path / "b", progress=False)
    for path in (tmp_path / "b/checkpoints").glob("step-*10.safetensors"):
        # the remaining checkpoint was made inside an epoch
        path.unlink()
    # the experiments differ in max_steps only, which is part of the hash in the checkpoint
    for path in (tmp_path / "b/checkpoints").glob("*.safetensors"):
        tensors, metadata = load_tensors(path, kind="checkpoint", fix="")
        save_tensors(path, tensors, {**metadata, "experiment": whole.hash}, kind="checkpoint")
    resumed, again = train_model(whole, 1, tmp_path / "b", progress=False)
    assert again.metrics == result.metrics
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_one_cycle_warms_up_and_anneals_inside_epochs():
    cycle = Optimiser(schedule="one-cycle", warm_up=0.25)
    assert [rate_factor(cycle, done, 8) for done in (0, 1, 2, 5, 8)] == pytest.approx([0.04, 0.52, 1, 0.5, 0])


class Empty(ToyData):
    """Data with an empty validation part."""

    def open(self):
        splits = super().open()
        return replace(splits, validation=Rows(splits.validation.x[:0], splits.validation.y[:0]))


def test_keeping_the_last_weights_needs_no_validation_part(tmp_path):
    experiment = toy(data=Empty(), budget=Budget(epochs=3, batch_size=4, keep="last"))
    model, result = train_model(experiment, 1, tmp_path, progress=False)
    assert result.epochs == 3
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("validation_loss") for line in lines] == [None] * 3
    longer = replace(experiment, budget=replace(experiment.budget, epochs=4))
    other, _ = train_model(longer, 1, None, progress=False)
    assert not model.state_dict()["0.weight"].equal(other.state_dict()["0.weight"])


@pytest.mark.parametrize(("keep", "same"), [("best", False), ("last", True)])
def test_keep_last_returns_the_weights_after_the_last_step(tmp_path, keep, same):
    # one batch holds the whole validation part
    budget = Budget(epochs=6, batch_size=16, keep=keep)
    worse = toy(optimiser=Optimiser("sgd", 0.5), model=ToyModel(dropout=0.0), budget=budget)
    model, _ = train_model(worse, 1, tmp_path, progress=False)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["validation_loss"]
    found = worse.objective.metrics(model, worse.data.open().validation)["mse"]
    assert (found == pytest.approx(last, rel=1e-5)) is same


@pytest.mark.parametrize("max_steps", [None, 13])
def test_keep_mean_averages_the_weights_of_the_last_quarter_of_the_steps(monkeypatch, max_steps):
    """The reference is the mean in float64 of the weights recorded after each step."""

    class WithBatchNorm(ToyModel):
        def build(self, splits):
            return nn.Sequential(nn.BatchNorm1d(5), super().build(splits))

    seen, step = [], torch.optim.Adam.step

    def recorded(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        seen.append([p.detach().double().clone() for group in self.param_groups for p in group["params"]])
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    budget = Budget(epochs=4, batch_size=4, keep="mean", max_steps=max_steps)
    model, _ = train_model(toy(model=WithBatchNorm(), budget=budget), 1, None, progress=False)
    assert len(seen) == (max_steps or 32)
    expected = [torch.stack(column).mean(0) for column in zip(*seen[-round(len(seen) / 4) :], strict=True)]
    for found, mean, last in zip(model.parameters(), expected, seen[-1], strict=True):
        torch.testing.assert_close(found.double(), mean, atol=1e-6, rtol=1e-6)
        assert not torch.allclose(found.double(), last, atol=1e-5)
    assert model[0].num_batches_tracked == len(seen)


def test_a_choice_of_weights_that_needs_an_absent_validation_part_is_refused():
    with pytest.raises(ArgumentError, match="keep: found 'best' without a validation part, expected 'last'"):
        fit_supervised(toy(data=Empty()), 1, None, progress=False)
    with pytest.raises(ArgumentError, match="patience: found 2 with keep='last'"):
        fit_supervised(toy(budget=Budget(keep="last", patience=2)), 1, None, progress=False)
    with pytest.raises(ArgumentError, match="patience: found 2 with keep='mean'"):
        fit_supervised(toy(budget=Budget(keep="mean", patience=2)), 1, None, progress=False)


def test_validation_is_shuffled_and_drops_the_last_incomplete_batch():
    part = Rows(torch.arange(16.0)[:, None], torch.zeros(16, 1))
    order, batches = torch.Generator().manual_seed(3), []

    class Recorded:
        def loss(self, model, batch):
            batches.append(batch[0].flatten().tolist())
            return batch[0].mean()

    experiment = toy(objective=Recorded(), budget=Budget(batch_size=5))
    found = validation_loss(experiment, torch.nn.Identity(), part, order, launch(experiment.budget))
    expected = torch.randperm(16, generator=torch.Generator().manual_seed(3)).tolist()
    assert batches == [expected[:5], expected[5:10], expected[10:15]]
    assert found == pytest.approx(sum(expected[:15]) / 15)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ArgumentError, match="batch_size: found 64, the train part has only 32"):
        fit_supervised(toy(budget=Budget(batch_size=64)), 1, None, progress=False)


def test_overrides_set_nested_fields_and_refuse_unknown_ones():
    changed = overridden(toy(), ["model.hidden=16", "optimiser.learning_rate=0.5", "budget.epochs=2"])
    assert (changed.model.hidden, changed.optimiser.learning_rate, changed.budget.epochs) == (16, 0.5, 2)
    assert changed.model.dropout == 0.2
    for wrong in ("model.hiden=3", "model.hidden=many", "nothing=1", "model.hidden"):
        with pytest.raises(ArgumentError, match="override"):
            overridden(toy(), [wrong])


@dataclass(frozen=True)
class ManyFields(ToyModel):
    norm: bool = True
    widths: tuple[int, ...] = (4, 4)
    rank: int | None = None


def test_overrides_accept_booleans_empty_tuples_and_none():
    base = toy(model=ManyFields())
    for word, expected in (("False", False), ("false", False), ("True", True), ("true", True)):
        assert overridden(base, [f"model.norm={word}"]).model.norm is expected
    changed = overridden(base, ["model.widths=", "model.rank=3"])
    assert (changed.model.widths, changed.model.rank) == ((), 3)
    assert overridden(changed, ["model.rank=None", "model.widths=8,2"]).model == ManyFields(widths=(8, 2))
    with pytest.raises(ArgumentError, match=r"override 'model\.norm=3': found '3', expected True or False"):
        overridden(base, ["model.norm=3"])


def test_an_unknown_experiment_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'toy'"):
        find_experiment("toi", [toy()])


def test_tensorboard_events_need_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match=r"tensorboard is not installed: pip install .*\[lab,tensorboard\]"):
        fit_supervised(quick(), 1, tmp_path, progress=False, tensorboard=True)


def test_tensorboard_events_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    fit_supervised(quick(), 1, tmp_path, progress=False, tensorboard=True)
    assert list((tmp_path / "events").glob("events.*"))


def test_the_leaderboard_shows_mean_sd_and_the_published_figure(tmp_path):
    run(quick(), root=tmp_path / "runs", progress=False)
    outcome = leaderboard(tmp_path / "runs", str(tmp_path / "board.html"))
    assert outcome.document[0]["source"]["reported"] == {"mse": 1.5}
    page = (tmp_path / "board.html").read_text()
    assert "±" in page
    assert "0000.00000 Table 1" in page
    json.dumps(outcome.document, allow_nan=False)


def test_files_that_change_between_two_seeds_stop_the_run(tmp_path):
    class OwnFile(ToyData):
        def content(self):
            return (tmp_path / "file").read_text()

    (tmp_path / "file").write_text("a")

    def fit(*arguments, **options):
        (tmp_path / "file").write_text("b")
        return SeedResult({"mse": 0.0}, 1, 0.0, 1)

    with pytest.raises(DataError, match="the files of the data changed before seed 2"):
        run(toy(data=OwnFile()), root=tmp_path / "runs", seeds=(1, 2), fit=fit)
