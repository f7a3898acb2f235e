"""Advantages and the scale of rewards.

    delta[t] = r[t] + gamma V[t + 1] (1 - terminated[t]) - V[t]
    A[t]     = delta[t] + gamma lambda (1 - ended[t]) A[t + 1]

GAE (1506.02438). V[t + 1] after the end of an episode is the value of its last observation, in its own memory, so that
a time limit is bootstrapped and a termination is not.

Axes: T steps, B environments.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Rewards = Literal["raw", "sign", "normalised"]


def advantages(
    reward: Tensor,
    value: Tensor,
    last_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    discount: float,
    trace: float,
) -> Tensor:
    """``(T, B)`` generalised advantages; those of fillers have no meaning.

    Args:
        reward ``(T, B)``.
        value ``(T, B)``: of the observation before each step.
        last_value ``(B,)``: of the observation after the last step.
        terminated, truncated ``(T, B)``.
        discount: gamma.
        trace: lambda.
    """
    following = torch.cat([value[1:], last_value.unsqueeze(0)])
    delta = reward + discount * torch.where(terminated, 0.0, following) - value
    carried = discount * trace * (~(terminated | truncated)).to(delta.dtype)
    found, running = torch.empty_like(delta), torch.zeros_like(last_value)
    for step in range(len(delta) - 1, -1, -1):
        running = delta[step] + carried[step] * running
        found[step] = running
    return found


class RewardScale(nn.Module):
    """Rewards as the learner sees them: as they are, their sign, or over the running deviation of discounted returns.

    The running statistics are buffers, so that checkpoints hold them.

    Args:
        environments: B.
        rewards: "raw", "sign" or "normalised".
        discount: gamma of the discounted returns.
        factor: multiplies the result.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    running: Tensor

    def __init__(self, environments: int, rewards: Rewards, *, discount: float, factor: float) -> None:
        super().__init__()
        self.rewards, self.discount, self.factor = rewards, discount, factor
        for name in ("count", "mean", "squares"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self.register_buffer("running", torch.zeros(environments, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, reward: Tensor, valid: Tensor, ended: Tensor) -> Tensor:
        """``(T, B)`` rewards to those of the learner; with "normalised" the statistics take them in first."""
        reward = torch.where(valid, reward, 0.0)
        if self.rewards == "sign":
            return reward.sign() * self.factor
        if self.rewards == "raw":
            return reward * self.factor
        seen = []
        for step in range(len(reward)):
            self.running.mul_(self.discount).add_(reward[step])
            seen.append(self.running[valid[step]].clone())
            self.running.masked_fill_(ended[step], 0.0)
        self._take_in(torch.cat(seen))
        deviation = (self.squares / self.count.clamp_min(1) + 1e-8).sqrt()
        return (reward / deviation * self.factor).to(reward.dtype)

    def _take_in(self, values: Tensor) -> None:
        count = self.count + len(values)
        shift = values.mean() - self.mean
        self.squares += values.var(unbiased=False) * len(values) + shift**2 * self.count * len(values) / count
        self.mean += shift * len(values) / count
        self.count.copy_(count)
