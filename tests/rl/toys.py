"""Small vector environments for tests: numpy only, reset at the step after the end, with states that can be stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array


class Toy(VectorEnv):
    """Base: ``begin(rows)`` starts episodes, ``move(actions)`` returns reward, terminated, truncated of each row."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, count: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.num_envs = count
        self.observation_space, self.action_space = (
            batch_space(one, count) for one in (observation_space, action_space)
        )
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.time = np.zeros(count, dtype=np.int64)
        self.over = np.zeros(count, dtype=bool)
        self.rng = np.random.default_rng(0)

    def begin(self, rows: np.ndarray) -> None:
        """Start new episodes."""

    def move(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reward, terminated, truncated."""
        raise NotImplementedError

    def seen(self) -> Any:
        """The observation of each row."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.over[:], self.time[:] = False, 0
        self.begin(np.ones(self.num_envs, dtype=bool))
        return self.seen(), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        fresh = self.over.copy()
        self.time += 1
        reward, terminated, truncated = self.move(actions)
        reward, terminated, truncated = (np.where(fresh, 0, one) for one in (reward, terminated, truncated))
        terminated, truncated = terminated.astype(bool), truncated.astype(bool)
        self.time[fresh] = 0
        self.begin(fresh)
        self.over = terminated | truncated
        return self.seen(), reward.astype(np.float64), terminated, truncated, {}


class Recall(Toy):
    """A cue at the first step; reward 1 for repeating it ``length`` steps later, else -1."""

    def __init__(self, count: int, length: int = 5) -> None:
        super().__init__(count, spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2))
        self.length, self.cue = length, np.zeros(count, dtype=np.int64)

    def begin(self, rows: np.ndarray) -> None:
        self.cue = np.where(rows, self.rng.integers(0, 2, self.num_envs), self.cue)

    def move(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        last = self.time >= self.length
        right = np.asarray(actions) == self.cue
        return np.where(last, np.where(right, 1.0, -1.0), 0.0), last, np.zeros_like(last)

    def seen(self) -> np.ndarray:
        first, last = self.time == 0, self.time == self.length - 1
        return np.stack([first * (2 * self.cue - 1), last, np.ones_like(first)], 1).astype(np.float32)

    def get_state(self) -> dict[str, np.ndarray]:
        """For checkpoints; the generator too."""
        rng = np.frombuffer(json.dumps(self.rng.bit_generator.state).encode(), np.uint8)
        return {"cue": self.cue, "time": self.time, "over": self.over, "rng": rng}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Inverse of :meth:`get_state`."""
        self.cue, self.time, self.over = (state[name].copy() for name in ("cue", "time", "over"))
        self.rng.bit_generator.state = json.loads(state["rng"].tobytes())


class TwoStates(Toy):
    """A chain that moves from one state to the other for ever; reward 1 in the first, 0 in the second.

    Every episode is cut after ``limit`` steps. With discount g the values are 1 / (1 - g^2) and g / (1 - g^2).
    """

    def __init__(self, count: int, limit: int = 5) -> None:
        super().__init__(count, spaces.Discrete(2), spaces.Discrete(2))
        self.limit, self.place = limit, np.zeros(count, dtype=np.int64)

    def begin(self, rows: np.ndarray) -> None:
        self.place = np.where(rows, self.rng.integers(0, 2, self.num_envs), self.place)

    def move(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward = 1.0 - self.place
        self.place = 1 - self.place
        cut = self.time >= self.limit
        return reward, np.zeros_like(cut), cut

    def seen(self) -> np.ndarray:
        return self.place.copy()


class Anything(Toy):
    """Random observations of any space, random rewards and ends; for shapes, not for learning."""

    def begin(self, rows: np.ndarray) -> None:
        self.single_observation_space.seed(int(self.rng.integers(2**31)))

    def move(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ended = self.rng.random((2, self.num_envs)) < 0.1
        return self.rng.normal(size=self.num_envs), ended[0], ended[1] & ~ended[0]

    def seen(self) -> Any:
        space = self.single_observation_space
        batch = create_empty_array(space, self.num_envs)
        return concatenate(space, [space.sample() for _ in range(self.num_envs)], batch)
