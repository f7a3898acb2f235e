"""The estimator: learn, predict, save, load, for every kind of space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from manyheads.core.errors import ArgumentError, CheckpointError, DataError, UnknownNameError
from manyheads.rl import Agent
from manyheads.rl.training.rollout import Stream, act, advance
from manyheads.rl.training.stored import space_from_json, space_to_json
from tests.rl.test_encoders import SPACES
from tests.rl.toys import Anything, Recall

SMALL: dict[str, Any] = {"width": 16, "depth": 1, "segment": 8, "minibatches": 2, "epochs": 1}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-1, 1, (2,), np.float32),
}


def _agent(core: str = "gtrxl", seed: int = 0, **settings: Any) -> Agent:
    return Agent(core, Recall(4, 5), seed=seed, **{**SMALL, **settings})


@pytest.mark.parametrize("acted", ACTIONS)
@pytest.mark.parametrize("seen", ["vector", "discrete", "channels first", "dict", "tuple"])
@pytest.mark.parametrize("algorithm", ["ppo", "vmpo"])
def test_every_kind_of_space_learns_and_predicts(tmp_path: Path, seen: str, acted: str, algorithm: str):
    images = seen in ("channels first", "dict", "tuple")
    environments = Anything(4, SPACES[seen], ACTIONS[acted])
    encoder = {"encoder": "small-cnn"} if images else {}
    agent = Agent("gru", environments, algorithm=algorithm, **SMALL, **encoder, previous_reward=True)
    before = {name: one.clone() for name, one in agent.policy.state_dict().items()}
    agent.learn(60, progress=False)
    assert any(not torch.equal(one, before[name]) for name, one in agent.policy.state_dict().items())
    observation, _ = environments.reset(seed=1)
    action, state = agent.predict(observation)
    assert environments.action_space.contains(action)
    agent.save(tmp_path / "agent.safetensors")
    again = Agent.load(tmp_path / "agent.safetensors")
    assert np.array_equal(again.predict(observation)[0], action)
    second, _ = agent.predict(observation, state, reward=np.ones(4))
    third, _ = again.predict(observation, state, reward=np.ones(4))
    assert np.array_equal(second, third)


def test_prediction_equals_the_policy_of_a_rollout_with_resets():
    agent, environments = _agent(previous_reward=True, memory=8).learn(50, progress=False), Recall(4, 5)
    stream, state, seen = Stream.start(environments, agent.policy, 3), None, environments.reset(seed=3)[0]
    first, reward = np.ones(4, bool), np.zeros(4)
    for _ in range(17):
        with torch.no_grad():
            expected = act(agent.policy, stream)
        action, state = agent.predict(seen, state, first, reward=reward)
        assert np.array_equal(action, agent.policy.head.to_environment(expected.distribution.mode()[:, 0]))
        first = stream.over.numpy()
        step = advance(environments, agent.policy, stream, expected.distribution.mode()[:, 0], expected.state)
        seen, reward = environments.seen(), step.reward.numpy()


def test_one_observation_gives_one_action():
    agent = _agent()
    action, state = agent.predict(np.zeros(3, np.float32))
    assert np.ndim(action) == 0
    action, state = agent.predict(np.zeros(3, np.float32), state)
    assert agent.action_space.contains(action)
    assert len(state.previous_action) == 1


def test_a_new_episode_forgets_the_state():
    agent, generator = _agent("lstm"), np.random.default_rng(0)
    with torch.no_grad():
        agent.policy.head.map.weight.mul_(100)
    seen = generator.normal(size=(6, 3)).astype(np.float32)
    fresh = [agent.predict(one)[1].memory[0] for one in seen]
    state = None
    for one in seen:
        _, state = agent.predict(one, state)
    _, begun = agent.predict(seen[0], state, is_first=True)
    assert torch.equal(begun.memory[0], fresh[0])
    _, gone_on = agent.predict(seen[0], state)
    assert not torch.equal(gone_on.memory[0], fresh[0])


def test_the_same_seed_learns_the_same_bits():
    one, two, other = (_agent(seed=seed).learn(100, progress=False).policy.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_learning_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    _agent().learn(50, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_learning_goes_on_where_it_was():
    agent = _agent().learn(100, progress=False)
    steps = agent._training.steps  # ty: ignore
    agent.learn(100, progress=False)
    assert agent._training.steps >= steps + 100  # ty: ignore


@pytest.mark.parametrize("environment", ["CartPole-v1", lambda: gym.make("CartPole-v1"), gym.make("CartPole-v1")])
def test_environments_of_gymnasium_by_name_function_and_object(environment: Any):
    agent = Agent("gtrxl", environment, environments=2, **{**SMALL, "minibatches": 1})
    agent.learn(20, progress=False)
    assert len(agent.evaluate("CartPole-v1", 3)) == 3


def test_weights_of_another_core_are_refused_by_tensor_and_shape(tmp_path: Path):
    path = tmp_path / "agent.safetensors"
    _agent("lstm").save(path)
    with pytest.raises(CheckpointError, match=r"core\.unit\..*not expected.*core 'lstm'|core\.blocks.*missing"):
        _agent("gtrxl").load_weights(path)
    with pytest.raises(CheckpointError, match=r"found torch.float32 of shape \(\d+,.*expected torch.float32 of shape"):
        _agent("lstm", width=24).load_weights(path)
    own = _agent("lstm", seed=5)
    own.load_weights(path)
    stored = Agent.load(path).policy.state_dict()
    assert all(torch.equal(one, stored[name]) for name, one in own.policy.state_dict().items())


def test_environments_with_other_spaces_are_refused(tmp_path: Path):
    path = tmp_path / "agent.safetensors"
    _agent().save(path)
    with pytest.raises(CheckpointError, match=r"observation space: found Box\(.*\(4,\).*expected Box\(.*\(3,\)"):
        Agent.load(path, "CartPole-v1")
    with pytest.raises(ArgumentError, match="learn: found no environment"):
        Agent.load(path).learn(10)
    with pytest.raises(ArgumentError, match="the network is that of the file"):
        Agent.load(path, Recall(4, 5), width=32)
    loaded = Agent.load(path, Recall(4, 5), segment=8)
    assert loaded.steps == 0
    assert loaded.learn(10, progress=False).mean_return is not None
    # one update of 4 environments; steps that only reset one are not counted
    assert 10 <= loaded.steps <= 4 * 8


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    path = tmp_path / "agent.safetensors"
    _agent().save(path)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match="damaged"):
        Agent.load(path)
    with pytest.raises(CheckpointError, match="no such file"):
        Agent.load(tmp_path / "absent")


@pytest.mark.parametrize("label", [*SPACES, "bounds"])
def test_spaces_survive_the_file(label: str):
    bounds = spaces.Box(np.array([-np.inf, 0.1], np.float32), np.array([3.0, np.inf], np.float32))
    space = bounds if label == "bounds" else SPACES[label]
    assert space_from_json(space_to_json(space)) == space


def test_wrong_settings_are_named_with_the_nearest():
    for words, settings in (
        ("learning_rat.*did you mean learning_rate", {"learning_rat": 1.0}),
        ("agent.width: found 'x', expected int", {"width": "x"}),
        ("the core 'gtrxl' has no|gate: found 'grue'|unknown gate", {"gate": "grue"}),
        ("minibatches: found 9 of 4", {"minibatches": 9}),
    ):
        with pytest.raises((ArgumentError, UnknownNameError), match=words):
            _agent(**settings)
    with pytest.raises(UnknownNameError, match="did you mean 'ppo'"):
        _agent(algorithm="pppo")
    with pytest.raises(UnknownNameError, match="did you mean 'lstm'"):
        _agent("lstn")
    with pytest.raises(ArgumentError, match="steps: found 0"):
        _agent().learn(0)


def test_wrong_inputs_of_predict_are_refused_in_words():
    agent = _agent(previous_reward=True)
    _, state = agent.predict(np.zeros((4, 3), np.float32))
    with pytest.raises(ArgumentError, match="reward: found none"):
        agent.predict(np.zeros((4, 3), np.float32), state)
    with pytest.raises(ArgumentError, match="state: found 4 rows, expected 2"):
        agent.predict(np.zeros((2, 3), np.float32), state, reward=0.0)
    with pytest.raises(DataError, match=r"found shape \(2, 5\)"):
        agent.predict(np.zeros((2, 5), np.float32))
