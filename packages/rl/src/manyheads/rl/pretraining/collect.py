"""Collect a recording from the Arcade Learning Environment: random play, or play by a policy.

Each episode has an emulator and generators of its own, seeded by (seed, episode): a collection that was interrupted
continues with the next episode and gives the same file as an unbroken one. A frame is the maximum of the last two
screens of a step, in gray, resized by area.

ale-py (GPL-2.0-only) is an optional extra; it is imported on use. Its vector environment does not show the RAM, so that
single emulators are stepped here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from manyheads.core.errors import ArgumentError, DataError, UnknownNameError
from manyheads.lab.data.files import check_suffix
from manyheads.lab.install import need_package
from manyheads.lab.progress import progress as show_progress
from manyheads.rl.pretraining.recording import Recording

Policy = Callable[[np.ndarray, bool], int]
"""From the observation ``(S, H, W)``, and whether it begins an episode, to an index of the minimal action set."""

STACK = 3
# Screens of the longest episode, the standard limit of Atari.
EPISODE_SCREENS = 108_000
# Seconds between two writes of an unfinished file.
WRITE_EVERY = 30.0
# Frames between two reports of progress.
REPORT_EVERY = 1000


@lru_cache(maxsize=8)
def area_weights(source: int, target: int) -> np.ndarray:
    """Return ``(target, source)``: the share of each source pixel in each target pixel; rows sum to 1."""
    edges = np.arange(target + 1) * source / target
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * target / source


def resize_by_area(screen: np.ndarray, size: int) -> np.ndarray:
    """Resize a gray screen ``(H, W)`` to ``(size, size)``: each pixel is the mean of the area that it covers."""
    height, width = screen.shape
    rows, columns = area_weights(height, size).astype(np.float32), area_weights(width, size).astype(np.float32)
    return np.rint(rows @ screen.astype(np.float32) @ columns.T).clip(0, 255).astype(np.uint8)


@dataclass
class HeldRandom:
    """Random play: an action drawn uniformly is held for 1 to ``2 hold - 1`` steps.

    An action drawn anew at each step would only make a paddle jitter.
    """

    actions: int
    hold: int
    generator: np.random.Generator
    left: int = 0
    current: int = 0

    def __call__(self, observation: np.ndarray, first: bool) -> int:
        if first or self.left == 0:
            self.current = int(self.generator.integers(self.actions))
            self.left = int(self.generator.integers(1, 2 * self.hold))
        self.left -= 1
        return self.current


class Emulator:
    """One episode of a game, stepped by ``skip`` screens with one action.

    Raises:
        MissingPackageError: ale-py is not installed.
        UnknownNameError: a game without a ROM in ale-py.
    """

    def __init__(self, game: str, seed: int, *, size: int = 84, skip: int = 4) -> None:
        need_package("ale_py", "manyheads-rl", "atari")
        import ale_py
        from ale_py import roms

        if game not in roms.get_all_rom_ids():
            raise UnknownNameError("Atari game", game, roms.get_all_rom_ids())
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setInt("random_seed", seed)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.setInt("max_num_frames_per_episode", EPISODE_SCREENS)
        rom = roms.get_rom_path(game)
        assert rom is not None
        self.ale.loadROM(rom)
        self.ale.reset_game()
        self.actions = self.ale.getMinimalActionSet()
        self.size, self.skip = size, skip
        self.frame = resize_by_area(self.ale.getScreenGrayscale(), size)

    def step(self, action: int) -> float:
        """Act for ``skip`` screens; return the sum of the rewards, and keep the new frame.

        Raises :class:`ArgumentError` for an action outside the minimal action set.
        """
        if not 0 <= action < len(self.actions):
            raise ArgumentError(f"policy: found the action {action!r}, expected 0 to {len(self.actions) - 1}")
        reward, before = 0.0, None
        for index in range(self.skip):
            reward += self.ale.act(self.actions[action])
            if index == self.skip - 2:
                before = self.ale.getScreenGrayscale()
        screen = self.ale.getScreenGrayscale()
        # sprites of many games are drawn on every second screen only
        self.frame = resize_by_area(screen if before is None else np.maximum(screen, before), self.size)
        return reward

    @property
    def over(self) -> bool:
        """Whether the episode has ended or was cut."""
        return self.ale.game_over(with_truncation=True)

    @property
    def ram(self) -> np.ndarray:
        """The 128 bytes of RAM."""
        return np.array(self.ale.getRAM(), np.uint8)


def collect(
    game: str,
    frames: int,
    path: Path | None = None,
    *,
    policy: Policy | None = None,
    policy_name: str = "",
    hold: int = 4,
    size: int = 84,
    skip: int = 4,
    seed: int = 0,
    progress: bool = False,
) -> Recording:
    """Collect frames of play; with a ``path`` write them there, and continue an unfinished file.

    Args:
        game: name of the ROM, such as "pong" or "ms_pacman".
        frames: number of frames, one for each step of the agent; the last episode is cut there.
        path: file, ``.safetensors``; None keeps the recording in memory only.
        policy: plays the game; random play by default. It gets ``(3, size, size)`` frames, after a reset copies of the
            first, and whether the episode starts; it returns an index of the minimal action set.
        policy_name: stored in the file; needed with a policy.
        hold: mean number of steps for which random play holds an action.
        size: height and width of a frame in pixels.
        skip: screens for each step.
        seed: seed of emulator and random play.
        progress: show progress on standard error.

    Raises:
        ArgumentError: a number below 1, a policy without a name, an action outside the minimal action set.
        DataError: the file holds another collection.
        UnknownNameError, MissingPackageError: as :class:`Emulator`.
    """
    for name, value in (("frames", frames), ("hold", hold), ("size", size), ("skip", skip)):
        if value < 1:
            raise ArgumentError(f"{name}: found {value}, expected 1 or more")
    if (policy is None) != (not policy_name):
        raise ArgumentError("policy_name: found a policy without a name or a name without a policy, expected both")
    check_suffix("--out", path, (".safetensors",))
    settings = {
        "game": game, "size": size, "skip": skip, "hold": hold, "seed": seed, "policy": policy_name or "random",
    }  # fmt: skip
    parts = _finished_episodes(path, settings, frames)
    done = sum(len(part["frames"]) for part in parts)
    if parts and done == frames:
        return _recording(parts, settings, frames)
    written = time.monotonic()
    bar = show_progress(f"collect {game}", -(-frames // REPORT_EVERY)) if progress else nullcontext(None)
    with bar as advance:
        while done < frames:
            part = _episode(game, settings, len(parts), policy, frames - done)
            parts.append(part)
            before, done = done, done + len(part["frames"])
            for count in range(before // REPORT_EVERY + 1, done // REPORT_EVERY + 1):
                if advance is not None:
                    advance(f"{count * REPORT_EVERY} of {frames} frames, {len(parts)} episodes")
            if path is not None and done < frames and time.monotonic() - written > WRITE_EVERY:
                _recording(parts, settings, frames).save(path)
                written = time.monotonic()
    made = _recording(parts, settings, frames)
    if path is not None:
        made.save(path)
    return made


def _episode(
    game: str, settings: dict[str, Any], number: int, policy: Policy | None, most: int
) -> dict[str, np.ndarray]:
    """Play one episode of at most ``most`` frames."""
    generator = np.random.default_rng([settings["seed"], number])
    emulator = Emulator(game, int(generator.integers(2**31)), size=settings["size"], skip=settings["skip"])
    play = policy or HeldRandom(len(emulator.actions), settings["hold"], generator)
    rows: list[tuple[np.ndarray, int, float, np.ndarray]] = []
    stack = np.repeat(emulator.frame[None], STACK, 0)
    while len(rows) < most and not emulator.over:
        frame, ram = emulator.frame, emulator.ram
        stack = np.concatenate([stack[1:], frame[None]])
        action = int(play(stack, not rows))
        rows.append((frame, action, emulator.step(action), ram))
    columns = list(zip(*rows, strict=True))
    return {
        "frames": np.stack(columns[0]),
        "actions": np.array(columns[1], np.int32),
        "rewards": np.array(columns[2], np.float32),
        "episodes": np.full(len(rows), number, np.int32),
        "ram": np.stack(columns[3]),
    }


def _recording(parts: list[dict[str, np.ndarray]], settings: dict[str, Any], frames: int) -> Recording:
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    done = len(arrays["frames"])
    return Recording(**arrays, facts={**settings, "wanted": frames, "complete": done == frames})


def _finished_episodes(path: Path | None, settings: dict[str, Any], frames: int) -> list[dict[str, np.ndarray]]:
    """Return the episodes of the file that a continued collection can keep.

    The last episode of a complete file may have been cut, so that a longer collection plays it again.
    """
    if path is None or not path.exists():
        return []
    found = Recording.load(path)
    for name, value in settings.items():
        if found.facts.get(name) != value:
            raise DataError(
                f"{path}: {name}: found {found.facts.get(name)!r}, expected {value!r}: choose another file or remove it"
            )
    if len(found) > frames:
        raise DataError(f"{path}: found {len(found)} frames, expected {frames} or fewer: choose another file")
    parts = list(_parts(found))
    if found.facts.get("complete") and len(found) < frames:
        parts.pop()
    return parts


def _parts(recording: Recording) -> Iterator[dict[str, np.ndarray]]:
    for start, end in recording.bounds:
        yield {
            name: getattr(recording, name)[start:end] for name in ("frames", "actions", "rewards", "episodes", "ram")
        }
