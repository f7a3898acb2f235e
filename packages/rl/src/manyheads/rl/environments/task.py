"""The base of our own tasks: many environments in one numpy program, or one as a ``gymnasium.Env``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Space
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from manyheads.core.errors import ArgumentError
from manyheads.rl.environments.checks import ActionCheck

PICTURES: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}


class VectorTask(VectorEnv):
    """``num_envs`` copies of a task with a random stream each, and NEXT_STEP autoreset.

    Environment i after ``reset(seed=s)`` plays the episodes of a single environment after ``reset(seed=s + i)``. This
    holds for all its later episodes too, and does not depend on the other environments.

    A subclass writes :meth:`begin`, :meth:`advance`, :meth:`observe` and :meth:`picture`.
    """

    metadata = PICTURES | {"autoreset_mode": AutoresetMode.NEXT_STEP}
    observation_names: ClassVar[tuple[str, ...]] = ()
    """Of the numbers of an observation, or of the choices of a discrete one, for pictures."""

    def __init__(
        self, num_envs: int, observation_space: Space, action_space: Space, *, render_mode: str | None = None
    ) -> None:
        whole("num_envs", num_envs, 1)
        if render_mode not in (None, "rgb_array"):
            raise ArgumentError(f"render_mode: found {render_mode!r}, expected 'rgb_array' or None: choose one of them")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._check_actions = ActionCheck(action_space, num_envs, type(self).__name__)
        self._ended = np.zeros(num_envs, bool)
        self._steps: int | None = None

    def begin(self, indices: np.ndarray) -> None:
        """Start a new episode in the environments ``indices``, each with its own generator."""
        raise NotImplementedError

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take one step in all environments: ``(rewards, terminated, truncated)``, new arrays."""
        raise NotImplementedError

    def observe(self) -> np.ndarray:
        """Return the observations of all environments as a new array."""
        raise NotImplementedError

    def picture(self, index: int) -> np.ndarray:
        """Return a small RGB picture of one environment, ``(height, width, 3)`` bytes."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes: in all environments, or in those of the boolean array ``options["reset_mask"]``.

        Args:
            seed: environment i gets ``seed + i``, or ``seed[i]`` of a sequence. Without a seed, the random streams go
                on.
            options: nothing else than ``reset_mask`` is used.
        """
        mask = (options or {}).get("reset_mask")
        if mask is None:
            indices = np.arange(self.num_envs)
        elif np.asarray(mask).dtype == bool and np.shape(mask) == (self.num_envs,) and self._steps is not None:
            indices = np.flatnonzero(mask)
        else:
            raise ArgumentError(
                f"reset_mask: found {mask!r}, expected {self.num_envs} booleans after a first full reset: correct it"
            )
        if seed is not None:
            is_one = isinstance(seed, int | np.integer)
            seeds = [int(seed) + i for i in range(self.num_envs)] if is_one else list(seed)
            if len(seeds) != self.num_envs:
                raise ArgumentError(
                    f"seed: found {len(seeds)} seeds, expected {self.num_envs}: give one for each environment"
                )
            for i in indices:
                if seeds[i] is not None:
                    self.generators[i], _ = seeding.np_random(int(seeds[i]))
        self._steps = self._steps or 0
        self._ended[indices] = False
        self.begin(indices)
        return self.observe(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step; environments whose episode has ended ignore their action and start a new one."""
        if self._steps is None:
            raise ArgumentError("step: found no first reset, expected one: call reset() first")
        self._steps += 1
        fresh = self._ended
        rewards, terminated, truncated = self.advance(self._check_actions(actions, self._steps))
        if fresh.any():
            self.begin(np.flatnonzero(fresh))
            rewards[fresh], terminated[fresh], truncated[fresh] = 0.0, False, False
        self._ended = terminated | truncated
        return self.observe(), rewards, terminated, truncated, {}

    def get_state(self) -> dict[str, np.ndarray]:
        """Return everything that determines the episodes to come: the arrays, the count of steps, the generators."""
        generators = json.dumps([one.bit_generator.state for one in self.generators])
        found = {name: one.copy() for name, one in vars(self).items() if isinstance(one, np.ndarray)}
        found["generators"] = np.frombuffer(generators.encode(), np.uint8).copy()
        return found | {"steps": np.array(-1 if self._steps is None else self._steps)}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take a state of :meth:`get_state`."""
        own = dict(state)
        stored = json.loads(own.pop("generators").tobytes())
        for generator, one in zip(self.generators, stored, strict=True):
            generator.bit_generator.state = one
        steps = int(own.pop("steps"))
        self._steps = None if steps < 0 else steps
        for name, one in own.items():
            setattr(self, name, one.copy())

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return one picture for each environment, or None without ``render_mode="rgb_array"``."""
        if self.render_mode is None:
            return None
        return tuple(self.picture(i) for i in range(self.num_envs))


class SingleTask(gym.Env):
    """One environment of a :class:`VectorTask` as a ``gymnasium.Env``; it takes the same options."""

    kind: ClassVar[type[VectorTask]]
    metadata = PICTURES

    def __init__(self, **options: Any) -> None:
        self.task = self.kind(num_envs=1, **options)
        self.render_mode = self.task.render_mode
        self.observation_space = self.task.single_observation_space
        self.action_space = self.task.single_action_space
        self._is_running = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode; without a seed, the random stream goes on."""
        super().reset(seed=seed)
        self.task.generators[0] = self.np_random
        observations, _ = self.task.reset()
        self._is_running = True
        return observations[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step.

        Raises:
            ArgumentError: before the first reset, after the end of an episode, and for an action out of range.
        """
        if not self._is_running:
            raise ArgumentError("step: found no running episode, expected one: call reset() first")
        observations, rewards, terminated, truncated, _ = self.task.step(np.asarray([action]))
        self._is_running = not (terminated[0] or truncated[0])
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:
        """Return a small RGB picture, or None without ``render_mode="rgb_array"``."""
        return None if self.render_mode is None else self.task.picture(0)


def whole(name: str, value: object, least: int) -> int:
    """Return ``value`` if it is an integer of at least ``least``.

    Raises:
        ArgumentError: for anything else.
    """
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < least:
        raise ArgumentError(f"{name}: found {value!r}, expected an integer of at least {least}: correct it")
    return int(value)
