"""The stateless features: a segment equals its steps, the state is the caller's, and it fits into buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError, DataError, StateError, UnknownNameError
from manyheads.rl import Agent
from manyheads.rl.adapters.features import MemoryFeatures
from tests.rl.toys import Recall

SPACE = spaces.Box(-1, 1, (3,), np.float32)
CORES = {
    "none": {},
    "lstm": {"depth": 2},
    "gru": {},
    "gtrxl": {"memory": 4},
    "lmu": {},
    "softmax": {"options": {"window": 4}},
}


def _features(core: str) -> MemoryFeatures:
    torch.manual_seed(1)
    return MemoryFeatures(SPACE, core, width=16, **{"depth": 1, **CORES[core]})


@pytest.mark.parametrize("core", CORES)
def test_a_segment_equals_its_steps_through_packed_states(core: str):
    features, x = _features(core), torch.randn(3, 9, 3)
    is_first = torch.rand(3, 9) < 0.3
    whole, last = features(x, features.init_state(3), is_first)
    parts = features.pack(features.init_state(3))
    for step in range(9):
        # as a buffer stores them
        arrays = {name: one.detach().numpy() for name, one in parts.items()}
        y, state = features(x[:, step : step + 1], features.unpack(arrays), is_first[:, step : step + 1])
        torch.testing.assert_close(y[:, 0], whole[:, step], atol=1e-5, rtol=1e-5)
        parts = features.pack(state)
    for name, one in features.pack(last).items():
        torch.testing.assert_close(parts[name], one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("core", CORES)
def test_a_packed_state_keeps_its_shapes(core: str):
    features, state = _features(core), None
    state = features.init_state(2)
    for _ in range(7):
        found = {name: tuple(one.shape) for name, one in features.pack(state).items()}
        assert found == {name: (2, *shape) for name, shape in features.state_shapes.items()}
        _, state = features(torch.randn(2, 1, 3), state, torch.zeros(2, 1, dtype=torch.bool))


def test_shapes_of_the_documented_cores():
    shapes = {core: _features(core).state_shapes for core in CORES}
    assert shapes["none"] == {}
    assert shapes["lstm"] == {"0": (2, 16), "1": (2, 16)}
    assert shapes["gru"] == {"0": (1, 16)}
    # keys and values of the window's inputs, and the number of steps seen
    assert shapes["gtrxl"] == {"0": (4, 16), "1": ()}


def test_calls_do_not_see_each_other():
    features, x = _features("gtrxl"), torch.randn(2, 5, 3)
    first = torch.zeros(2, 5, dtype=torch.bool)
    before, _ = features(x, features.init_state(2), first)
    features(torch.randn(4, 3, 3), features.init_state(4), torch.ones(4, 3, dtype=torch.bool))
    again, _ = features(x, features.init_state(2), first)
    assert torch.equal(before, again)


def test_features_of_a_saved_agent_are_those_of_its_policy(tmp_path):
    agent = Agent("gtrxl", Recall(4, 5), width=16, depth=1, memory=4, previous_action=False, minibatches=2)
    agent.save(tmp_path / "agent.safetensors")
    features = MemoryFeatures.load(tmp_path / "agent.safetensors")
    seen = torch.from_numpy(agent.observation_space.sample()).expand(2, 3, -1)
    first = torch.zeros(2, 3, dtype=torch.bool)
    y, _ = features(seen, features.init_state(2), first)
    nothing = torch.zeros(2, 3)
    value = agent.policy({"observation": seen}, agent.policy.init_state(2), first, nothing.long(), nothing).value
    torch.testing.assert_close(agent.policy.value(y).squeeze(-1), value)


def test_an_agent_that_reads_its_actions_is_refused(tmp_path):
    Agent("gru", Recall(4, 5), width=16, depth=1, minibatches=2).save(tmp_path / "agent.safetensors")
    with pytest.raises(ArgumentError, match=r"previous_action: found True, expected False.*previous_action=False"):
        MemoryFeatures.load(tmp_path / "agent.safetensors")


def test_states_of_another_core_or_batch_are_refused():
    features, x, first = _features("gtrxl"), torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.bool)
    with pytest.raises(StateError, match=r"expected \[\(2, 4, 16\), \(2,\)\], that of 2 environments.*'gtrxl'"):
        features(x, features.init_state(3), first)
    with pytest.raises(StateError, match="that of 2 environments"):
        features(x, _features("lstm").init_state(2), first)
    with pytest.raises(StateError, match="found dict"):
        features(x, features.pack(features.init_state(2)), first)
    with pytest.raises(StateError, match=r"expected the parts \['0'\]"):
        _features("gru").unpack(features.pack(features.init_state(2)))
    parts = features.pack(features.init_state(2))
    with pytest.raises(StateError, match="that of 2 environments"):
        features.unpack({**parts, "1": parts["1"][:1]})
    with pytest.raises(StateError, match="found tuple"):
        features.unpack(())


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'gtrxl'"):
        MemoryFeatures(SPACE, "gtrx")
    with pytest.raises(ArgumentError, match="'memmory'"):
        MemoryFeatures(SPACE, "gtrxl", memmory=3)
    with pytest.raises(ArgumentError, match="normalise in a wrapper"):
        MemoryFeatures(SPACE, "gtrxl", normalise_observations=True)
    with pytest.raises(ArgumentError, match="found Text, expected Box"):
        MemoryFeatures(spaces.Text(3))
    features = _features("gru")
    with pytest.raises(DataError, match=r"found shape \(2, 4\), expected \(B, 3\)"):
        features(torch.zeros(2, 1, 4), features.init_state(2), torch.zeros(2, 1, dtype=torch.bool))
    with pytest.raises(DataError, match="found 6 observations, expected 2 x 1"):
        features(torch.zeros(2, 3, 3), features.init_state(2), torch.zeros(2, 1, dtype=torch.bool))


def test_the_gradient_flows_through_the_segment_and_stops_at_its_state():
    features = _features("gtrxl")
    x = torch.randn(1, 4, 3, requires_grad=True)
    before = trees.tree_map(
        lambda one: one.clone().requires_grad_() if one.is_floating_point() else one, features.init_state(1)
    )
    y, _ = features(x, before, torch.zeros(1, 4, dtype=torch.bool))
    y[0, 3].sum().backward()
    assert (x.grad[0].abs().sum(-1) > 0).all()
    assert all(one.grad is None for one in trees.leaves(before))
