"""Objective, optimisers, experiments, and the commands."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import run_commands
from manyheads.lab.cli.experiments import experiment_commands, overridden, overrides_first
from manyheads.lab.training.experiment import Budget, Experiment, find_experiment
from manyheads.lab.training.loop import train_model
from manyheads.recsys import domain
from manyheads.recsys.commands import commands
from manyheads.recsys.datasets.splits import prepare
from manyheads.recsys.features.layout import Batch
from manyheads.recsys.features.spec import infer_spec
from manyheads.recsys.features.tables import split_rows
from manyheads.recsys.models import MODELS, config_of
from manyheads.recsys.models.tokens import all_tables
from manyheads.recsys.training.experiments import BARS, experiments
from manyheads.recsys.training.objective import LogLoss, predict_logits
from manyheads.recsys.training.optimisers import Joint, SplitOptimiser
from manyheads.recsys.training.recommender import Prepared


def manyheads(*arguments):
    every = {**experiment_commands(domain), **commands}
    return run_commands("manyheads recsys", domain.summary, every, overrides_first([str(a) for a in arguments]))


@pytest.fixture
def splits(shop):
    parts = split_rows(shop, seed=3)
    return prepare(parts, infer_spec(shop, label="bought"), ("bought",)).splits


def experiment(splits, **changes):
    config = config_of("hiformer+", {"dim": 4, "tower": (8,)})
    made = Experiment("t", Prepared(splits), config, LogLoss(1e-3), budget=Budget(epochs=3, batch_size=32))
    return replace(made, **changes)


class Fixed(nn.Module):
    """Return given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, ids, numbers):
        return self.logits


def labelled(labels):
    return Batch(torch.zeros(len(labels), 1, dtype=torch.int64), torch.zeros(len(labels), 0), torch.tensor(labels))


def test_the_loss_is_the_mean_cross_entropy():
    logits = torch.tensor([[0.3], [-2.0], [1.0]])
    p = torch.sigmoid(logits[:, 0])
    expected = -(p[0].log() + (1 - p[1]).log() + p[2].log()) / 3
    torch.testing.assert_close(LogLoss().loss(Fixed(logits), labelled([[1.0], [0.0], [1.0]])), expected)


def test_missing_labels_add_nothing_and_tasks_are_weighted():
    logits = torch.tensor([[0.3, 1.0], [-2.0, 0.5]])
    nan = float("nan")
    p = torch.sigmoid(logits)
    expected = -(p[0, 0].log() + (1 - p[1, 0]).log()) / 2 - 3 * (1 - p[1, 1]).log()
    loss = LogLoss(task_weights=(1.0, 3.0)).loss(Fixed(logits), labelled([[1.0, nan], [0.0, 0.0]]))
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ArgumentError, match="task_weights: found 1, expected one for each of the 2 tasks"):
        LogLoss(task_weights=(1.0,)).loss(Fixed(logits), labelled([[1.0, nan], [0.0, 0.0]]))


@pytest.mark.parametrize("where", ["table", "batch"])
def test_l2_is_added_in_training_for_the_table_or_the_batch_rows(splits, where):
    model = config_of("dnn", {"dim": 3, "hidden": (), "init_sd": 1.0}).build(splits)
    batch = splits.train.batch(torch.arange(3))
    plain, with_l2 = LogLoss(), LogLoss(0.5, where)
    penalty = sum(t.penalty(batch.ids if where == "batch" else None) for t in all_tables(model))
    torch.testing.assert_close(with_l2.loss(model, batch) - plain.loss(model, batch), 0.5 * penalty)
    model.eval()
    torch.testing.assert_close(with_l2.loss(model, batch), plain.loss(model, batch))


def test_embedding_tables_and_dense_parameters_have_separate_optimisers(splits):
    model = config_of("dnn", {"dim": 3, "hidden": (), "init_sd": 1.0, "numeric_tokens": 1}).build(splits)
    optimiser = SplitOptimiser("sgd", 0.1, tables="adagrad", table_rate=0.5).make(model)
    assert [type(part) for part in optimiser.parts] == [torch.optim.Adagrad, torch.optim.SGD]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    LogLoss().loss(model, splits.train.batch(torch.arange(8))).backward()
    optimiser.step()
    for name, p in model.named_parameters():
        change = before[name] - p.detach()
        if name == "tokens.tables.weight":  # Adagrad's first step: the rate times the sign
            torch.testing.assert_close(change, 0.5 * p.grad.sign() * (p.grad.abs() > 0), rtol=1e-3, atol=1e-4)
        else:
            torch.testing.assert_close(change, 0.1 * p.grad, rtol=1e-4, atol=1e-6)


def test_a_joint_optimiser_resumes_from_its_state(splits):
    def steps(model, optimiser, batches):
        for index in batches:
            optimiser.zero_grad()
            LogLoss().loss(model, splits.train.batch(torch.arange(8) + index)).backward()
            optimiser.step()

    config, kind = config_of("lr"), SplitOptimiser("adam", 0.1)
    whole, half, rest = (config.build(splits) for _ in range(3))
    half.load_state_dict(whole.state_dict())
    first, second = kind.make(whole), kind.make(half)
    steps(whole, first, range(4))
    steps(half, second, range(2))
    rest.load_state_dict(half.state_dict())
    third = kind.make(rest)
    third.load_state_dict(second.state_dict())
    assert isinstance(third, Joint)
    steps(rest, third, range(2, 4))
    for a, b in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_interrupted_run_with_two_optimisers_resumes_to_the_same_weights(splits, tmp_path):
    whole = experiment(splits, optimiser=SplitOptimiser("adam", 0.01, schedule="plateau"))
    half = replace(whole, budget=replace(whole.budget, epochs=1))
    model, _ = train_model(whole, 1, tmp_path / "a", progress=False)
    from manyheads.lab.data.storage import load_tensors, save_tensors

    train_model(half, 1, tmp_path / "b", progress=False)
    for path in (tmp_path / "b/checkpoints").glob("*.safetensors"):
        tensors, metadata = load_tensors(path, kind="checkpoint", fix="")
        position = {**metadata["position"], "finished": False}
        save_tensors(path, tensors, {**metadata, "experiment": whole.hash, "position": position}, kind="checkpoint")
    resumed, _ = train_model(whole, 1, tmp_path / "b", progress=False)
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_the_weights_with_the_best_validation_auc_are_kept(splits, tmp_path):
    objective = LogLoss()
    model, _ = train_model(experiment(splits, budget=Budget(epochs=6, batch_size=32)), 1, tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = [line["validation_loss"] for line in lines]
    assert len(set(measured)) > 1
    assert objective.monitor(model, splits.validation) == min(measured)
    labels, logits = splits.validation.labels[:, 0].numpy(), predict_logits(model, splits.validation)[:, 0]
    assert -min(measured) == pytest.approx(roc_auc_score(labels, logits))


def test_every_model_has_a_named_experiment_on_every_data_set():
    every = experiments()
    names = [e.name for e in every]
    assert len(set(names)) == len(names)
    for name in ("frappe-x1r", "ml-100k-time", "ml-100k-random", "adult"):
        assert {f"{name}-{model}" for model in MODELS} <= set(names)
    assert len({e.hash for e in every}) == len(names)
    for model, (auc, loss) in BARS.items():
        source = find_experiment(f"frappe-x1r-{model}", every).source
        assert source.reported == {"auc": auc, "log_loss": loss}
    assert find_experiment("frappe-x1r-hiformer+", every).source is None


def test_overrides_reach_the_settings():
    found = overridden(find_experiment("adult-hiformer", experiments()), ["model.rank=8", "objective.l2=0.5"])
    assert (found.model.rank, found.objective.l2) == (8, 0.5)


def test_train_then_predict_on_the_command_line(tmp_path, capsys):
    assert manyheads("train", "adult-hiformer", "--smoke", "--root", tmp_path / "runs", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert 0.5 < report["mean"]["auc"] < 1
    seed = next((tmp_path / "runs").glob("*/*/seed-*"))
    from manyheads.recsys.datasets.splits import adult_table

    rows = adult_table().head(30).drop(columns="income").assign(workclass="Freelance")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert manyheads("predict", seed, "--data", tmp_path / "rows.csv", "--out", tmp_path / "out.csv", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == 30
    assert {"field": "workclass", "unseen": 30, "missing": 0} in document["counts"]
    scored = pd.read_csv(tmp_path / "out.csv")
    assert scored["p(income=>50K)"].between(0, 1).all()
    assert np.allclose(scored["p(income=>50K)"], document["probabilities"]["p(income=>50K)"])


def test_from_a_csv_to_scores_on_the_command_line(shop, tmp_path, capsys):
    shop.to_csv(tmp_path / "shop.csv", index=False)
    csv, spec, model = tmp_path / "shop.csv", tmp_path / "spec.json", tmp_path / "model"
    assert manyheads("spec", csv, "--label", "bought", "--out", spec) == 0
    assert "price" in capsys.readouterr().out
    fit = ("fit", csv, "--label", "bought", "--spec", spec, "--model", "deepfm", "--epochs", "3", "--out", model)
    assert manyheads(*fit, "--group", "device", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == {"train": 360, "test": 40}
    assert {"auc", "log_loss", "ece", "gauc", "ndcg@10"} == set(document["metrics"]["bought"])
    assert manyheads("predict", model, "--data", csv) == 0
    assert "380 more rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fit", "shop.csv", "--label", "sold"), "shop.csv: column 'sold' is missing; found device"),
        (("fit", "no.csv", "--label", "bought"), "no.csv: no such file"),
        (("fit", "shop.csv", "--label", "device"), "label 'device': found 3 values"),
        (("fit", "shop.csv", "--label", "bought", "--split", "time"), "split: found time without a time column"),
        (("predict", ".", "--data", "shop.csv"), "holds no model.safetensors"),
        (("train", "adult-hifomer"), "unknown experiment 'adult-hifomer': did you mean 'adult-hiformer'"),
        (("spec", "shop.csv", "--out", "spec.txt"), "out: found spec.txt, expected a name that ends in .json"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(shop, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    shop.to_csv("shop.csv", index=False)
    assert manyheads(*arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
