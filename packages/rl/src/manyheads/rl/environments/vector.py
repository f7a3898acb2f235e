"""Make vector environments that are checked at every step, from a name, a function, or an environment."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import registry
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from manyheads.core.errors import ArgumentError, ManyheadsError, UnknownNameError
from manyheads.rl.environments.atari import Atari, is_raw
from manyheads.rl.environments.checks import ActionCheck, ObservationCheck, check_outcome, check_spaces
from manyheads.rl.environments.names import register_tasks
from manyheads.rl.environments.task import VectorTask, whole
from manyheads.rl.environments.watchdog import TIMEOUT, EnvironmentFailedError, Watchdog

Source = str | gym.Env | VectorEnv | Callable[[], gym.Env]

# "pong-42" is Pong with frames of 42 x 42.
PRESET = re.compile(r"(?P<game>[a-z0-9_]+)-(?P<size>42|84)")
ATARI = re.compile(r"ALE/(?P<game>\w+)-v5")
PRESETS = ("pong-42", "pong-84", "ALE/Pong-v5")


class CheckedVectorEnv(VectorWrapper):
    """A vector environment with NEXT_STEP autoreset whose every call is checked and watched.

    ``step`` and ``reset`` raise errors that name the environment and the step: for actions out of range, for
    observations outside their space or not finite, for rewards that are not finite, and if an environment raises, dies
    or hangs. :func:`make` makes it.
    """

    def __init__(self, env: VectorEnv, name: str, *, seed: int | None, timeout: float | None, bounds: bool) -> None:
        super().__init__(env)
        check_spaces(self.single_observation_space, self.single_action_space)
        self.metadata = dict(env.metadata) | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.name, self.steps = name, 0
        self._seed = seed
        # Our own tasks cannot hang, and are so fast that a change of thread would show.
        self._watchdog = Watchdog(name, None if isinstance(env, VectorTask) else timeout)
        self._check_actions = ActionCheck(self.single_action_space, self.num_envs, name)
        self._check_observations = ObservationCheck(self.single_observation_space, self.num_envs, name, bounds=bounds)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start new episodes. Without a seed, the first reset takes the one that was given to :func:`make`."""
        if seed is None:
            seed, self._seed = self._seed, None
        # Gymnasium's vector environments take a Python integer, and no numpy integer.
        seed = seed if seed is None or np.ndim(seed) else int(seed)
        observations, info = self._call(self._reset, seed, options, place=f"reset after step {self.steps}")
        self._check_observations(observations, self.steps)
        return observations, info

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step in all environments. Steps are counted from 1, over all episodes."""
        self.steps += 1
        actions = self._check_actions(actions, self.steps)
        outcome = self._call(self.env.step, actions, place=f"step {self.steps}")
        observations, rewards, terminated, truncated, _ = outcome
        self._check_observations(observations, self.steps)
        check_outcome(rewards, terminated, truncated, count=self.num_envs, name=self.name, step=self.steps)
        return outcome

    def close(self, **options: Any) -> None:
        """Close the environments. After a failure nothing waits for one that hangs."""
        self._watchdog.close()
        if self._watchdog.failure is None:
            self.env.close(**options)

    def _call(self, function: Callable[..., Any], *arguments: Any, place: str) -> Any:
        try:
            return self._watchdog.call(function, *arguments, place=place)
        except EnvironmentFailedError:
            if isinstance(self.unwrapped, AsyncVectorEnv) and not self.unwrapped.closed:
                _end_workers(self.unwrapped)
            raise

    def _reset(self, seed: Any, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options=options)


def make(
    what: Source,
    count: int | None = None,
    *,
    seed: int | None = None,
    timeout: float | None = TIMEOUT,
    bounds: bool = True,
    **options: Any,
) -> CheckedVectorEnv:
    """Make ``count`` environments, checked and watched.

    Args:
        what: a name of Gymnasium such as ``"manyheads/TMaze-v0"``; an Atari game as ``"ALE/Pong-v5"``, or as
            ``"pong-42"`` with frames of 42 x 42; a function that makes an environment; one environment; or a vector
            environment with NEXT_STEP autoreset.
        count: number of environments, 1 by default. A vector environment brings its own.
        seed: for the first reset. Environment i gets ``seed + i``.
        timeout: seconds before an environment counts as hanging; None for no watchdog.
        bounds: check that observations stay within the bounds of their space.
        options: for the environment, with a name only: ``corridor=50``.

    Raises:
        ArgumentError: for a space that no agent takes, another autoreset mode, and options that do not fit.
        UnknownNameError: for a name that Gymnasium does not know.
        MissingPackageError: for an Atari game without ale-py.
        EnvironmentFailedError: if the environment cannot be made.
    """
    if isinstance(what, CheckedVectorEnv):
        what = what.env
    if options and not isinstance(what, str):
        raise ArgumentError(
            f"{', '.join(options)}: found options beside {type(what).__name__}, expected them with a name only: "
            "give them to the environment itself"
        )
    if isinstance(what, VectorEnv):
        if count not in (None, what.num_envs):
            raise ArgumentError(f"count: found {count}, expected {what.num_envs}, which {what} has: leave it out")
        env = what
    else:
        count = 1 if count is None else whole("count", count, 1)
        name = what if isinstance(what, str) else _name_of(what)
        try:
            env = _from_name(what, count, options) if isinstance(what, str) else _from_source(what, count)
        except (ManyheadsError, ImportError):
            raise
        except Exception as error:
            raise EnvironmentFailedError(
                f"{name}: found {type(error).__name__} while it was made ({' '.join(str(error).split())}), expected an "
                "environment: correct its options or its code"
            ) from error
    name = what if isinstance(what, str) else _name_of(env)
    mode = autoreset_mode(env)
    if mode != AutoresetMode.NEXT_STEP:
        raise ArgumentError(
            f"{name}: found autoreset mode {mode.name if mode else None}, expected NEXT_STEP: make it with "
            "autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP, which is the default of Gymnasium"
        )
    return CheckedVectorEnv(env, name, seed=seed, timeout=timeout, bounds=bounds)


def autoreset_mode(env: VectorEnv) -> AutoresetMode | None:
    """Return the autoreset mode that a vector environment declares, None without one."""
    # Vector environments without an own metadata share one dict, which ale-py writes to: the attribute is safer.
    mode = getattr(env.unwrapped, "autoreset_mode", None) or env.metadata.get("autoreset_mode")
    try:
        return None if mode is None else AutoresetMode(mode)
    except ValueError:
        return None


def _from_name(name: str, count: int, options: dict[str, Any]) -> VectorEnv:
    preset, game = PRESET.fullmatch(name), ATARI.fullmatch(name)
    if preset:
        options = {"size": int(preset["size"])} | options
        return Atari(preset["game"], count, **options)
    if game:
        return Atari(game["game"], count, **options)
    register_tasks()
    if ":" not in name and name not in registry:
        raise UnknownNameError("environment", name, [*registry, *PRESETS])
    env = gym.make_vec(name, num_envs=count, **options)
    if is_raw(env):
        raise ArgumentError(f"{name}: found an Atari game, expected a name such as 'pong-84' or 'ALE/Pong-v5': use it")
    return env


def _from_source(what: gym.Env | Callable[[], gym.Env], count: int) -> VectorEnv:
    if isinstance(what, gym.Env):
        if count != 1:
            raise ArgumentError(
                f"count: found {count} with one environment, expected 1: give a function that makes an environment"
            )
        return SyncVectorEnv([lambda: what])
    if not callable(what):
        raise ArgumentError(
            f"environment: found {type(what).__name__}, expected a name, a function, a gymnasium.Env or a "
            "gymnasium.vector.VectorEnv: give one of them"
        )
    made = [what() for _ in range(count)]
    for env in made:
        if not isinstance(env, gym.Env):
            raise ArgumentError(
                f"environment: found a function that returns {type(env).__name__}, expected a gymnasium.Env: correct it"
            )
    if len({id(env) for env in made}) < count:
        raise ArgumentError(
            "environment: found a function that returns the same environment again, expected a new one at each call: "
            "make the environment inside it"
        )
    return SyncVectorEnv([lambda env=env: env for env in made])


def _name_of(what: Any) -> str:
    env = what
    if isinstance(what, SyncVectorEnv):
        env = what.envs[0]
    spec = getattr(env, "spec", None)
    if spec is not None:
        return spec.id
    kind = env.unwrapped if isinstance(env, gym.Env | VectorEnv) else env
    return getattr(kind, "__name__", type(kind).__name__)


def _end_workers(env: AsyncVectorEnv) -> None:
    """End the processes of a vector environment by force; its own ``close`` waits for the one that hangs."""
    env.closed = True
    for process in env.processes:
        process.kill()
    for process in env.processes:
        process.join(1.0)
