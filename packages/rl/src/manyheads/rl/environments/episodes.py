"""Play whole episodes with a policy: evaluation without bias towards short episodes, and recordings of play."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import create_empty_array

from manyheads.core.errors import ArgumentError
from manyheads.rl.environments.task import whole


class Player(Protocol):
    """What plays: an agent, or anything else with a state for each environment."""

    def init_state(self, count: int) -> Any:
        """Return the state of ``count`` environments before their first step."""
        ...

    def act(
        self,
        observations: Any,
        state: Any,
        is_first: np.ndarray,
        previous_action: Any,
        previous_reward: np.ndarray,
        *,
        deterministic: bool,
    ) -> tuple[Any, Any]:
        """Return the actions of one step and the next state.

        Args:
            observations: of all environments, as they come from the vector environment.
            state: of the previous step.
            is_first: ``(count,)`` booleans, true at the first step of an episode; the state of the previous episode
                must not be used there.
            previous_action: actions of the previous step, 0 at the first one.
            previous_reward: raw rewards of the previous step, 0 at the first one.
            deterministic: take the most likely action instead of drawing one.
        """
        ...


class Step(NamedTuple):
    """One step of all environments: what was seen, done and received.

    ``is_filler`` marks environments whose episode had ended before. Their action was ignored, and their reward is 0.
    """

    observations: Any
    is_first: np.ndarray
    actions: Any
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    is_filler: np.ndarray


def play(
    player: Player,
    env: VectorEnv,
    *,
    seed: int,
    deterministic: bool = True,
    watch: Callable[[], None] | None = None,
) -> Iterator[Step]:
    """Yield step after step without end; environments go on with the next episode when one has ended.

    ``watch`` is called before each step.
    """
    observations, _ = env.reset(seed=seed)
    state = player.init_state(env.num_envs)
    is_first, is_filler = np.ones(env.num_envs, bool), np.zeros(env.num_envs, bool)
    actions: Any = create_empty_array(env.single_action_space, env.num_envs)
    rewards = np.zeros(env.num_envs)
    while True:
        if watch is not None:
            watch()
        seen, first = observations, is_first
        actions, state = player.act(seen, state, first, actions, rewards, deterministic=deterministic)
        observations, rewards, terminated, truncated, _ = env.step(actions)
        yield Step(seen, first, actions, rewards, terminated, truncated, is_filler)
        # The observation after a filler is the first of an episode, which has no action and no reward before it.
        is_first, is_filler = is_filler, terminated | truncated
        actions, rewards = np.array(actions), np.array(rewards, np.float64)
        actions[is_first], rewards[is_first] = 0, 0.0


@dataclass(frozen=True)
class Evaluation:
    """Episodes in the order of environments, then of time. Returns are sums of raw rewards, without discount.

    Args:
        returns: ``(episodes,)``.
        lengths: steps of each episode.
        environments: which environment played it.
        truncated: whether a time limit ended it.
    """

    returns: np.ndarray
    lengths: np.ndarray
    environments: np.ndarray
    truncated: np.ndarray

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def sd(self) -> float:
        """Standard deviation of the returns, NaN for one episode."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else float("nan")


def evaluate(
    player: Player,
    env: VectorEnv,
    episodes: int = 100,
    *,
    seed: int = 0,
    deterministic: bool = True,
    max_steps: int | None = None,
) -> Evaluation:
    """Play ``episodes`` whole episodes and return what each of them brought.

    Each environment plays its share from its first episode on. Counting the episodes that end first would prefer short
    ones, which are the bad ones in CartPole and the good ones in a maze.

    Random actions are drawn from torch's generator, which is seeded with ``seed`` and put back at the end. So a
    training goes on as if there had been no evaluation.

    Args:
        player: an agent or another :class:`Player`.
        env: a vector environment with NEXT_STEP autoreset, for example from ``manyheads.rl.environments.vector.make``.
        episodes: number of episodes. If it is no multiple of the number of environments, the first ones play one more.
        seed: of the environments and of random actions.
        deterministic: take the most likely action instead of drawing one.
        max_steps: give up after so many steps of an environment.

    Raises:
        ArgumentError: if the episodes have not ended after ``max_steps``.
    """
    whole("episodes", episodes, 1)
    share = np.full(env.num_envs, episodes // env.num_envs)
    share[: episodes % env.num_envs] += 1
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
    found: list[list[tuple[float, int, int, bool]]] = [[] for _ in range(env.num_envs)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number, step in enumerate(play(player, env, seed=seed, deterministic=deterministic), start=1):
            returns += step.rewards
            lengths += ~step.is_filler
            for i in np.flatnonzero(step.terminated | step.truncated):
                found[i].append((float(returns[i]), int(lengths[i]), int(i), bool(not step.terminated[i])))
                returns[i], lengths[i] = 0.0, 0
            if all(len(done) >= wanted for done, wanted in zip(found, share, strict=True)):
                break
            if number == max_steps:
                raise ArgumentError(
                    f"max_steps: found {sum(map(len, found))} episodes in {max_steps} steps, expected {episodes}: "
                    "raise it, or give the environment a time limit"
                )
    kept = [one for done, wanted in zip(found, share, strict=True) for one in done[:wanted]]
    columns = zip(*kept, strict=True)
    return Evaluation(*(np.array(column) for column in columns))
