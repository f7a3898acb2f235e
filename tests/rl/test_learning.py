"""Agents learn: small tasks with a known answer."""

from __future__ import annotations

import pytest

from manyheads.rl.training.learner import AgentOptimiser, Algorithm
from manyheads.rl.training.loop import Training
from manyheads.rl.training.ppo import PPO
from manyheads.rl.training.settings import AgentModel
from manyheads.rl.training.vmpo import VMPO
from tests.rl.toys import Recall


def _trained(model: AgentModel, steps: int, target: float, algorithm: Algorithm | None = None) -> Training:
    environments = Recall(32, 10)
    policy = model.seeded(environments.single_observation_space, environments.single_action_space, 0)
    training = Training(environments, policy, algorithm or PPO(), AgentOptimiser(decay="constant"), seed=0)
    while training.steps < steps and (training.mean_return is None or training.mean_return < target):
        training.update(training.steps / steps)
    return training


@pytest.mark.slow
def test_gtrxl_learns_to_recall_a_cue():
    training = _trained(AgentModel(memory=12), 40_000, 0.95)
    assert training.mean_return is not None
    assert training.mean_return >= 0.95


@pytest.mark.slow
def test_gtrxl_learns_with_vmpo_too():
    training = _trained(AgentModel(memory=12), 60_000, 0.95, VMPO())
    assert training.mean_return is not None
    assert training.mean_return >= 0.95


@pytest.mark.slow
def test_an_agent_without_memory_cannot_recall_a_cue():
    training = _trained(AgentModel(core="none"), 40_000, 0.95)
    assert training.mean_return is not None
    assert training.mean_return < 0.5
