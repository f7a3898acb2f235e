"""Proximal policy optimisation (1707.06347) over whole segments of memory agents.

    ratio = pi(a | h) / pi_old(a | h)
    L     = -min(ratio A, clip(ratio, 1 - c, 1 + c) A) + w_v (V - target)^2 / 2 - w_e entropy

averaged over valid steps. A minibatch holds whole environments, so that the memory of the rollout's start fits and the
gradient flows through all steps of a segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError
from manyheads.rl.policies.policy import Policy
from manyheads.rl.training.learner import Algorithm, Learner, masked_mean
from manyheads.rl.training.rollout import Segment


@dataclass(frozen=True)
class PPO(Algorithm):
    """Settings of PPO."""

    clip: float = 0.2
    """Largest change of the ratio that is rewarded."""
    value_clip: float | None = None
    """Largest change of the value that is rewarded; None for no limit."""

    def learner(self, policy: Policy, environments: int) -> Learner:
        if self.clip <= 0 or (self.value_clip is not None and self.value_clip <= 0):
            raise ArgumentError(f"clip, value_clip: found {self.clip}, {self.value_clip}, expected more than 0")
        return PPOLearner(policy, self, environments)


class PPOLearner(Learner):
    """See the module for the loss."""

    settings: PPO

    def loss(self, segment: Segment) -> tuple[Tensor, Mapping[str, Tensor]]:
        settings, valid = self.settings, segment.valid
        distribution, value = self.run(segment)
        log_ratio = torch.where(valid, distribution.log_prob(segment.action) - segment.log_prob, 0.0)
        ratio = log_ratio.exp()
        limited = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        gain = torch.minimum(ratio * segment.advantage, limited * segment.advantage)
        error = (value - segment.target) ** 2
        if settings.value_clip is not None:
            near = segment.value + (value - segment.value).clamp(-settings.value_clip, settings.value_clip)
            error = torch.maximum(error, (near - segment.target) ** 2)
        entropy = masked_mean(distribution.entropy(), valid)
        value_loss = 0.5 * masked_mean(error, valid)
        loss = settings.value_weight * value_loss - masked_mean(gain, valid) - settings.entropy_weight * entropy
        with torch.no_grad():
            statistics = {
                "entropy": entropy,
                "kl": masked_mean(ratio - 1 - log_ratio, valid),
                "clip_share": masked_mean(((ratio - 1).abs() > settings.clip).to(value.dtype), valid),
                "value_loss": value_loss,
            }
        return loss, statistics
