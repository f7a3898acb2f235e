"""Atari games through the vector environment of ale-py, with raw rewards and checked actions.

The defaults follow Machado et al., "Revisiting the Arcade Learning Environment" (JAIR 2018), as the ``ALE/…-v5`` names
of Gymnasium do: sticky actions with probability 0.25, all lives in one episode, and no fire button that is pressed for
the agent. Added to it are up to 30 no-op frames at the start (Mnih et al., 2015).

ale-py is licensed under GPL-2.0-only and optional. It brings its ROMs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.lab.install import missing
from manyheads.rl.environments.checks import ActionCheck
from manyheads.rl.environments.task import whole

# ale-py keeps the seed of each environment in 32 bits, and takes -1 for none.
LARGEST_SEED = 2**31 - 100_000


class Atari(VectorWrapper):
    """``num_envs`` games in the threads of ale-py.

    Observations are bytes ``(num_envs, stack, size, size)``, the newest frame last. After a reset the older frames are
    black. Rewards are the points of the game; an agent that learns from their sign takes it itself.

    Args:
        game: ``"ms_pacman"``, ``"MsPacman"`` and ``"ALE/MsPacman-v5"`` are the same.
        num_envs: number of games.
        size: height and width of a frame.
        stack: frames in an observation.
        frame_skip: frames that an action is held; the last two are merged by their maximum.
        sticky: probability that a frame repeats the previous action instead.
        no_op_starts: most frames without action at the start; their number is drawn for each episode.
        fire_on_reset: press the fire button after a reset.
        all_actions: 18 actions instead of those that the game uses.
        max_frames: frames after which an episode is truncated.
        threads: threads of ale-py; 0 for one a processor.

    Raises:
        MissingPackageError: without ale-py.
        UnknownNameError: for a game that ale-py does not have.
    """

    env: Any

    def __init__(
        self,
        game: str,
        num_envs: int = 1,
        *,
        size: int = 84,
        stack: int = 4,
        frame_skip: int = 4,
        sticky: float = 0.25,
        no_op_starts: int = 30,
        fire_on_reset: bool = False,
        all_actions: bool = False,
        max_frames: int = 108_000,
        threads: int = 0,
    ) -> None:
        self.game = rom_name(game)
        if not 0.0 <= sticky < 1.0:
            raise ArgumentError(f"sticky: found {sticky!r}, expected a probability below 1: correct it")
        from ale_py.vector_env import AtariVectorEnv

        games = AtariVectorEnv(
            self.game,
            whole("num_envs", num_envs, 1),
            img_height=whole("size", size, 8),
            img_width=size,
            stack_num=whole("stack", stack, 1),
            frameskip=whole("frame_skip", frame_skip, 1),
            repeat_action_probability=sticky,
            noop_max=whole("no_op_starts", no_op_starts, 0),
            use_fire_reset=fire_on_reset,
            full_action_space=all_actions,
            max_num_frames_per_episode=whole("max_frames", max_frames, 1),
            num_threads=whole("threads", threads, 0),
            reward_clipping=False,
            autoreset_mode=AutoresetMode.NEXT_STEP,
        )
        super().__init__(games)
        # ale-py writes its mode into a dict that all vector environments without an own one share.
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 15, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.env.render_mode = "rgb_array"
        self._check_actions = ActionCheck(self.single_action_space, num_envs, self.game)
        self._observations: np.ndarray | None = None
        self._steps = 0

    def reset(
        self, *, seed: int | Sequence[int] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new games: environment i gets ``seed + i``, or ``seed[i]`` of a sequence."""
        self._observations, info = self.env.reset(seed=self._seeds(seed), options=options)
        return self._observations, info

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one step. Actions are checked first: ale-py never returns from one that is out of range."""
        if self._observations is None:
            raise ArgumentError("step: found no first reset, expected one: call reset() first")
        self._steps += 1
        outcome = self.env.step(self._check_actions(actions, self._steps))
        self._observations = outcome[0]
        return outcome

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return the newest frame of each game, ``(size, size, 3)`` bytes."""
        if self._observations is None:
            return None
        return tuple(np.repeat(frames[-1][..., None], 3, axis=2) for frames in self._observations)

    @staticmethod
    def _seeds(seed: Any) -> int | np.ndarray | None:
        if seed is None:
            return None
        seeds = np.asarray(seed)
        if seeds.dtype.kind not in "iu" or seeds.min() < 0 or seeds.max() > LARGEST_SEED:
            raise ArgumentError(f"seed: found {seed!r}, expected integers from 0 to {LARGEST_SEED}: choose another")
        # ale-py takes a Python integer or an array, and no numpy integer.
        return int(seeds) if seeds.ndim == 0 else seeds.astype(np.int64)


def rom_name(game: str) -> str:
    """Return the name of a game in ale-py: ``"ms_pacman"`` for ``"MsPacman"`` and ``"ALE/MsPacman-v5"``.

    Raises:
        MissingPackageError: without ale-py.
        UnknownNameError: with the nearest name.
    """
    try:
        from ale_py.registration import rom_id_to_name
        from ale_py.roms import get_all_rom_ids
    except ImportError as error:
        raise missing("ale-py", "manyheads-rl", "atari", place=str(game)) from error
    known = {rom_id_to_name(rom): rom for rom in get_all_rom_ids()}
    name = str(game).removeprefix("ALE/").removesuffix("-v5")
    if name in known:
        return known[name]
    if name not in known.values():
        raise UnknownNameError("Atari game", name, known if name != name.lower() else known.values())
    return name


def is_raw(env: VectorEnv) -> bool:
    """Tell whether an environment is ale-py's own, which clips rewards unless it was told not to."""
    return type(env.unwrapped).__module__ == "ale_py.vector_env"
