"""A policy as a player of environments: actions as the environment takes them, and the state between two steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from manyheads.core.state import State
from manyheads.rl.encoders.observations import to_tensors
from manyheads.rl.policies.policy import Policy


class AgentState(NamedTuple):
    """What an agent keeps between two steps, batch first."""

    memory: State
    previous_action: Tensor


class PolicyPlayer:
    """A policy that acts step by step; a :class:`~manyheads.rl.environments.episodes.Player`.

    Args:
        policy: the policy.
        observation_space: of a single environment.
    """

    def __init__(self, policy: Policy, observation_space: spaces.Space[Any]) -> None:
        self.policy, self.observation_space = policy, observation_space

    def init_state(self, count: int) -> AgentState:
        """The state of ``count`` environments before the first step of an episode."""
        head = self.policy.head
        return AgentState(self.policy.init_state(count), torch.zeros(count, *head.shape, dtype=head.dtype))

    @torch.no_grad()
    def act(
        self,
        observations: Any,
        state: AgentState,
        is_first: np.ndarray,
        previous_action: Any,
        previous_reward: np.ndarray,
        *,
        deterministic: bool,
        generator: torch.Generator | None = None,
    ) -> tuple[Any, AgentState]:
        """The actions of a batch and the next state. The action before is that of the state, without clipping.

        Args:
            observations: as they come from the vector environment.
            state: of the step before.
            is_first ``(count,)``: true at the first step of an episode.
            previous_action: not read.
            previous_reward ``(count,)``: raw rewards of the step before.
            deterministic: the most probable actions, else drawn ones.
            generator: of drawn actions; torch's own by default.
        """
        distribution, _, memory = self.policy(
            {name: one.unsqueeze(1) for name, one in to_tensors(self.observation_space, observations).items()},
            state.memory,
            torch.as_tensor(is_first).unsqueeze(1),
            state.previous_action.unsqueeze(1),
            torch.as_tensor(previous_reward).float().unsqueeze(1),
        )
        action = (distribution.mode() if deterministic else distribution.sample(generator))[:, 0]
        return self.policy.head.to_environment(action), AgentState(memory, action)
