"""Training runs: files, metrics, resuming after a kill, failing environments."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from manyheads.core.errors import CheckpointError, DataError, ManyheadsError, ManyheadsWarning
from manyheads.lab.cli.experiments import overridden
from manyheads.lab.training.run import run
from manyheads.rl.experiments import experiments
from manyheads.rl.training.learner import AgentOptimiser
from manyheads.rl.training.loop import Training, fit_agent
from manyheads.rl.training.options import AgentOptions
from manyheads.rl.training.ppo import PPO
from manyheads.rl.training.settings import AgentExperiment, AgentModel, StepBudget, Task
from manyheads.rl.training.vmpo import VMPO
from tests.rl.toys import Anything, Recall

STEPS = 4 * 8 * 6
MODEL = AgentModel(width=16, depth=1, memory=8, normalise_observations=True, previous_reward=True)


class Killed(BaseException):
    """Stands for a kill of the process."""


class Faulty(VectorEnv):
    """Wrap a toy: fail, or stop the process, at one step."""

    def __init__(self, inner: VectorEnv, at: int | None, error: type[BaseException]) -> None:
        self.inner, self.at, self.error, self.count = inner, at, error, 0
        self.num_envs, self.metadata = inner.num_envs, inner.metadata
        for name in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
            setattr(self, name, getattr(inner, name))
        if hasattr(inner, "get_state"):
            self.get_state, self.set_state = inner.get_state, inner.set_state  # ty: ignore

    def reset(self, **options: Any) -> Any:
        return self.inner.reset(**options)

    def step(self, actions: Any) -> Any:
        self.count += 1
        if self.count == self.at:
            raise self.error("the wheel came off")
        return self.inner.step(actions)


@dataclass(frozen=True)
class ToyTask(Task):
    """A task on toys; the step at which it fails is no part of the description."""

    environment: str = "recall"
    environments: int = 4
    evaluation_episodes: int = 5

    def open(self, count: int | None = None) -> VectorEnv:
        number = count or self.environments
        spaces_ = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)
        toy = Recall(number, 5) if self.environment == "recall" else Anything(number, *spaces_)
        at, FAULT["at"] = FAULT["at"], None
        return Faulty(toy, at, FAULT["error"])


AGENTS = [one for one in experiments() if isinstance(one, AgentExperiment)]
FAULT: dict[str, Any] = {"at": None, "error": Killed}


def _experiment(**changes: Any) -> AgentExperiment:
    algorithm = changes.pop("algorithm", PPO(segment=8, epochs=2, minibatches=2, rewards="normalised"))
    budget = changes.pop("budget", StepBudget(STEPS - 40))
    return AgentExperiment("toy", ToyTask(**changes), MODEL, algorithm, AgentOptimiser(), budget)


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "cpu_s"} for line in lines]


def _fit(experiment: AgentExperiment, folder: Path, **options: Any) -> Any:
    return fit_agent(experiment, 3, folder, progress=False, **options)


@pytest.mark.parametrize("algorithm", [PPO, VMPO])
@pytest.mark.parametrize("at", [3, 8 * 3 + 1, 8 * 4 + 7])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch, algorithm: type, at: int):
    settings = algorithm(segment=8, epochs=2, minibatches=2, rewards="normalised")
    experiment = _experiment(algorithm=settings, budget=StepBudget(STEPS - 40, keep="best"))
    whole = _fit(experiment, tmp_path / "whole")
    monkeypatch.setitem(FAULT, "at", at)
    with pytest.raises(Killed):
        _fit(experiment, tmp_path / "killed")
    torch.rand(5)
    resumed = _fit(experiment, tmp_path / "killed")
    assert resumed.metrics == whole.metrics
    assert _lines(tmp_path / "killed") == _lines(tmp_path / "whole")
    assert len(_lines(tmp_path / "whole")) == whole.epochs >= 5
    assert (tmp_path / "killed/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_another_seed_gives_other_numbers(tmp_path: Path):
    experiment = _experiment()
    fit_agent(experiment, 4, tmp_path / "other", progress=False)
    _fit(experiment, tmp_path / "own")
    assert _lines(tmp_path / "other") != _lines(tmp_path / "own")


def test_environments_without_a_state_begin_anew_and_say_so(tmp_path: Path, monkeypatch):
    experiment = _experiment(environment="anything")
    whole = _fit(experiment, tmp_path / "whole")
    monkeypatch.setitem(FAULT, "at", 8 * 3 + 1)
    with pytest.raises(Killed):
        _fit(experiment, tmp_path / "killed")
    with pytest.warns(ManyheadsWarning, match="cannot store its state, so new episodes begin at update 3"):
        resumed = _fit(experiment, tmp_path / "killed")
    kept = _lines(tmp_path / "whole")[:3]
    assert _lines(tmp_path / "killed")[:3] == kept
    assert _lines(tmp_path / "killed")[3:] != _lines(tmp_path / "whole")[3:]
    assert resumed.metrics["steps"] >= experiment.budget.steps
    assert whole.epochs == len(_lines(tmp_path / "whole"))


@pytest.mark.parametrize("environment", ["anything", "recall"])
def test_resets_on_purpose_make_every_environment_exact(tmp_path: Path, monkeypatch, environment: str):
    experiment = _experiment(environment=environment, budget=StepBudget(STEPS - 40, reset_every=2))
    whole = _fit(experiment, tmp_path / "whole")
    monkeypatch.setitem(FAULT, "at", 8 * 3 + 1)
    with pytest.raises(Killed):
        _fit(experiment, tmp_path / "killed")
    assert _fit(experiment, tmp_path / "killed").metrics == whole.metrics
    assert _lines(tmp_path / "killed") == _lines(tmp_path / "whole")


def test_a_failing_environment_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch):
    experiment = _experiment()
    monkeypatch.setitem(FAULT, "at", 8 * 2 + 5)
    monkeypatch.setitem(FAULT, "error", RuntimeError)
    with pytest.raises(DataError, match=r"recall: found RuntimeError \(the wheel came off\) after \d+ steps, expected"):
        _fit(experiment, tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-000000001.safetensors", "step-000000002.safetensors"]
    assert _fit(experiment, tmp_path).metrics["steps"] >= experiment.budget.steps


def test_fresh_runs_begin_anew(tmp_path: Path):
    experiment = _experiment()
    _fit(experiment, tmp_path)
    first = _lines(tmp_path)
    _fit(experiment, tmp_path, resume=False)
    assert _lines(tmp_path) == first


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path: Path):
    _fit(_experiment(), tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        _fit(_experiment(algorithm=PPO(segment=8, minibatches=2, clip=0.1)), tmp_path)


def test_metrics_have_what_a_learning_curve_needs(tmp_path: Path):
    _fit(_experiment(), tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    names = {"update", "step", "return", "episodes", "entropy", "kl", "clip_share", "explained_variance", "cpu_s"}
    assert names <= set(line)
    assert line["learning_rate"] < 1e-3


def test_the_best_weights_are_those_that_earned_the_highest_mean_return():
    task = ToyTask()
    policy = MODEL.seeded(*((one := task.open()).single_observation_space, one.single_action_space), 0)
    training = Training(task.open(), policy, PPO(segment=32, minibatches=2), AgentOptimiser(), seed=0, keep_best=True)
    found = []
    for _ in range(12):
        weights = {name: one.clone() for name, one in policy.state_dict().items()}
        training.update(0.0)
        if len(training.recent) == 100:
            found.append((training.mean_return, weights))
    assert len(found) > 3
    mean, weights = max(found, key=lambda one: one[0])
    assert training.best_return == mean
    assert all(torch.equal(one, training.best[name]) for name, one in weights.items())


def test_run_writes_a_report_and_stops_at_the_target(tmp_path: Path):
    experiment = _experiment(target=-1.0, budget=StepBudget(10_000, until_target=True))
    with AgentOptions().trainer() as fit:
        report = run(experiment, root=tmp_path, seeds=[1, 2], progress=False, fit=fit)
    # 100 episodes of five steps, and the update that ends them
    assert 500 <= report.mean["steps"] < 700
    assert report.mean["reached"] == 1.0
    assert report.mean["steps_to_target"] == report.mean["steps"]
    assert (tmp_path / "toy" / experiment.hash / "seed-1" / "agent.safetensors").exists()


@pytest.mark.parametrize("experiment", AGENTS, ids=lambda one: one.name)
def test_every_experiment_has_a_smoke_run(tmp_path: Path, experiment: AgentExperiment):
    if experiment.data.environment.startswith("pong"):
        pytest.importorskip("ale_py")
    fewer = replace(experiment, data=replace(experiment.data, environments=4))
    result = fit_agent(fewer.smoke(), 1, tmp_path, progress=False)
    assert np.isfinite(result.metrics["return"])


def test_the_lstm_of_the_comparison_has_as_many_parameters():
    counts = {}
    for name in ("tmaze50-gtrxl", "tmaze50-lstm"):
        experiment = next(one for one in experiments() if one.name == name)
        assert isinstance(experiment, AgentExperiment)
        environments = experiment.data.open(1)
        spaces_ = environments.single_observation_space, environments.single_action_space
        counts[name] = sum(one.numel() for one in experiment.model.seeded(*spaces_, 0).parameters())
    assert counts["tmaze50-lstm"] == pytest.approx(counts["tmaze50-gtrxl"], rel=0.01)


def test_overrides_reach_every_part():
    base = next(one for one in experiments() if one.name == "tmaze50-gtrxl")
    changes = ("model.gate=residual", "model.memory=16", "objective.clip=0.1", "budget.steps=10", "data.environments=8")
    changed = overridden(
        base, (*changes, "optimiser.decay=linear", "data.options.corridor=20", "model.options=hidden,32")
    )
    assert isinstance(changed, AgentExperiment)
    assert changed.model.core_options() == {"gate": "residual", "memory": 16, "heads": 4, "hidden": 32}
    assert changed.data.options == {"corridor": 20}
    assert (changed.objective.clip, changed.budget.steps, changed.data.environments) == (0.1, 10, 8)  # ty: ignore
    assert changed.hash != base.hash
    with pytest.raises(ManyheadsError, match="the core 'lstm' has no memory"):
        AgentModel("lstm", memory=3).core_options()
