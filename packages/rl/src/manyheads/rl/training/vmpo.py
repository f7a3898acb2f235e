"""V-MPO (1909.12238): on-policy maximum a posteriori policy optimisation, the algorithm of the GTrXL paper.

D+ holds the half of the valid steps with the largest advantages A, D all valid steps:

    w      = softmax(A / eta)  over D+
    L_pi   = -sum w log pi(a | h)
    L_eta  = eta e_eta + eta log mean exp(A / eta)
    L_a    = mean over D of  a (e_a - sg KL) + sg(a) KL,     KL = KL(pi_old || pi)
    L      = L_pi + L_eta + L_a + w_v (V - target)^2 / 2 - w_e entropy

sg stops the gradient. Gaussian policies have a divergence and an a each for means and deviations. pi_old is the policy
that acted: a rollout is one period of the paper's target network.

Differs from the paper, whose text could not be had here (recalled): advantages are normalised in each rollout instead
of PopArt, and generalised instead of n-step; the multipliers eta and a are logarithms under the same Adam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.rl.policies.policy import Policy
from manyheads.rl.training.learner import Algorithm, Learner, masked_mean
from manyheads.rl.training.rollout import Segment


@dataclass(frozen=True)
class VMPO(Algorithm):
    """Settings of V-MPO."""

    entropy_weight: float = 0.0
    """Weight of the entropy bonus; the paper has none."""
    temperature: float = 1.0
    """First eta."""
    temperature_bound: float = 0.1
    """e_eta: how far the weights of D+ may be from uniform."""
    multiplier: float = 5.0
    """First a."""
    divergence_bound: float = 0.01
    """e_a: KL from the policy that acted, of all actions or of the means."""
    deviation_bound: float = 1e-4
    """e_a of the deviations of Gaussian policies."""

    def learner(self, policy: Policy, environments: int) -> Learner:
        names = ("temperature", "temperature_bound", "multiplier", "divergence_bound", "deviation_bound")
        for name in names:
            if getattr(self, name) <= 0:
                raise ArgumentError(f"{name}: found {getattr(self, name)}, expected more than 0")
        return VMPOLearner(policy, self, environments)


class VMPOLearner(Learner):
    """See the module for the loss."""

    settings: VMPO

    def __init__(self, policy: Policy, settings: VMPO, environments: int) -> None:
        super().__init__(policy, settings, environments)
        self.bounds = [settings.divergence_bound]
        if policy.head.sizes is None:
            self.bounds.append(settings.deviation_bound)
        kind = policy.value.weight.dtype
        self.log_temperature = nn.Parameter(torch.tensor(math.log(settings.temperature), dtype=kind))
        self.log_multipliers = nn.Parameter(torch.full((len(self.bounds),), math.log(settings.multiplier), dtype=kind))

    def loss(self, segment: Segment) -> tuple[Tensor, Mapping[str, Tensor]]:
        settings, valid = self.settings, segment.valid
        distribution, value = self.run(segment)
        eta, multipliers = self.log_temperature.exp(), self.log_multipliers.exp()
        log_prob, advantage = distribution.log_prob(segment.action)[valid], segment.advantage[valid]
        best = advantage.topk(max(1, len(advantage) // 2)).indices
        scaled = advantage[best] / eta
        policy_loss = -(scaled.detach().softmax(0) * log_prob[best]).sum()
        mean_exp = scaled.logsumexp(0) - math.log(len(best))
        temperature_loss = eta * (settings.temperature_bound + mean_exp)
        divergences = [masked_mean(one, valid) for one in distribution.divergences(segment.parameters)]
        trust = value.new_zeros(())
        for a, bound, divergence in zip(multipliers, self.bounds, divergences, strict=True):
            trust = trust + a * (bound - divergence.detach()) + a.detach() * divergence
        entropy = masked_mean(distribution.entropy(), valid)
        value_loss = 0.5 * masked_mean((value - segment.target) ** 2, valid)
        loss = policy_loss + temperature_loss + trust + settings.value_weight * value_loss
        statistics = {
            "entropy": entropy,
            "kl": sum(divergences[1:], divergences[0]),
            "temperature": eta,
            "multiplier": multipliers[0],
            "value_loss": value_loss,
        }
        return loss - settings.entropy_weight * entropy, statistics

    def after_step(self) -> None:
        # a multiplier near 0 would take for ever to come back
        with torch.no_grad():
            self.log_temperature.clamp_(min=math.log(1e-3))
            self.log_multipliers.clamp_(min=math.log(1e-3))
