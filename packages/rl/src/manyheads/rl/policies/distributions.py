"""Distributions of actions: categorical, several categorical ones, diagonal Gaussian.

``parameters (…, K)`` holds all numbers of a distribution, so that a rollout can store the policy that acted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Distribution(ABC):
    """A distribution of actions for each element of a batch."""

    parameters: Tensor

    @abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw an action for each element."""

    @abstractmethod
    def mode(self) -> Tensor:
        """The most probable action."""

    @abstractmethod
    def log_prob(self, action: Tensor) -> Tensor:
        """``(…)``: log-probability, or log-density, of an action."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """``(…)``: entropy in nats."""

    @abstractmethod
    def divergences(self, other: Tensor) -> tuple[Tensor, ...]:
        """KL divergences from the distribution with parameters ``other`` to this one; their sum is the whole.

        One for categorical actions; for Gaussian ones that of the means and that of the deviations, as V-MPO has them.
        """


@dataclass
class Categorical(Distribution):
    """One or several independent categorical distributions; ``parameters`` are logits side by side."""

    parameters: Tensor
    sizes: Sequence[int]
    """Number of choices of each."""
    flat: bool
    """One distribution with actions ``(…)``; otherwise actions are ``(…, len(sizes))``."""

    def __post_init__(self) -> None:
        self.log_probs = [part.log_softmax(-1) for part in self.parameters.split(list(self.sizes), -1)]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        drawn = []
        for log_probs in self.log_probs:
            # Gumbel-max: one exponential variable for each choice
            noise = torch.empty_like(log_probs).exponential_(generator=generator)
            drawn.append((log_probs.exp() / noise).argmax(-1))
        return self._action(drawn)

    def mode(self) -> Tensor:
        return self._action([log_probs.argmax(-1) for log_probs in self.log_probs])

    def log_prob(self, action: Tensor) -> Tensor:
        chosen = action.unsqueeze(-1) if self.flat else action
        parts = [
            log_probs.gather(-1, chosen[..., place, None]).squeeze(-1) for place, log_probs in enumerate(self.log_probs)
        ]
        return sum(parts[1:], parts[0])

    def entropy(self) -> Tensor:
        parts = [-(log_probs.exp() * log_probs).sum(-1) for log_probs in self.log_probs]
        return sum(parts[1:], parts[0])

    def divergences(self, other: Tensor) -> tuple[Tensor, ...]:
        old = [part.log_softmax(-1) for part in other.split(list(self.sizes), -1)]
        parts = [(o.exp() * (o - own)).sum(-1) for o, own in zip(old, self.log_probs, strict=True)]
        return (sum(parts[1:], parts[0]),)

    def _action(self, parts: list[Tensor]) -> Tensor:
        return parts[0] if self.flat else torch.stack(parts, -1)


@dataclass
class Gaussian(Distribution):
    """Diagonal Gaussian; ``parameters`` are means and logarithms of the standard deviations side by side."""

    parameters: Tensor

    def __post_init__(self) -> None:
        self.mean, self.log_sd = self.parameters.chunk(2, -1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self.mean + self.log_sd.exp() * noise

    def mode(self) -> Tensor:
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        scaled = (action - self.mean) * torch.exp(-self.log_sd)
        return (-0.5 * scaled**2 - self.log_sd - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.log_sd + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def divergences(self, other: Tensor) -> tuple[Tensor, ...]:
        mean, log_sd = other.chunk(2, -1)
        # at the old deviations, then at the old means
        means = (0.5 * ((self.mean - mean) * torch.exp(-log_sd)) ** 2).sum(-1)
        ratio = log_sd - self.log_sd
        deviations = (0.5 * torch.exp(2 * ratio) - 0.5 - ratio).sum(-1)
        return means, deviations
