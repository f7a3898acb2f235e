"""An agent with memory: learn in any Gymnasium environment, predict, save and load.

agent = Agent("gtrxl", "manyheads/TMaze-v0", memory=16).learn(40_000)
action, state = agent.predict(observation, state, is_first)
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from manyheads.core.errors import ArgumentError, CheckpointError, UnknownNameError
from manyheads.lab.data.fields import from_json
from manyheads.lab.progress import progress as show_progress
from manyheads.rl.encoders.observations import is_single, single, to_tensors
from manyheads.rl.environments.episodes import evaluate
from manyheads.rl.environments.vector import CheckedVectorEnv, make
from manyheads.rl.policies import Policy
from manyheads.rl.policies.player import AgentState, PolicyPlayer
from manyheads.rl.training.learner import AgentOptimiser, Algorithm
from manyheads.rl.training.loop import LINES, Training
from manyheads.rl.training.ppo import PPO
from manyheads.rl.training.settings import AgentModel
from manyheads.rl.training.stored import load_policy, load_tensors_into, save_policy
from manyheads.rl.training.vmpo import VMPO

Environment = str | gym.Env | VectorEnv | Callable[[], gym.Env]
ALGORITHMS: dict[str, type[Algorithm]] = {"ppo": PPO, "vmpo": VMPO}


class Agent:
    """A policy with its settings and, if it is to learn, its environments.

    Args:
        core: memory: "none", "lstm", "gru", "gtrxl", "lmu", or another strictly causal streaming layer.
        environment: Gymnasium's name, an environment, a function that makes one, or a vector environment.
        environments: environments side by side, if ``environment`` is none of many.
        environment_options: arguments of a named environment.
        algorithm: "ppo" or "vmpo".
        seed: of weights, actions, minibatches and environments.
        settings: fields of :class:`AgentModel`, of :class:`PPO` or :class:`VMPO`, and of :class:`AgentOptimiser`, such
            as ``width=128, memory=64, discount=0.999, learning_rate=3e-4``.

    Raises:
        ArgumentError, UnknownNameError: settings that do not exist or do not fit.
    """

    def __init__(
        self,
        core: str,
        environment: Environment,
        *,
        environments: int = 32,
        environment_options: Mapping[str, Any] | None = None,
        algorithm: str = "ppo",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        opened = _opened(environment, environments, environment_options)
        model, chosen, optimiser = _split(algorithm, {**_parts(opened), **settings, "core": core})
        seen, acted = opened.single_observation_space, opened.single_action_space
        self._take(model.seeded(seen, acted, seed), model, seen, acted, {})
        self._training: Training | None = Training(opened, self.policy, chosen, optimiser, seed=seed, name=opened.name)

    def _take(
        self,
        policy: Policy,
        model: AgentModel,
        seen: spaces.Space[Any],
        acted: spaces.Space[Any],
        about: Mapping[str, Any],
    ) -> None:
        self.policy, self.model, self.player = policy, model, PolicyPlayer(policy, seen)
        self.observation_space, self.action_space = seen, acted
        # experiment, seed and metrics of the training that wrote the file; empty after further learning
        self.about = about

    def learn(self, steps: int, *, progress: bool = True) -> Agent:
        """Learn for so many steps of all environments together; called again, learn on.

        A linear decay of the learning rate runs over the steps of one call. ``manyheads rl train`` has checkpoints.

        Raises:
            ArgumentError: fewer than one step, or an agent that was loaded without an environment.
        """
        if steps < 1:
            raise ArgumentError(f"steps: found {steps}, expected 1 or more")
        training = self._training
        if training is None:
            raise ArgumentError("learn: found no environment, expected one: Agent.load(path, environment)")
        self.about = {}
        start, before = training.steps, time.process_time()
        per_update = training.environments.num_envs * training.algorithm.segment
        every = max(1, math.ceil(steps / per_update) // LINES)
        title = f"{self.model.core} in {training.name}"
        bar = show_progress(title, math.ceil(steps / per_update / every)) if progress else nullcontext(None)
        with bar as advance:
            while training.steps - start < steps:
                training.update((training.steps - start) / steps)
                if advance is not None and training.updates % every == 0:
                    mean, rate = training.mean_return, (training.steps - start) / (time.process_time() - before)
                    said = "no episode yet" if mean is None else f"return {mean:.3g}"
                    advance(f"{training.steps:,} steps, {said}, {rate:.0f} steps/CPU s")
        return self

    @property
    def steps(self) -> int:
        """Steps of all environments together that it has learnt from since it was made or loaded."""
        return 0 if self._training is None else self._training.steps

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last 100 training episodes; None before the first ends."""
        return None if self._training is None else self._training.mean_return

    def init_state(self, count: int = 1) -> AgentState:
        """The state before the first step of an episode."""
        return self.player.init_state(count)

    def predict(
        self,
        observation: Any,
        state: AgentState | None = None,
        is_first: bool | np.ndarray | None = None,
        *,
        reward: float | np.ndarray | None = None,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Any, AgentState]:
        """Return the action for an observation, or for a batch of them, and the state for the next call.

        Args:
            observation: as in the observation space, or with a leading batch axis.
            state: of the call before; None starts an episode.
            is_first: whether an episode starts here, one truth value or one for each row; by default without a state.
            reward: the reward that came with the observation, for an agent with ``previous_reward``.
            deterministic: the most probable action, else one drawn with ``generator``.

        Raises:
            ArgumentError: a reward that the agent needs is missing, or a state of another batch size.
            DataError: an observation of another structure or shape.
        """
        alone = is_single(self.observation_space, observation)
        batch = single(self.observation_space, observation) if alone else observation
        count = len(next(iter(to_tensors(self.observation_space, batch).values())))
        if is_first is None:
            is_first = state is None
        first = torch.as_tensor(is_first, dtype=torch.bool).reshape(-1).expand(count)
        state = self.init_state(count) if state is None else state
        if len(state.previous_action) != count:
            raise ArgumentError(
                f"state: found {len(state.previous_action)} rows, expected {count}, as many as observations"
            )
        if reward is None and self.policy.previous_reward and not first.all():
            raise ArgumentError("reward: found none, expected the reward of the step before: this agent reads it")
        rewards = torch.as_tensor(0.0 if reward is None else reward).float().reshape(-1).expand(count)
        given, after = self.player.act(
            batch, state, first.numpy(), None, rewards.numpy(), deterministic=deterministic, generator=generator
        )
        return given[0] if alone else given, after

    def evaluate(self, environment: Environment, episodes: int = 100, *, seed: int = 1, **options: Any) -> list[float]:
        """Return the return of each of so many episodes in new environments, with the most probable actions."""
        environments = _opened(environment, min(32, episodes), options)
        self.check_spaces(environments, "evaluate")
        try:
            return evaluate(self.player, environments, episodes, seed=seed).returns.tolist()
        finally:
            environments.close()

    def save(self, path: str | Path) -> None:
        """Write policy, settings and spaces as one safetensors file, atomically."""
        save_policy(Path(path), self.policy, self.model, self.observation_space, self.action_space, self.about)

    @classmethod
    def load(
        cls,
        path: str | Path,
        environment: Environment | None = None,
        *,
        environments: int = 32,
        environment_options: Mapping[str, Any] | None = None,
        algorithm: str = "ppo",
        seed: int = 0,
        **settings: Any,
    ) -> Agent:
        """Read an agent; with an environment it can learn on, with fresh optimiser and the settings given.

        Raises:
            CheckpointError: a file that is absent, damaged, of another kind, or of other spaces than the environment.
            ArgumentError: a setting of the network, which is that of the file.
        """
        agent = cls.__new__(cls)
        agent._take(*load_policy(path))
        agent._training = None
        if environment is None:
            return agent
        for name in settings:
            if name in AgentModel.__dataclass_fields__:
                raise ArgumentError(f"{name}: found {settings[name]!r}, expected none: the network is that of the file")
        opened = _opened(environment, environments, environment_options)
        _, chosen, optimiser = _split(algorithm, {**_parts(opened), **settings})
        agent.check_spaces(opened, str(path))
        agent._training = Training(opened, agent.policy, chosen, optimiser, seed=seed, name=opened.name)
        return agent

    def load_weights(self, path: str | Path) -> None:
        """Take the weights of a file with an agent of the same settings and spaces.

        Raises :class:`CheckpointError` that names the first tensor that is missing, unexpected or of another shape.
        """
        load_tensors_into(self.policy, path)

    def check_spaces(self, environments: VectorEnv, place: str) -> None:
        """Raise :class:`CheckpointError`, which begins with ``place``, for environments of other spaces."""
        for name, own in (("observation", self.observation_space), ("action", self.action_space)):
            found = getattr(environments, f"single_{name}_space")
            if found != own:
                raise CheckpointError(
                    f"{place}: {name} space: found {found}, expected {own}, that of the agent: use its environment"
                )


def _opened(environment: Environment, count: int, options: Mapping[str, Any] | None) -> CheckedVectorEnv:
    own = isinstance(environment, VectorEnv | gym.Env)
    return make(environment, None if own else count, **(options or {}))


def _parts(environments: VectorEnv) -> dict[str, int]:
    """No more minibatches than environments, unless the caller asks for more."""
    return {"minibatches": min(Algorithm.minibatches, environments.num_envs)}


def _split(algorithm: str, settings: Mapping[str, Any]) -> tuple[AgentModel, Algorithm, AgentOptimiser]:
    """Distribute settings by the names of their fields."""
    if algorithm not in ALGORITHMS:
        raise UnknownNameError("algorithm", algorithm, ALGORITHMS)
    kinds: list[type[Any]] = [AgentModel, ALGORITHMS[algorithm], AgentOptimiser]
    known = {one.name: kind for kind in kinds for one in fields(kind)}
    given: dict[type[Any], dict[str, Any]] = {kind: {} for kind in kinds}
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ArgumentError(f"agent: {name}: found a setting of that name, expected another: {fix}")
        given[known[name]][name] = value
    model, chosen, optimiser = (from_json(kind, given[kind], place="agent") for kind in kinds)
    return model, chosen, optimiser
