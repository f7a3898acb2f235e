"""The experiments: tasks of memory, with and without it, and Pong.

Further ones by overrides, such as ``tmaze50-gtrxl model.gate=residual`` (TrXL-I), ``model.memory=16`` or
``model.core=lmu model.memory=64 model.heads=None``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from manyheads.lab.training.experiment import Experiment
from manyheads.rl.pretraining.experiments import experiments as pretraining_experiments
from manyheads.rl.training.learner import AgentOptimiser
from manyheads.rl.training.ppo import PPO
from manyheads.rl.training.settings import AgentExperiment, AgentModel, Option, StepBudget, Task

CONSTANT = AgentOptimiser(decay="constant")
# The answer to a card is paid at once: credit that reaches further is noise.
CARDS = PPO(discount=0.9, trace=0.9, rewards="normalised")
# Rewards of one for each step: returns up to 200 would swamp the loss of the policy. Without a floor, two of ten
# trainings unlearn the solved task.
BALANCE = PPO(discount=0.995, entropy_weight=0.003, rewards="normalised", advantage_floor=0.1)


def experiments() -> list[Experiment]:
    """Return all experiments."""
    cartpole = _experiment(
        "cartpole-hidden-gtrxl",
        Task("manyheads/HiddenCartPole-v0", target=475.0),
        AgentModel(memory=16, depth=1, heads=4),
        150_000,
        objective=BALANCE,
        optimiser=AgentOptimiser(),
        until_target=False,
        keep="best",
        # 1 to 10 were seen with other settings
        seeds=(11, 12, 13, 14, 15),
    )
    reactive = AgentModel("none", depth=1, encoder_depth=2)
    return [
        _experiment("tmaze10-gtrxl", _maze(10), _gtrxl(12), 40_000),
        _experiment("tmaze10-none", _maze(10), reactive, 40_000),
        _experiment("tmaze50-gtrxl", _maze(50), _gtrxl(52), 150_000),
        # As many parameters as the GTrXL. Learning rates .0003, .001 and .003 with entropy weights .01 and .03 were
        # tried with another seed: no other setting reached the target.
        _experiment(
            "tmaze50-lstm",
            _maze(50),
            AgentModel("lstm", width=160, depth=1),
            150_000,
            objective=PPO(entropy_weight=0.03),
            optimiser=AgentOptimiser(3e-3, decay="constant"),
        ),
        _experiment(
            "repeat4-gtrxl",
            Task("manyheads/RepeatPrevious-v0", options={"k": 4}, target=0.9),
            _gtrxl(16),
            150_000,
            objective=CARDS,
        ),
        cartpole,
        replace(cartpole, name="cartpole-hidden-none", model=reactive),
        _experiment(
            "pong-42",
            Task("pong-42", environments=8, evaluation_episodes=20, deterministic=False),
            AgentModel("none", width=256, depth=1, encoder="small-cnn", previous_action=False),
            1_500_000,
            objective=PPO(segment=128, clip=0.1, rewards="sign"),
            optimiser=AgentOptimiser(6e-4),
            until_target=False,
        ),
        *pretraining_experiments(),
    ]


def _maze(corridor: int) -> Task:
    options: Mapping[str, Option] = {"corridor": corridor}
    return Task("manyheads/TMaze-v0", options=options, target=0.95)


def _gtrxl(memory: int) -> AgentModel:
    return AgentModel(memory=memory, heads=4)


def _experiment(
    name: str,
    task: Task,
    model: AgentModel,
    steps: int,
    *,
    objective: PPO | None = None,
    optimiser: AgentOptimiser = CONSTANT,
    until_target: bool = True,
    keep: Literal["last", "best"] = "last",
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5),
) -> AgentExperiment:
    budget = StepBudget(steps, until_target=until_target, keep=keep)
    return AgentExperiment(name, task, model, objective or PPO(), optimiser, budget, seeds)
