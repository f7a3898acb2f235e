"""Rollouts: T steps of B environments under one policy, with the memory at their start.

The environments reset at the step after the end of an episode (``AutoresetMode.NEXT_STEP``). That step ignores the
action and is no transition: it is a *filler*. ``valid`` is False there; no loss and no statistic counts it. Its
observation is the last one of the episode, so the value computed there, with the memory of that episode, bootstraps a
truncation.

Axes: T steps, B environments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.state import State
from manyheads.rl.encoders.observations import to_tensors
from manyheads.rl.policies.policy import Policy, PolicyOutput


class Segment(NamedTuple):
    """What a loss reads, ``(B, T, …)`` each; ``state`` is the memory at the first step."""

    observations: Mapping[str, Tensor]
    state: State
    is_first: Tensor
    previous_action: Tensor
    previous_reward: Tensor
    action: Tensor
    log_prob: Tensor
    parameters: Tensor
    value: Tensor
    valid: Tensor
    advantage: Tensor
    target: Tensor


@dataclass
class Rollout:
    """T steps of B environments; tensors ``(T, B, …)``."""

    observations: dict[str, Tensor]
    is_first: Tensor
    previous_action: Tensor
    previous_reward: Tensor
    action: Tensor
    log_prob: Tensor
    parameters: Tensor
    """Parameters of the distribution that acted."""
    value: Tensor
    reward: Tensor
    """As the environment gave it."""
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    """False for fillers."""
    last_value: Tensor
    """``(B,)``: value of the observation after the last step."""
    state: State
    """Memory before the first step."""
    finished: list[tuple[float, int]]
    """Return and length of each episode that ended."""

    @property
    def steps(self) -> int:
        """Transitions, without fillers."""
        return int(self.valid.sum())

    def segment(self, rows: Tensor, advantage: Tensor, target: Tensor) -> Segment:
        """Gather whole environments for a loss."""

        def take(one: Tensor) -> Tensor:
            return one.transpose(0, 1).index_select(0, rows)

        return Segment(
            {name: take(one) for name, one in self.observations.items()},
            trees.select(self.state, rows),
            *(take(one) for one in (self.is_first, self.previous_action, self.previous_reward)),
            *(take(one) for one in (self.action, self.log_prob, self.parameters, self.value, self.valid)),
            take(advantage),
            take(target),
        )


@dataclass
class Stream:
    """The position in B running environments: what the policy reads next, and its memory."""

    observations: dict[str, Tensor]
    is_first: Tensor
    over: Tensor
    """The episode has ended, so that the next step is a filler."""
    previous_action: Tensor
    previous_reward: Tensor
    state: State
    episode_return: np.ndarray
    episode_length: np.ndarray

    @classmethod
    def start(cls, environments: VectorEnv, policy: Policy, seed: int) -> Stream:
        """Reset all environments."""
        count, head = environments.num_envs, policy.head
        observations, _ = environments.reset(seed=seed)
        kind = policy.value.weight.dtype
        return cls(
            to_tensors(environments.single_observation_space, observations),
            torch.ones(count, dtype=torch.bool),
            torch.zeros(count, dtype=torch.bool),
            torch.zeros(count, *head.shape, dtype=head.dtype),
            torch.zeros(count, dtype=kind),
            policy.init_state(count),
            np.zeros(count),
            np.zeros(count, dtype=np.int64),
        )


class Step(NamedTuple):
    """What the environments gave back, ``(B,)`` each."""

    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    ended: list[tuple[int, tuple[float, int]]]
    """Environment, and return and length of its episode."""


def act(policy: Policy, stream: Stream) -> PolicyOutput:
    """Run the policy on the next observation of each environment, as a segment of one step."""
    return policy(
        {name: one.unsqueeze(1) for name, one in stream.observations.items()},
        stream.state,
        stream.is_first.unsqueeze(1),
        stream.previous_action.unsqueeze(1),
        stream.previous_reward.unsqueeze(1),
    )


def advance(environments: VectorEnv, policy: Policy, stream: Stream, action: Tensor, state: State) -> Step:
    """Step the environments with ``action (B, …)`` and move the stream on; ``state`` is the memory after the step."""
    seen, reward, terminated, truncated, _ = environments.step(policy.head.to_environment(action))
    terminated, truncated = np.asarray(terminated, dtype=bool), np.asarray(truncated, dtype=bool)
    valid = ~stream.over.numpy()
    over = (terminated | truncated) & valid
    stream.episode_return += np.where(valid, reward, 0.0)
    stream.episode_length += valid
    ended = [
        (int(index), (float(stream.episode_return[index]), int(stream.episode_length[index])))
        for index in over.nonzero()[0]
    ]
    stream.episode_return[over] = 0.0
    stream.episode_length[over] = 0
    rewards = torch.as_tensor(np.asarray(reward)).to(stream.previous_reward.dtype)
    stream.observations = to_tensors(environments.single_observation_space, seen)
    stream.previous_action, stream.previous_reward, stream.state = action, rewards, state
    stream.is_first, stream.over = stream.over, torch.from_numpy(over)
    return Step(rewards, torch.from_numpy(terminated), torch.from_numpy(truncated), ended)


@torch.no_grad()
def collect(environments: VectorEnv, policy: Policy, stream: Stream, steps: int, generator: torch.Generator) -> Rollout:
    """Run ``steps`` steps and move the stream on."""
    start, finished = stream.state, []
    columns: dict[str, list[Tensor]] = defaultdict(list)
    seen: dict[str, list[Tensor]] = defaultdict(list)
    for _ in range(steps):
        distribution, value, state = act(policy, stream)
        action = distribution.sample(generator)
        row = {
            "is_first": stream.is_first,
            "previous_action": stream.previous_action,
            "previous_reward": stream.previous_reward,
            "action": action[:, 0],
            "log_prob": distribution.log_prob(action)[:, 0],
            "parameters": distribution.parameters[:, 0],
            "value": value[:, 0],
            "valid": ~stream.over,
        }
        for name, one in stream.observations.items():
            seen[name].append(one)
        reward, terminated, truncated, ended = advance(environments, policy, stream, action[:, 0], state)
        for name, one in {**row, "reward": reward, "terminated": terminated, "truncated": truncated}.items():
            columns[name].append(one)
        finished += [one for _, one in ended]
    stacked: dict[str, Any] = {name: torch.stack(rows) for name, rows in columns.items()}
    return Rollout(
        observations={name: torch.stack(rows) for name, rows in seen.items()},
        last_value=act(policy, stream).value[:, 0],
        state=start,
        finished=finished,
        **stacked,
    )
