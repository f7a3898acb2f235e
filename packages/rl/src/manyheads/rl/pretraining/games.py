"""State labels of Atari games: the RAM byte of each object's position.

The bytes are those of AtariARI (1906.08226). The tests find each object in the picture by its colour and correlate its
place with the byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from manyheads.core.errors import UnknownNameError


@dataclass(frozen=True)
class Label:
    """One number of the state of a game."""

    name: str
    byte: int
    """Index of the RAM byte that holds it."""
    present: tuple[int, int, int] | None = None
    """(byte, least, most): the object is visible while this byte is in the range; None for always."""

    def values(self, ram: np.ndarray) -> np.ndarray:
        """Return the label of each row of ``ram (N, 128)`` as float64."""
        return ram[:, self.byte].astype(np.float64)

    def visible(self, ram: np.ndarray) -> np.ndarray:
        """Return a bool for each row of ``ram (N, 128)``: whether the object is visible."""
        if self.present is None:
            return np.ones(len(ram), bool)
        byte, least, most = self.present
        return (ram[:, byte] >= least) & (ram[:, byte] <= most)


def _labels(present: tuple[int, int, int] | None = None, /, **byte: int) -> tuple[Label, ...]:
    return tuple(Label(name, index, present) for name, index in byte.items())


GAMES: Mapping[str, tuple[Label, ...]] = {
    # the ball is absent between two points
    "pong": (*_labels((54, 1, 255), ball_x=49, ball_y=54), *_labels(player_y=51, enemy_y=50)),
    # below the paddle the ball is not drawn
    "breakout": (*_labels((101, 1, 178), ball_x=99, ball_y=101), *_labels(player_x=72, bricks_hit=77)),
    "freeway": _labels(player_y=14, **{f"car_{lane}_x": 117 - lane for lane in range(10)}),
    "boxing": _labels(player_x=32, player_y=34, enemy_x=33, enemy_y=35),
    "ms_pacman": _labels(player_x=10, player_y=16),
}


def labels_of(game: str) -> tuple[Label, ...]:
    """Return the labels of a game. Raises :class:`UnknownNameError` with the nearest name."""
    if game not in GAMES:
        raise UnknownNameError("game with state labels", game, GAMES)
    return GAMES[game]
