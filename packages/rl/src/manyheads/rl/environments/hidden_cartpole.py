"""CartPole without velocities: the agent has to estimate them from what it saw before.

The dynamics, rewards and ends are those of Gymnasium's CartPole-v1. A memoryless policy holds the pole for about 50
steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Box
from PIL import Image, ImageDraw

from manyheads.rl.environments.task import SingleTask, VectorTask, whole

SIZE = (96, 64)
# Arrays of CartPoleVectorEnv that determine its next steps.
POLES = ("state", "steps", "prev_done")


class HiddenCartPoleVectorEnv(VectorTask):
    """Many poles at once.

    The observation has two numbers: position of the cart and angle of the pole. Both are divided by the limit at which
    the episode ends (2.4 and 12 degrees), so that they end it at 1 or -1. The actions are 0 (push left) and 1 (push
    right), and each step gives reward 1. After ``max_episode_steps`` the episode is truncated.

    Args:
        num_envs: number of environments.
        max_episode_steps: time limit; None for no limit.
        render_mode: ``"rgb_array"`` for pictures.
    """

    metadata = VectorTask.metadata | {"render_fps": 50}
    observation_names = ("position", "angle")

    def __init__(
        self, num_envs: int = 1, *, max_episode_steps: int | None = 500, render_mode: str | None = None
    ) -> None:
        limit = (
            np.iinfo(np.int32).max if max_episode_steps is None else whole("max_episode_steps", max_episode_steps, 1)
        )
        self._poles = CartPoleVectorEnv(num_envs, max_episode_steps=limit)
        self._limits = np.array([self._poles.x_threshold, self._poles.theta_threshold_radians])
        super().__init__(
            num_envs, Box(-2.0, 2.0, (2,), np.float32), self._poles.single_action_space, render_mode=render_mode
        )
        # Position, speed, angle and angular speed of each pole.
        self._poles.state = np.zeros((4, num_envs))

    @property
    def state(self) -> np.ndarray:
        """Position, speed, angle and angular speed of each pole, ``(4, num_envs)``."""
        assert self._poles.state is not None
        return self._poles.state

    def get_state(self) -> dict[str, np.ndarray]:
        return super().get_state() | {f"poles.{name}": getattr(self._poles, name).copy() for name in POLES}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state({name: one for name, one in state.items() if not name.startswith("poles.")})
        for name in POLES:
            setattr(self._poles, name, state[f"poles.{name}"].copy())

    def begin(self, indices: np.ndarray) -> None:
        for i in indices:
            # The draw of CartPole-v1, from a stream for each environment: CartPoleVectorEnv has one stream for all.
            self.state[:, i] = self.generators[i].uniform(-0.05, 0.05, 4)
        self._poles.steps[indices] = 0

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        _, rewards, terminated, truncated, _ = self._poles.step(actions)
        # New episodes begin in ``begin``.
        self._poles.prev_done[:] = False
        return rewards.astype(np.float64), terminated, truncated

    def observe(self) -> np.ndarray:
        return (self.state[[0, 2]].T / self._limits).astype(np.float32)

    def picture(self, index: int) -> np.ndarray:
        position, _, angle, _ = self.state[:, index]
        width, height = SIZE
        image = Image.new("RGB", SIZE, "white")
        draw = ImageDraw.Draw(image)
        x, y = width / 2 + position / self._poles.x_threshold * width * 0.45, height * 0.8
        draw.line((0, y, width, y), fill="grey")
        draw.rectangle((x - 8, y - 4, x + 8, y + 4), fill="black")
        draw.line((x, y, x + 40 * np.sin(angle), y - 40 * np.cos(angle)), fill=(200, 100, 50), width=3)
        return np.asarray(image)


class HiddenCartPoleEnv(SingleTask):
    """One pole. As in Gymnasium, only ``gymnasium.make`` adds the time limit of 500 steps."""

    kind = HiddenCartPoleVectorEnv
    metadata = SingleTask.metadata | {"render_fps": 50}

    def __init__(self, *, max_episode_steps: int | None = None, render_mode: str | None = None) -> None:
        super().__init__(max_episode_steps=max_episode_steps, render_mode=render_mode)
