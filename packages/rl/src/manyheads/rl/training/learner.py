"""What PPO and V-MPO share: settings, advantages, minibatches of whole environments, one optimiser step."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError, DataError
from manyheads.rl.policies.distributions import Distribution
from manyheads.rl.policies.policy import Policy
from manyheads.rl.training.returns import Rewards, RewardScale, advantages
from manyheads.rl.training.rollout import Rollout, Segment

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class AgentOptimiser:
    """Adam with gradient-norm clipping and a linear decay of the learning rate."""

    learning_rate: float = 1e-3
    decay: Literal["linear", "constant"] = "linear"
    """linear: to 0 over the steps of the budget, update by update."""
    clip_norm: float = 0.5
    """Largest norm of the gradient."""
    epsilon: float = 1e-5
    """Of Adam."""

    def make(self, module: nn.Module) -> torch.optim.Adam:
        """Return Adam for all parameters that require a gradient. Raises :class:`ArgumentError`."""
        if self.learning_rate <= 0 or self.clip_norm <= 0:
            raise ArgumentError(
                f"optimiser: found learning_rate {self.learning_rate} and clip_norm {self.clip_norm}, expected more "
                "than 0"
            )
        parameters = [one for one in module.parameters() if one.requires_grad]
        return torch.optim.Adam(parameters, lr=self.learning_rate, eps=self.epsilon, fused=True)

    def rate(self, done: float) -> float:
        """The learning rate after a share ``done`` of the budget."""
        return self.learning_rate * (max(0.0, 1 - done) if self.decay == "linear" else 1.0)


@dataclass(frozen=True)
class Algorithm:
    """Settings that PPO and V-MPO share."""

    segment: int = 64
    """Steps of each environment for one update."""
    epochs: int = 4
    """Passes over a rollout."""
    minibatches: int = 4
    """Parts of a rollout, whole environments each."""
    discount: float = 0.99
    """Discount gamma."""
    trace: float = 0.95
    """Lambda of generalised advantages."""
    value_weight: float = 0.5
    """Weight of the value loss."""
    entropy_weight: float = 0.01
    """Weight of the entropy bonus."""
    advantage_floor: float = 0.0
    """Smallest deviation by which advantages are divided.

    Where every action is as good as any other (a solved task), their deviation is that of the value's error: divided by
    it, noise moves the policy as far as a signal would, and a solved task is unlearnt. With normalised rewards, 0.1.
    """
    rewards: Rewards = "raw"
    """Rewards of the learner: raw, their sign, or normalised by the running deviation of discounted returns."""
    reward_factor: float = 1.0
    """Multiplies the rewards of the learner."""

    def learner(self, policy: Policy, environments: int) -> Learner:
        """Return the learner of a policy."""
        raise NotImplementedError

    def check(self, environments: int) -> None:
        """Raise :class:`ArgumentError` for settings out of range."""
        for name in ("segment", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}: found {getattr(self, name)}, expected 1 or more")
        if self.minibatches > environments:
            raise ArgumentError(
                f"minibatches: found {self.minibatches} of {environments} environments, expected at most as many: "
                "minibatches hold whole environments"
            )
        if not (0 <= self.discount <= 1 and 0 <= self.trace <= 1):
            raise ArgumentError(f"discount, trace: found {self.discount}, {self.trace}, expected 0 to 1")
        if self.rewards not in ("raw", "sign", "normalised"):
            raise ArgumentError(f"rewards: found {self.rewards!r}, expected 'raw', 'sign' or 'normalised'")


class Learner(nn.Module):
    """A policy and what is learnt beside it; a subclass has the loss."""

    def __init__(self, policy: Policy, settings: Algorithm, environments: int) -> None:
        super().__init__()
        settings.check(environments)
        self.policy, self.settings = policy, settings
        self.reward_scale = RewardScale(
            environments, settings.rewards, discount=settings.discount, factor=settings.reward_factor
        )

    def loss(self, segment: Segment) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a minibatch, and statistics by name."""
        raise NotImplementedError

    def prepared(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """``(T, B)`` normalised advantages and targets of the value; statistics of rewards take the rollout in."""
        settings, ended = self.settings, rollout.terminated | rollout.truncated
        reward = self.reward_scale(rollout.reward, rollout.valid, ended)
        raw = advantages(
            reward,
            rollout.value,
            rollout.last_value,
            rollout.terminated,
            rollout.truncated,
            discount=settings.discount,
            trace=settings.trace,
        )
        counted = raw[rollout.valid]
        scaled = (raw - counted.mean()) / counted.std().clamp_min(max(settings.advantage_floor, 1e-8))
        # fillers: a constant, so that nothing depends on them
        return torch.where(rollout.valid, scaled, 0.0), torch.where(rollout.valid, raw + rollout.value, 0.0)

    def update(
        self, rollout: Rollout, optimiser: torch.optim.Optimizer, clip_norm: float, generator: torch.Generator
    ) -> dict[str, float]:
        """Learn from a rollout; return the mean of each statistic over the minibatches, and the explained variance.

        Raises :class:`DataError` if the loss is not finite.
        """
        advantage, target = self.prepared(rollout)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        count = 0
        parameters = [one for group in optimiser.param_groups for one in group["params"]]
        for _ in range(self.settings.epochs):
            order = torch.randperm(rollout.valid.shape[1], generator=generator)
            for rows in order.chunk(self.settings.minibatches):
                segment = rollout.segment(rows, advantage, target)
                if not segment.valid.any():
                    continue
                loss, statistics = self.loss(segment)
                if not loss.isfinite():
                    raise DataError(
                        f"loss: found {loss.item()}, expected a finite number: lower the learning rate "
                        "(optimiser.learning_rate) or normalise rewards and observations"
                    )
                optimiser.zero_grad()
                loss.backward()
                norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
                optimiser.step()
                self.after_step()
                for name, value in {**statistics, "gradient_norm": norm}.items():
                    sums[name] = sums[name] + value.detach()
                count += 1
        found = {name: (value / count).item() for name, value in sums.items()}
        return {**found, "explained_variance": explained_variance(rollout, target)}

    def after_step(self) -> None:
        """Work after each step of the optimiser."""

    def run(self, segment: Segment) -> tuple[Distribution, Tensor]:
        """Run the policy over a segment: distribution and value."""
        distribution, value, _ = self.policy(
            segment.observations, segment.state, segment.is_first, segment.previous_action, segment.previous_reward
        )
        return distribution, value


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """The mean over valid elements."""
    return torch.where(valid, x, 0.0).sum() / valid.sum()


def explained_variance(rollout: Rollout, target: Tensor) -> float:
    """``1 - Var(target - value) / Var(target)``; 0 for a constant target."""
    found, value = target[rollout.valid], rollout.value[rollout.valid]
    variance = found.var(unbiased=False)
    return float(1 - (found - value).var(unbiased=False) / variance) if variance > 0 else 0.0
