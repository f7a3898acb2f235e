"""Repeat-previous: say the suit of the card that was seen ``k - 1`` steps before.

The rules of RepeatPrevious of POPGym (Morad et al., "POPGym: Benchmarking Partially Observable Reinforcement Learning",
ICLR 2023), and from the same seed the same cards. Without memory the mean return is about -0.5, at best it is 1.
"""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Discrete

from manyheads.core.errors import ArgumentError
from manyheads.rl.environments.task import SingleTask, VectorTask, whole

SUITS, CARDS = 4, 52
COLOURS = np.array([[70, 70, 70], [230, 120, 30], [60, 180, 75], [200, 40, 60]], np.uint8)


class RepeatPreviousVectorEnv(VectorTask):
    """Many games at once.

    The observation is the suit of the card just dealt, 0 to 3. The right action is the suit of the k-th newest card:
    with ``k = 1`` the one just dealt, with ``k = 4`` the one of three steps before. As soon as k cards are dealt, a
    right answer gives ``1 / (cards - k)`` and a wrong one the same below zero, so that a perfect game returns 1. The
    episode ends with the last card, after ``52 decks - 1`` steps.

    Args:
        num_envs: number of environments.
        k: which card to repeat. POPGym's Easy, Medium and Hard have ``k = 4, 32, 64`` with 1, 2 and 3 decks.
        decks: decks of 52 cards that are shuffled together.
        render_mode: ``"rgb_array"`` for pictures.
    """

    observation_names = ("suit 0", "suit 1", "suit 2", "suit 3")

    def __init__(self, num_envs: int = 1, *, k: int = 4, decks: int = 1, render_mode: str | None = None) -> None:
        self.k, self.cards = whole("k", k, 1), CARDS * whole("decks", decks, 1)
        if k >= self.cards:
            raise ArgumentError(f"k: found {k}, expected less than the {self.cards} cards: lower k or add decks")
        super().__init__(num_envs, Discrete(SUITS), Discrete(SUITS), render_mode=render_mode)
        # Suits in the order in which they are dealt; number of the newest card; last action, -1 at the start.
        self._suits = np.zeros((num_envs, self.cards), np.int64)
        self._newest = np.zeros(num_envs, np.int64)
        self._said = np.full(num_envs, -1)
        self._rows = np.arange(num_envs)

    def begin(self, indices: np.ndarray) -> None:
        for i in indices:
            order = np.arange(self.cards)
            self.generators[i].shuffle(order)
            # POPGym numbers the cards so that four neighbours have the four suits, and deals from the end.
            self._suits[i] = order[::-1] % SUITS
        self._newest[indices], self._said[indices] = 0, -1

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        wanted = self._newest - (self.k - 1)
        is_right = actions == self._suits[self._rows, np.maximum(wanted, 0)]
        rewards = np.where(wanted < 0, 0.0, np.where(is_right, 1.0, -1.0) / (self.cards - self.k))
        self._newest = np.minimum(self._newest + 1, self.cards - 1)
        self._said = actions.copy()
        return rewards, self._newest == self.cards - 1, np.zeros(self.num_envs, bool)

    def observe(self) -> np.ndarray:
        return self._suits[self._rows, self._newest]

    def picture(self, index: int) -> np.ndarray:
        # Above the last cards, the newest on the right; below the last answer, and left of it the card it was for.
        frame = np.full((5, 2 * self.k + 3, 3), 255, np.uint8)
        newest = int(self._newest[index])
        for back in range(min(self.k, newest) + 1):
            frame[1, 2 * (self.k - back) + 1] = COLOURS[self._suits[index, newest - back]]
        if self._said[index] >= 0:
            frame[3, 1] = COLOURS[self._said[index]]
        return frame


class RepeatPreviousEnv(SingleTask):
    """One game; the options are those of :class:`RepeatPreviousVectorEnv`."""

    kind = RepeatPreviousVectorEnv
