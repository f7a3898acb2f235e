"""T-maze: a cue at the first step says which way to turn at the end of a corridor.

The task of Bakker, "Reinforcement Learning with Long Short-Term Memory" (NeurIPS 2001). The memory has to hold one bit
for ``corridor`` steps. Without memory the mean return is 0.

Differs from the paper: the rewards are 1 and -1 (the paper: 4 and -0.1), and by default the corridor is walked without
an action.
"""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box, Discrete

from manyheads.rl.environments.task import SingleTask, VectorTask, whole

UP, DOWN, FORWARD = 0, 1, 2
STANDING_STILL = -0.1


class TMazeVectorEnv(VectorTask):
    """Many T-mazes at once.

    The observation has four numbers, each 0 or 1: cue "up", cue "down", in the corridor, at the junction. The cue is
    seen at the start only. The actions are 0 (up) and 1 (down); they count at the junction, where the episode ends with
    reward 1 for the way of the cue and -1 for the other. An episode takes ``corridor + 1`` steps.

    With ``forward_action``, action 2 walks one cell. Each step that does not move the agent costs 0.1. An episode is
    truncated after ``max_episode_steps``.

    Args:
        num_envs: number of environments.
        corridor: cells from the start to the junction, which is the number of steps that the cue has to be remembered.
        forward_action: the agent has to walk by itself.
        max_episode_steps: time limit; by default four times the shortest episode.
        render_mode: ``"rgb_array"`` for pictures.
    """

    observation_names = ("cue up", "cue down", "corridor", "junction")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        corridor: int = 10,
        forward_action: bool = False,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.corridor = whole("corridor", corridor, 1)
        self.forward_action = forward_action
        limit = 4 * (corridor + 1) if max_episode_steps is None else max_episode_steps
        self.max_episode_steps = whole("max_episode_steps", limit, 1)
        observations = Box(0.0, 1.0, (4,), np.float32)
        super().__init__(num_envs, observations, Discrete(3 if forward_action else 2), render_mode=render_mode)
        # The way of the cue, cells walked, steps taken, and the way that was taken at the junction (-1 before).
        self._cue, self._place, self._time, self._turn = np.zeros((4, num_envs), np.int64)

    def begin(self, indices: np.ndarray) -> None:
        for i in indices:
            self._cue[i] = self.generators[i].integers(2)
        self._place[indices], self._time[indices], self._turn[indices] = 0, 0, -1

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at_junction = self._place == self.corridor
        walks = ~at_junction & ((actions == FORWARD) | (not self.forward_action))
        turns = at_junction & (actions != FORWARD)
        self._place += walks
        self._time += 1
        self._turn = np.where(turns, actions, -1)
        rewards = np.where(turns, np.where(actions == self._cue, 1.0, -1.0), 0.0)
        rewards[~(walks | turns)] = STANDING_STILL
        return rewards, turns, ~turns & (self._time >= self.max_episode_steps)

    def observe(self) -> np.ndarray:
        at_start, at_junction = self._place == 0, (self._place == self.corridor) & (self._turn < 0)
        in_corridor = (self._place > 0) & (self._place < self.corridor)
        seen = (at_start & (self._cue == UP), at_start & (self._cue == DOWN), in_corridor, at_junction)
        return np.stack(seen, axis=1).astype(np.float32)

    def picture(self, index: int) -> np.ndarray:
        frame = np.full((5, self.corridor + 3, 3), 40, np.uint8)
        end, cue, turn = self.corridor + 1, self._cue[index], self._turn[index]
        frame[2, 1:end] = 200
        frame[1:4, end] = 200
        frame[1 if cue == UP else 3, end] = (60, 180, 75)
        if self._place[index] == 0:
            frame[1 if cue == UP else 3, 1] = (60, 180, 75)
        row = 2 if turn < 0 else (1 if turn == UP else 3)
        frame[row, self._place[index] + 1] = (0, 90, 220)
        return frame


class TMazeEnv(SingleTask):
    """One T-maze; the options are those of :class:`TMazeVectorEnv`."""

    kind = TMazeVectorEnv
