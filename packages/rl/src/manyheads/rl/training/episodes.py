"""Play whole episodes with a policy, without learning."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from manyheads.rl.policies.policy import Policy
from manyheads.rl.training.rollout import Stream, act, advance


@torch.no_grad()
def play_episodes(
    environments: VectorEnv, policy: Policy, episodes: int, *, seed: int, deterministic: bool = True
) -> list[tuple[float, int]]:
    """Return return and length of each of ``episodes`` episodes.

    Every environment plays its share to the end: stopping at the first ``episodes`` that end would favour short ones.
    """
    count = environments.num_envs
    quota = np.full(count, episodes // count)
    quota[: episodes % count] += 1
    generator = torch.Generator().manual_seed(seed)
    stream = Stream.start(environments, policy, seed)
    found: list[tuple[float, int]] = []
    for ended in _ends(environments, policy, stream, generator, deterministic):
        for index, one in ended:
            if quota[index] > 0:
                quota[index] -= 1
                found.append(one)
        if not quota.any():
            return found
    return found


def _ends(
    environments: VectorEnv, policy: Policy, stream: Stream, generator: torch.Generator, deterministic: bool
) -> Iterator[list[tuple[int, tuple[float, int]]]]:
    while True:
        distribution, _, state = act(policy, stream)
        action = distribution.mode() if deterministic else distribution.sample(generator)
        yield advance(environments, policy, stream, action[:, 0], state).ended
