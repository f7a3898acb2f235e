"""A policy: encoder, memory core, heads of actions and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.state import State
from manyheads.rl.cores.core import Core
from manyheads.rl.encoders.build import Encoder
from manyheads.rl.policies.actions import ActionHead
from manyheads.rl.policies.distributions import Distribution
from manyheads.rl.policies.remembering import Remembering


class PolicyOutput(NamedTuple):
    """Distribution of actions and value ``(B, T)`` at each step, and the state after the last."""

    distribution: Distribution
    value: Tensor
    state: State


class Policy(Remembering):
    """Actions and values from observations and a memory.

    Args:
        encoder: observations to features.
        core: the memory.
        head: features to a distribution of actions.
        previous_action: read the action before, one-hot; 0 at the first step of an episode.
        previous_reward: read the reward before, as ``sign(r) log(1 + |r|)``; 0 at the first step.
    """

    def __init__(
        self, encoder: Encoder, core: Core, head: ActionHead, *, previous_action: bool, previous_reward: bool
    ) -> None:
        super().__init__(encoder, core)
        self.head = head
        self.previous_action, self.previous_reward = previous_action, previous_reward
        inputs = head.code_width * previous_action + previous_reward
        self.previous = nn.Linear(inputs, core.width, bias=False) if inputs else None
        self.value = nn.Linear(core.width, 1)
        nn.init.orthogonal_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(
        self,
        observations: Mapping[str, Tensor],
        state: State,
        is_first: Tensor,
        previous_action: Tensor,
        previous_reward: Tensor,
    ) -> PolicyOutput:
        """Run T steps of B environments.

        Args:
            observations: tensors ``(B, T, …)`` by name.
            state: the memory before the first step; the gradient stops there.
            is_first ``(B, T)``: True at the first observation of an episode.
            previous_action ``(B, T, …)``: the action that led to each observation; not read where ``is_first``.
            previous_reward ``(B, T)``: the reward that came with each observation; not read where ``is_first``.
        """
        added = None
        if self.previous is not None:
            added = self.previous(self._previous(previous_action, previous_reward, is_first))
        y, state = self.features(observations, state, is_first, added)
        return PolicyOutput(self.head(y), self.value(y).squeeze(-1), state)

    def _previous(self, action: Tensor, reward: Tensor, is_first: Tensor) -> Tensor:
        parts = []
        if self.previous_action:
            parts.append(self.head.codes(action))
        if self.previous_reward:
            parts.append((reward.sign() * reward.abs().log1p()).unsqueeze(-1).to(self.value.weight.dtype))
        joined = torch.cat(parts, -1)
        return torch.where(is_first.unsqueeze(-1), joined.new_zeros(()), joined)
