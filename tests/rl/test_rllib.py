"""The module of RLlib: chunks, padding and stored states give the policy that acted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from manyheads.core.errors import ArgumentError, MissingPackageError
from manyheads.rl.environments.t_maze import TMazeEnv

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "packages/rl/examples/rllib_t_maze.py"
CORES = {"lstm": {}, "gtrxl": {"memory": 4}, "lmu": {}}


def _example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/rl.md").read_text(), re.DOTALL)
    return next(one for one in blocks if "PPOConfig" in one)


def test_the_page_shows_the_example():
    assert _example() == EXAMPLE.read_text()
    assert len(_example().splitlines()) <= 25


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "manyheads.rl.adapters.rllib", raising=False)
    monkeypatch.setitem(sys.modules, "ray.rllib.core.columns", None)
    with pytest.raises(MissingPackageError, match=r"RLlib does not import.*pip install .*rl\[rllib\]"):
        __import__("manyheads.rl.adapters.rllib")


@pytest.fixture(scope="module")
def rllib() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    pytest.importorskip("ray.rllib", reason="RLlib is not installed: nox -s rllib")
    import manyheads.rl.adapters.rllib

    return manyheads.rl.adapters.rllib


@pytest.fixture(scope="module")
def ray(rllib: Any) -> Any:
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    yield ray
    ray.shutdown()


def _module(rllib: Any, core: str, seen: Any = None, acted: Any = None, **features: Any) -> Any:
    torch.manual_seed(0)
    module = rllib.MemoryModule(
        observation_space=seen or spaces.Box(-1, 1, (3,), np.float32),
        action_space=acted or spaces.Discrete(3),
        model_config={
            "max_seq_len": 4,
            "features": {"core": core, "width": 16, "depth": 1, **CORES.get(core, {}), **features},
        },
    )
    with torch.no_grad():
        # the first policy is close to uniform, whatever is remembered
        module.head.map.weight.mul_(100)
    return module


def _start(module: Any, rows: int) -> dict[str, torch.Tensor]:
    state = {name: torch.as_tensor(one) for name, one in module.get_initial_state().items()}
    return {name: one.unsqueeze(0).repeat(rows, *[1] * one.dim()) for name, one in state.items()}


@pytest.mark.parametrize("core", CORES)
def test_padded_steps_change_neither_outputs_nor_gradients(rllib: Any, core: str):
    module, found = _module(rllib, core), []
    x = torch.randn(2, 4, 3)
    for padding in (0.0, 7.0):
        # the second episode ends after two steps
        x[1, 2:] = padding
        batch = {"obs": x.clone(), "state_in": _start(module, 2)}
        outputs = module.forward_train(batch)
        logits, values = outputs["action_dist_inputs"], module.compute_values(batch, outputs["embeddings"])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
        module.zero_grad()
        (logits[mask].square().sum() + values[mask].square().sum()).backward()
        grads = [one.grad.clone() for one in module.parameters() if one.grad is not None]
        found.append([logits[mask].detach(), values[mask].detach(), *grads])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("core", CORES)
def test_exploration_equals_training_and_inference(rllib: Any, core: str):
    module, x = _module(rllib, core), torch.randn(2, 4, 3)
    whole = module.forward_train({"obs": x, "state_in": _start(module, 2)})["action_dist_inputs"]
    state = _start(module, 2)
    for step in range(4):
        batch = {"obs": x[:, step : step + 1], "state_in": state}
        outputs = module.forward_exploration(batch)
        torch.testing.assert_close(outputs["action_dist_inputs"][:, 0], whole[:, step], atol=1e-5, rtol=1e-5)
        assert torch.equal(module.forward_inference(batch)["action_dist_inputs"], outputs["action_dist_inputs"])
        state = outputs["state_out"]


def test_spaces(rllib: Any):
    seen = spaces.Dict({"place": spaces.Box(-1, 1, (2,), np.float32), "mode": spaces.Discrete(3)})
    batch = {"place": torch.randn(2, 4, 2), "mode": torch.randint(3, (2, 4))}
    for acted, numbers in ((spaces.MultiDiscrete([2, 3]), 5), (spaces.Box(-1, 1, (2,), np.float32), 4)):
        module = _module(rllib, "gru", seen, acted)
        outputs = module.forward_train({"obs": batch, "state_in": _start(module, 2)})["action_dist_inputs"]
        assert outputs.shape == (2, 4, numbers)
        action = module.get_train_action_dist_cls().from_logits(outputs).sample()
        assert action.shape == (2, 4, 2)
    module = _module(rllib, "none")
    assert not module.is_stateful()
    batch = {"obs": torch.randn(5, 3)}
    assert module.forward_exploration(batch)["action_dist_inputs"].shape == (5, 3)
    assert module.compute_values(batch).shape == (5,)


def test_spaces_that_rllib_cannot_represent_are_refused(rllib: Any):
    with pytest.raises(ArgumentError, match=r"observation: found .* expected a space that counts from 0"):
        _module(rllib, "gru", spaces.Discrete(3, start=1))
    with pytest.raises(ArgumentError, match=r"action: found .* expected a space that counts from 0"):
        _module(rllib, "gru", acted=spaces.Discrete(3, start=1))
    with pytest.raises(ArgumentError, match="action space: found Dict"):
        _module(rllib, "gru", acted=spaces.Dict({"a": spaces.Discrete(2)}))


@pytest.mark.parametrize("core", ["lstm", "gtrxl"])
def test_ratio_is_one_in_the_learner(rllib: Any, ray: Any, core: str, monkeypatch: pytest.MonkeyPatch):
    """PPO of RLlib with a learning rate of 0: chunks of 4 steps out of episodes of 6, cut by the rollouts too."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    deviations: list[float] = []
    controls: list[float] = []
    shapes: list[tuple[int, ...]] = []

    def deviation(module: Any, batch: Any, logits: torch.Tensor) -> float:
        distribution = module.get_train_action_dist_cls().from_logits(logits)
        ratio = (distribution.logp(batch["actions"]) - batch["action_logp"]).exp()
        return (ratio - 1).abs()[batch["loss_mask"]].max().item()

    class Recording(PPOTorchLearner):
        def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
            module = self.module[module_id].unwrapped()
            deviations.append(deviation(module, batch, fwd_out["action_dist_inputs"]))
            shapes.append(tuple(batch["obs"].shape))
            lost = {name: torch.zeros_like(one) for name, one in batch["state_in"].items()}
            outputs = module.forward_train({"obs": batch["obs"], "state_in": lost})
            controls.append(deviation(module, batch, outputs["action_dist_inputs"]))
            return super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)

    monkeypatch.setattr("manyheads.rl.policies.actions.GAIN", 1.0)
    register_env("t-maze", lambda options: TMazeEnv(**options))
    features = {"core": core, "width": 16, "depth": 1, **CORES[core]}
    config = (
        PPOConfig()
        .environment("t-maze", env_config={"corridor": 5})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=rllib.MemoryModule, model_config={"max_seq_len": 4, "features": features}
            )
        )
        .training(train_batch_size_per_learner=128, minibatch_size=64, num_epochs=2, lr=0.0, learner_class=Recording)
        .debugging(seed=1)
    )
    algorithm = config.build_algo()
    for _ in range(3):
        algorithm.train()
    algorithm.stop()
    assert {shape[1:] for shape in shapes} == {(4, 4)}
    assert len(deviations) >= 6
    assert max(deviations) < 1e-5
    assert max(controls) > 1e-3


@pytest.mark.slow
def test_the_example_learns_with_two_workers(rllib: Any):
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=1200, check=True)
    scores = [float(one) for one in re.findall(r"return (-?[\d.]+)", done.stdout)]
    assert scores[0] < 0.6
    assert scores[-1] >= 0.95
