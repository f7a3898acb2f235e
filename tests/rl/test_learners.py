"""PPO and V-MPO: what the losses may and may not depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError, DataError
from manyheads.rl.training.learner import AgentOptimiser, Algorithm, Learner
from manyheads.rl.training.ppo import PPO
from manyheads.rl.training.returns import RewardScale, advantages
from manyheads.rl.training.rollout import Rollout, Stream, collect
from manyheads.rl.training.settings import AgentModel
from manyheads.rl.training.vmpo import VMPO
from tests.rl.test_cores import CORES
from tests.rl.toys import Recall, TwoStates

ENVIRONMENTS, STEPS = 6, 20
ALGORITHMS = {"ppo": PPO(value_clip=0.2), "vmpo": VMPO(entropy_weight=0.01)}
both = pytest.mark.parametrize("algorithm", ALGORITHMS)


def _learner(label: str, algorithm: Algorithm, environments: Any, dtype: torch.dtype, **settings: Any) -> Learner:
    name, options = CORES[label]
    depth = 1 if name == "none" else 2
    model = AgentModel(name, width=16, depth=depth, options=options, previous_reward=True, **settings)
    policy = model.seeded(environments.single_observation_space, environments.single_action_space, 0).to(dtype)
    return algorithm.learner(policy, environments.num_envs)


def _case(
    label: str = "gtrxl", algorithm: Algorithm = ALGORITHMS["ppo"], dtype: torch.dtype = torch.float64
) -> tuple[Learner, Rollout]:
    """A learner and a rollout that begins in the middle of episodes and holds several ends."""
    environments = Recall(ENVIRONMENTS, 5)
    learner = _learner(label, algorithm, environments, dtype)
    generator = torch.Generator().manual_seed(0)
    stream = Stream.start(environments, learner.policy, 0)
    collect(environments, learner.policy, stream, 9, generator)
    return learner, collect(environments, learner.policy, stream, STEPS, generator)


def _gradients(learner: Learner, rollout: Rollout, rows: Tensor | None = None) -> dict[str, Tensor]:
    rows = torch.arange(ENVIRONMENTS) if rows is None else rows
    learner.zero_grad()
    segment = rollout.segment(rows, *learner.prepared(rollout))
    learner.loss(segment)[0].backward()
    return {name: one.grad.clone() for name, one in learner.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("label", CORES)
def test_ratio_is_one_before_the_first_step(label: str):
    learner, rollout = _case(label, dtype=torch.float32)
    assert rollout.is_first[1:].any()
    segment = rollout.segment(torch.arange(ENVIRONMENTS), *learner.prepared(rollout))
    distribution, value = learner.run(segment)
    ratio = (distribution.log_prob(segment.action) - segment.log_prob).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)
    torch.testing.assert_close(value, segment.value, rtol=0, atol=1e-5)
    torch.testing.assert_close(distribution.parameters, segment.parameters, rtol=0, atol=1e-5)


def test_ratio_is_not_one_with_the_memory_of_another_environment():
    learner, rollout = _case()
    segment = rollout.segment(torch.arange(ENVIRONMENTS), *learner.prepared(rollout))
    wrong = segment._replace(
        state=rollout.segment(torch.arange(ENVIRONMENTS).flip(0), segment.advantage.T, segment.target.T).state
    )
    ratio = (learner.run(wrong)[0].log_prob(segment.action) - segment.log_prob).exp()
    assert (ratio - 1).abs().max() > 1e-6


@both
@pytest.mark.parametrize("label", ["none", "lstm", "gtrxl", "lmu"])
def test_order_of_the_environments_does_not_change_the_gradient(label: str, algorithm: str):
    learner, rollout = _case(label, ALGORITHMS[algorithm])
    expected = _gradients(learner, rollout)
    found = _gradients(learner, rollout, torch.tensor([3, 0, 5, 1, 4, 2]))
    assert max(one.abs().max() for one in expected.values()) > 1e-6
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-12, msg=name)


def _perturbed(rollout: Rollout, valid: Tensor | None = None) -> Rollout:
    """Other actions and rewards at the fillers, and other previous ones at the first steps."""
    filler, first = ~(rollout.valid if valid is None else valid), rollout.is_first
    return replace(
        rollout,
        action=torch.where(filler, 1 - rollout.action, rollout.action),
        log_prob=torch.where(filler, -7.0, rollout.log_prob),
        reward=torch.where(filler, 1e3, rollout.reward),
        previous_action=torch.where(first, 1 - rollout.previous_action, rollout.previous_action),
        previous_reward=torch.where(first, 50.0, rollout.previous_reward),
    )


@both
@pytest.mark.parametrize("rewards", ["raw", "sign", "normalised"])
def test_fillers_do_not_change_the_gradient(rewards: str, algorithm: str):
    learner, rollout = _case("gtrxl", replace(ALGORITHMS[algorithm], rewards=rewards))
    assert (~rollout.valid).any()
    start = {name: one.clone() for name, one in learner.state_dict().items()}
    expected = _gradients(learner, rollout)
    learner.load_state_dict(start)
    found = _gradients(learner, _perturbed(rollout))
    for name, one in expected.items():
        assert torch.equal(found[name], one), name


def test_the_filler_test_fails_if_fillers_are_counted():
    learner, rollout = _case()
    counted = replace(rollout, valid=torch.ones_like(rollout.valid))
    expected, found = _gradients(learner, counted), _gradients(learner, _perturbed(counted, rollout.valid))
    assert any(not torch.equal(found[name], one) for name, one in expected.items())


def test_fillers_are_the_steps_after_the_ends():
    _, rollout = _case()
    ended = rollout.terminated | rollout.truncated
    assert torch.equal(~rollout.valid[1:], ended[:-1])
    assert torch.equal(rollout.is_first[1:], ~rollout.valid[:-1])
    assert not rollout.reward[~rollout.valid].any()
    assert rollout.steps == int(rollout.valid.sum())
    assert {length for _, length in rollout.finished} == {5}


def _chain_values(rollout: Rollout, discount: float) -> tuple[Tensor, Tensor]:
    """The true values of the chain at each step and after the last."""
    of_state = torch.tensor([1.0, discount], dtype=torch.float64) / (1 - discount**2)
    (seen,) = rollout.observations.values()
    # the state after the last step: the chain always moves, fillers begin anew
    after = torch.where(rollout.valid[-1], 1 - seen[-1], seen[-1])
    return of_state[seen], of_state[after]


@pytest.mark.parametrize("discount", [0.5, 0.9, 0.99])
def test_time_limits_are_bootstrapped(discount: float):
    """At the true values of a chain that never terminates, all advantages are 0, over time limits too."""
    rollout = _chain()
    value, last = _chain_values(rollout, discount)
    arguments = {"discount": discount, "trace": 0.95}
    found = advantages(rollout.reward, value, last, rollout.terminated, rollout.truncated, **arguments)
    kept = rollout.valid.clone()
    # a filler in the last place: what comes after it is not known here
    kept[-1] = False
    ended = int((rollout.truncated & kept).sum())
    assert ended > 5
    assert found[kept & _before_an_end(rollout)].abs().max() < 1e-12
    # negative control: a time limit that counts as a termination
    wrong = advantages(rollout.reward, value, last, rollout.truncated, rollout.terminated, **arguments)
    assert wrong[kept & rollout.truncated].abs().min() > 0.1


def _chain() -> Rollout:
    environments = TwoStates(ENVIRONMENTS, 5)
    learner = _learner("none", PPO(), environments, torch.float64)
    stream = Stream.start(environments, learner.policy, 0)
    return collect(environments, learner.policy, stream, 40, torch.Generator().manual_seed(0))


def _before_an_end(rollout: Rollout) -> Tensor:
    """True where the episode ends inside the rollout."""
    left, found = torch.zeros(ENVIRONMENTS, dtype=torch.bool), []
    for step in range(len(rollout.valid) - 1, -1, -1):
        left = (left | rollout.truncated[step]) & rollout.valid[step]
        found.append(left)
    return torch.stack(found[::-1])


@pytest.mark.slow
def test_values_of_a_chain_with_time_limits_are_learnt():
    environments = TwoStates(16, 5)
    learner = _learner("none", PPO(discount=0.9, entropy_weight=0.0), environments, torch.float32)
    optimiser, generator = AgentOptimiser(1e-2).make(learner), torch.Generator().manual_seed(0)
    stream = Stream.start(environments, learner.policy, 0)
    for update in range(150):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - update / 150)
        rollout = collect(environments, learner.policy, stream, 32, generator)
        learner.update(rollout, optimiser, 0.5, generator)
    (seen,) = rollout.observations.values()
    expected = torch.tensor([1.0, 0.9]) / (1 - 0.81)
    for state in (0, 1):
        chosen = rollout.value[(seen == state) & rollout.valid]
        torch.testing.assert_close(chosen.mean(), expected[state], rtol=0.02, atol=0)


def test_advantages_equal_the_sums_they_stand_for():
    generator = torch.Generator().manual_seed(0)
    reward, value = torch.randn(2, 7, 1, generator=generator, dtype=torch.float64)
    last = torch.randn(1, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.zeros(2, 7, 1, dtype=torch.bool)
    truncated[3] = True
    terminated[5] = True
    g, t = 0.9, 0.8
    found = advantages(reward, value, last, terminated, truncated, discount=g, trace=t)
    following = torch.cat([value[1:], last[None]])
    delta = reward + g * following - value
    delta[5] = reward[5] - value[5]
    assert found[6] == pytest.approx(delta[6].item())
    assert found[5] == pytest.approx(delta[5].item())
    assert found[4] == pytest.approx((delta[4] + g * t * delta[5]).item())
    assert found[3] == pytest.approx(delta[3].item())
    assert found[1] == pytest.approx((delta[1] + g * t * delta[2] + (g * t) ** 2 * delta[3]).item())


def test_normalised_rewards_have_discounted_returns_of_deviation_one():
    scale, generator = RewardScale(4, "normalised", discount=0.9, factor=1.0), np.random.default_rng(0)
    valid, ended = torch.ones(200, 4, dtype=torch.bool), torch.zeros(200, 4, dtype=torch.bool)
    for _ in range(20):
        reward = torch.from_numpy(generator.normal(3.0, 7.0, (200, 4)))
        scaled = scale(reward, valid, ended)
    # the deviation of a discounted sum of independent rewards is sd / sqrt(1 - g^2)
    ratio = (reward / scaled).mean()
    assert ratio.item() == pytest.approx(7.0 / (1 - 0.81) ** 0.5, rel=0.05)
    assert torch.equal(scaled.sign(), reward.sign())


def test_sign_and_factor_of_rewards():
    reward, valid = torch.tensor([[3.0, -0.5], [0.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    scale = RewardScale(2, "sign", discount=0.9, factor=0.5)
    assert scale(reward, valid, ~valid).tolist() == [[0.5, -0.5], [0.0, 0.0]]
    scale = RewardScale(2, "raw", discount=0.9, factor=2.0)
    assert scale(reward, valid, ~valid).tolist() == [[6.0, -1.0], [0.0, 0.0]]


def test_advantages_below_the_floor_are_not_blown_up():
    learner, rollout = _case("none", PPO(advantage_floor=0.5, reward_factor=0.0))
    still = replace(rollout, value=1e-3 * torch.randn_like(rollout.value), last_value=torch.zeros(ENVIRONMENTS))
    advantage, _ = learner.prepared(still)
    assert advantage[rollout.valid].std() < 0.02
    learner, _ = _case("none", PPO(reward_factor=0.0))
    advantage, _ = learner.prepared(still)
    assert advantage[rollout.valid].std().item() == pytest.approx(1.0)


def test_ppo_stops_pushing_beyond_the_clip():
    learner, rollout = _case("none", PPO(value_weight=0.0, entropy_weight=0.0))
    segment = rollout.segment(torch.arange(ENVIRONMENTS), *learner.prepared(rollout))
    gone = segment._replace(advantage=torch.ones_like(segment.advantage), log_prob=segment.log_prob - 1.0)
    learner.zero_grad()
    learner.loss(gone)[0].backward()
    assert all(one.grad is None or not one.grad.any() for one in learner.parameters())
    back = gone._replace(advantage=-gone.advantage)
    learner.loss(back)[0].backward()
    assert any(one.grad is not None and one.grad.any() for one in learner.parameters())


def test_vmpo_weighs_the_better_half_only():
    learner, rollout = _case("none", VMPO(value_weight=0.0))
    segment = rollout.segment(torch.arange(ENVIRONMENTS), *learner.prepared(rollout))
    shown = segment.log_prob.detach().clone().requires_grad_()

    class Shown:
        parameters = segment.parameters

        def log_prob(self, action: Tensor) -> Tensor:
            return shown

        def entropy(self) -> Tensor:
            return torch.zeros_like(shown)

        def divergences(self, other: Tensor) -> tuple[Tensor, ...]:
            return (torch.zeros_like(shown),)

    learner.run = lambda segment: (Shown(), segment.value)  # ty: ignore
    learner.loss(segment)[0].backward()
    assert shown.grad is not None
    weights, advantage = -shown.grad[segment.valid], segment.advantage[segment.valid]
    half = len(advantage) // 2
    order = advantage.argsort(descending=True)
    assert weights.sum().item() == pytest.approx(1.0)
    assert not weights[advantage < advantage[order[half - 1]]].any()
    expected = advantage[order[:half]].softmax(0)
    torch.testing.assert_close(weights[order[:half]].sort().values, expected.sort().values)


def test_vmpo_multipliers_follow_their_bounds():
    """Where the policy has moved too far, the multiplier of the divergence grows; where it has not, it shrinks."""
    for bound, sign in ((1e-6, -1), (1e3, 1)):
        learner, rollout = _case("none", VMPO(divergence_bound=bound))
        with torch.no_grad():
            learner.policy.head.map.weight.mul_(50)
        assert _gradients(learner, rollout)["log_multipliers"].sign().item() == sign


def test_settings_out_of_range_are_refused_in_words():
    for settings, words in (
        (PPO(minibatches=9), "minibatches: found 9 of 6"),
        (PPO(discount=1.5), "discount, trace: found 1.5"),
        (PPO(clip=0.0), "clip, value_clip: found 0.0"),
        (PPO(segment=0), "segment: found 0"),
        (VMPO(temperature=0.0), "temperature: found 0.0"),
    ):
        with pytest.raises(ArgumentError, match=words):
            _case("none", settings)


def test_a_loss_that_is_not_finite_is_refused():
    learner, rollout = _case("none", dtype=torch.float32)
    rollout.reward[3, 2] = float("nan")
    optimiser = AgentOptimiser().make(learner)
    with pytest.raises(DataError, match="loss: found nan"):
        learner.update(rollout, optimiser, 0.5, torch.Generator())
