"""PPO with memory in Stable-Baselines3: the policy that is trained is the one that acted, at every boundary."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file

pytest.importorskip("stable_baselines3", reason="pip install -e './packages/rl[stable-baselines3]'")

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from manyheads.core.errors import ArgumentError, MissingPackageError, StateError, UnknownNameError
from manyheads.rl.adapters.stable_baselines3 import EncoderFeatures, MemoryPolicy, MemoryPPO, Sequences
from manyheads.rl.encoders import build_encoder, to_tensors
from manyheads.rl.environments.t_maze import TMazeEnv

ROOT = Path(__file__).parents[2]
CORES = {"none": {}, "lstm": {}, "gtrxl": {"memory": 4}, "lmu": {}, "softmax": {"options": {"window": 4}}}


class Noise(gym.Env):
    """Random observations of a space; an episode ends after 3 steps, or by a time limit of 5."""

    def __init__(self, seen: spaces.Space[Any], acted: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = seen, acted

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time, self.long = 0, bool(self.np_random.integers(2))
        return self.observation_space.sample(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action)
        self.time += 1
        is_over, is_cut = not self.long and self.time == 3, self.time == 5
        return self.observation_space.sample(), float(self.np_random.normal()), is_over, is_cut, {}


VECTOR = spaces.Box(-1, 1, (3,), np.float32)


def _model(core: str = "gtrxl", env: Any = None, **settings: Any) -> MemoryPPO:
    if env is None:
        env = DummyVecEnv([lambda: Noise(VECTOR, spaces.Discrete(3))] * 6)
    features = {"core": core, "width": 16, "depth": 1, **CORES.get(core, {})}
    given = {"n_steps": 13, "batch_size": 26, "n_epochs": 2, "seed": 0, "device": "cpu", **settings}
    model = MemoryPPO(MemoryPolicy, env, policy_kwargs={"features_extractor_kwargs": features}, **given)
    with torch.no_grad():
        # the first policy is close to uniform, whatever is remembered
        model.policy.action_net.weight.mul_(100)
    return model


def _rollouts(model: MemoryPPO, count: int = 2) -> None:
    """Collect without learning; later rollouts begin inside episodes."""
    _, callback = model._setup_learn(1000)
    for _ in range(count):
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def _deviation(model: MemoryPPO, data: Any) -> float:
    actions = data.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else data.actions
    values, log_prob, _ = model.policy.evaluate_actions(data.observations, actions)
    ratio = (log_prob - data.old_log_prob).exp()
    return max((ratio - 1).abs().max().item(), (values.flatten() - data.old_values).abs().max().item())


@pytest.mark.parametrize("core", CORES)
def test_ratio_is_one_in_the_first_epoch_with_resets_in_the_middle(core: str):
    model = _model(core)
    _rollouts(model)
    starts = model.rollout_buffer.episode_starts
    assert starts[1:].any(1).sum() > 3
    assert not starts[0].all()
    batches = list(model.rollout_buffer.get(model.batch_size))
    assert sorted(len(one.actions) for one in batches) == [26, 26, 26]
    assert max(_deviation(model, one) for one in batches) < 1e-5


@pytest.mark.parametrize("fault", ["no state", "state of another environment", "no resets", "shuffled steps"])
def test_ratio_is_not_one_with(fault: str):
    model = _model()
    _rollouts(model)
    data = model.rollout_buffer.sequences(np.arange(6))
    seen, state, is_first = data.observations
    memory = model.policy.features_extractor
    wrong = {
        "no state": (seen, memory.init_state(6), is_first),
        "state of another environment": (
            seen,
            memory.unpack({k: v.roll(1, 0) for k, v in memory.pack(state).items()}),
            is_first,
        ),
        "no resets": (seen, state, torch.zeros_like(is_first)),
        "shuffled steps": (seen.roll(1, 1), state, is_first.roll(1, 1)),
    }
    assert _deviation(model, data._replace(observations=Sequences(*wrong[fault]))) > 1e-3


def _loss(model: MemoryPPO, rows: list[int]) -> tuple[float, torch.Tensor]:
    data = model.rollout_buffer.sequences(np.array(rows))
    values, log_prob, entropy = model.policy.evaluate_actions(data.observations, data.actions.long().flatten())
    ratio = (log_prob - data.old_log_prob).exp()
    gain = torch.min(ratio * data.advantages, ratio.clamp(0.8, 1.2) * data.advantages).mean()
    loss = (values.flatten() - data.returns).square().mean() - gain - 0.01 * entropy.mean()
    model.policy.zero_grad()
    loss.backward()
    return loss.item(), torch.cat([one.grad.flatten() for one in model.policy.parameters() if one.grad is not None])


def test_the_order_of_the_environments_does_not_change_loss_and_gradient():
    model = _model()
    _rollouts(model)
    with torch.no_grad():
        # off the policy that acted, so that ratios differ
        for one in model.policy.parameters():
            one.add_(0.03 * torch.randn_like(one))
    (first, slope), (second, other) = _loss(model, [0, 1, 2, 3, 4, 5]), _loss(model, [4, 2, 5, 0, 3, 1])
    assert abs(first - second) < 1e-6
    torch.testing.assert_close(slope, other, atol=1e-6, rtol=1e-4)


def test_time_limits_are_bootstrapped_in_the_memory_of_their_episode():
    model = _model(gamma=0.9)
    raw, last = [], []
    step = model.env.step_wait

    def recorded():
        found = step()
        raw.append(found[1].copy())
        last.append([one.get("terminal_observation") if one["TimeLimit.truncated"] else None for one in found[3]])
        return found

    model.env.step_wait = recorded
    _rollouts(model, 1)
    buffer, memory, cuts = model.rollout_buffer, model.policy.features_extractor, 0
    for step_of, row in np.ndindex(*buffer.rewards.shape):
        expected = raw[step_of][row]
        if last[step_of][row] is not None:
            # the episode anew, from its first step to the last observation
            begin = np.flatnonzero(buffer.episode_starts[: step_of + 1, row])[-1]
            seen = np.stack([*(buffer.seen[t][row] for t in range(begin, step_of + 1)), last[step_of][row]])
            first = torch.zeros(1, len(seen), dtype=torch.bool)
            run = Sequences(torch.from_numpy(seen)[None], memory.init_state(1), first)
            expected += 0.9 * model.policy.predict_values(run)[-1].item()
            cuts += 1
        assert buffer.rewards[step_of, row] == pytest.approx(expected, abs=1e-5)
    assert cuts > 3


SEEN = {
    "vector": VECTOR,
    "discrete": spaces.Discrete(4, start=0),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "dict": spaces.Dict({"place": VECTOR, "camera": spaces.Box(0, 255, (3, 36, 36), np.uint8)}),
}
ACTED = {
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
    "box": spaces.Box(-0.1, 0.1, (2,), np.float32),
}


@pytest.mark.parametrize(("seen", "acted"), [*((one, "discrete") for one in SEEN), *(("vector", one) for one in ACTED)])
def test_every_kind_of_space_learns(seen: str, acted: str, tmp_path: Path):
    env = DummyVecEnv([lambda: Noise(SEEN[seen], ACTED[acted])] * 2)
    encoder = "small-cnn" if seen in ("image", "dict") else "auto"
    features = {"core": "gru", "width": 8, "depth": 1, "encoder": encoder}
    model = MemoryPPO(
        "MemoryPolicy",
        env,
        n_steps=8,
        batch_size=8,
        n_epochs=1,
        seed=0,
        device="cpu",
        policy_kwargs={"features_extractor_kwargs": features, "net_arch": [8]},
    )
    _rollouts(model)
    assert max(_deviation(model, one) for one in model.rollout_buffer.get(8)) < 1e-5
    before = {name: one.clone() for name, one in model.policy.state_dict().items()}
    model.learn(16)
    after = model.policy.state_dict()
    assert all(any(not torch.equal(after[k], before[k]) for k in before if part in k) for part in ("encoder", "core"))
    model.save(tmp_path / "model")
    again, observations = MemoryPPO.load(tmp_path / "model"), env.reset()
    found, state = model.predict(observations, deterministic=True)
    assert np.array_equal(again.predict(observations, deterministic=True)[0], found)
    assert np.array_equal(again.predict(observations, state, np.array([True, False]), True)[0][0], found[0])


def test_prediction_is_the_policy_of_the_rollout():
    model = _model()
    _rollouts(model, 1)
    buffer, state = model.rollout_buffer, None
    distributions = model.policy.get_distribution(buffer.sequences(np.arange(6)).observations)
    expected = distributions.mode().view(6, 13)
    for step in range(13):
        actions, state = model.predict(buffer.seen[step], state, buffer.episode_starts[step], deterministic=True)
        assert np.array_equal(actions, expected[:, step])
    assert {name: one.shape for name, one in state.items()} == {"0": (6, 4, 16), "1": (6,)}


def test_one_observation_is_predicted_without_a_batch_axis():
    model, observation = _model(), np.zeros(3, np.float32)
    action, state = model.predict(observation)
    assert action.shape == ()
    with pytest.raises(StateError, match="that of 2 environments"):
        model.predict(np.zeros((2, 3), np.float32), state)
    with pytest.raises(StateError, match=r"expected the parts \['0', '1'\], those of 'gtrxl'"):
        model.predict(observation, _model("none").predict(observation)[1])


def test_a_saved_model_goes_on_in_the_memory_that_it_had(tmp_path: Path):
    model = _model()
    _rollouts(model)
    model.save(tmp_path / "model")
    again = MemoryPPO.load(tmp_path / "model", env=model.env, force_reset=False)
    assert all(np.array_equal(one, again._last_memory[name]) for name, one in model._last_memory.items())
    assert np.array_equal(again._last_obs, model._last_obs)


def test_weights_of_encoder_and_core_stay_as_their_parts_made_them():
    """The gates of GTrXL begin nearly closed; Stable-Baselines3 would make their weights orthogonal."""
    model = _model()
    square = [one for name, one in model.policy.features_extractor.named_parameters() if one.shape == (16, 16)]
    assert square
    assert all((one @ one.T - 2 * torch.eye(16)).abs().max() > 0.1 for one in square)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match="batch_size: found 27, expected a multiple of n_steps, which is 13"):
        _model(batch_size=27)
    with pytest.raises(ArgumentError, match="policy: found ActorCriticPolicy, expected MemoryPolicy"):
        MemoryPPO(PPO.policy_aliases["MlpPolicy"], "CartPole-v1", n_steps=8, batch_size=8)
    with pytest.raises(ArgumentError, match="use_sde: found True"):
        _model(env=DummyVecEnv([lambda: Noise(VECTOR, ACTED["box"])]), batch_size=13, use_sde=True)
    with pytest.raises(UnknownNameError, match="unknown core 'gtrx': did you mean 'gtrxl'"):
        _model("gtrx")
    text = DummyVecEnv([lambda: Noise(VECTOR, spaces.Dict({"a": spaces.Discrete(2)}))])
    with pytest.raises(AssertionError, match="only supports"):
        _model(env=text)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    name = "manyheads.rl.adapters.stable_baselines3"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MissingPackageError, match=r"is not installed: pip install .*rl\[stable-baselines3\]"):
        __import__(name)


def test_pretrained_encoders_keep_their_weights(tmp_path: Path):
    space = SEEN["image"]
    own = build_encoder("small-cnn", space, 8)
    network = own.pictures[0].network.state_dict()
    save_file({name: one.contiguous() for name, one in network.items()}, tmp_path / "network.safetensors")
    given = {"encoder": "small-cnn", "width": 8, "weights": str(tmp_path / "network.safetensors"), "frozen": True}
    kwargs = {"features_extractor_class": EncoderFeatures, "features_extractor_kwargs": given}
    env = DummyVecEnv([lambda: Noise(space, spaces.Discrete(2))])
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=kwargs, device="cpu").learn(8)
    found = model.policy.features_extractor.encoder.pictures[0].network.state_dict()
    assert all(torch.equal(one, network[name]) for name, one in found.items())


@pytest.mark.parametrize("seen", SEEN)
def test_encoders_without_memory_read_what_ours_read(seen: str):
    env = DummyVecEnv([lambda: Noise(SEEN[seen], spaces.Discrete(2))] * 2)
    encoder = "small-cnn" if seen in ("image", "dict") else "auto"
    kind = "MultiInputPolicy" if seen == "dict" else "MlpPolicy"
    given = {"features_extractor_class": EncoderFeatures, "features_extractor_kwargs": {"encoder": encoder, "width": 8}}
    model = PPO(kind, env, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=given, device="cpu").learn(16)
    space, observations = model.observation_space, model.env.reset()
    own = build_encoder(encoder, space, 8)
    stored = model.policy.features_extractor.encoder.state_dict()
    own.load_state_dict(stored)
    found = model.policy.extract_features(model.policy.obs_to_tensor(observations)[0])
    torch.testing.assert_close(found, own(to_tensors(space, observations)), atol=1e-5, rtol=1e-5)


def _example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/rl.md").read_text(), re.DOTALL)
    return next(one for one in blocks if "MemoryPPO" in one)


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code = _example()
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 25
    exec(code.replace("20_000", "500"), {})  # noqa: S102


@pytest.mark.slow
def test_the_example_of_the_page_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(_example(), found)  # noqa: S102
    env = make_vec_env("manyheads/TMaze-v0", n_envs=8, env_kwargs={"corridor": 5}, seed=100)
    assert evaluate_policy(found["model"], env, 100)[0] >= 0.9


@pytest.mark.slow
def test_without_memory_the_maze_is_not_solved():
    env = make_vec_env(TMazeEnv, n_envs=16, env_kwargs={"corridor": 5}, seed=1)
    model = _model("none", env, n_steps=32, batch_size=128, n_epochs=4, learning_rate=1e-3, ent_coef=0.01)
    model.learn(20_000)
    assert evaluate_policy(model, env, 200)[0] < 0.3
