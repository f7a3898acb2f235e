"""GIF animations of play: the pictures of ``render``, enlarged without blur."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from PIL import Image

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.data.files import check_suffix, write_atomically
from manyheads.rl.environments.episodes import Player, play
from manyheads.rl.environments.task import whole

# Least longer side of an animation in pixels, if no scale is given.
SIDE = 320
# Players of GIF show faster frames slowly.
FASTEST = 50


@dataclass(frozen=True)
class Recording:
    """Frames of one environment, and what was rewarded. ``frames[i]`` was seen before ``rewards[i]``."""

    frames: list[np.ndarray]
    rewards: list[float]
    episodes: int


def record(
    player: Player,
    env: VectorEnv,
    *,
    episodes: int = 1,
    max_steps: int = 2000,
    seed: int = 0,
    deterministic: bool = True,
) -> Recording:
    """Play in the first environment and keep its pictures, until ``episodes`` have ended or ``max_steps`` are over.

    Raises:
        ArgumentError: for an environment that draws no pictures.
    """
    whole("episodes", episodes, 1)
    whole("max_steps", max_steps, 1)
    frames: list[np.ndarray] = []
    rewards: list[float] = []
    ended = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        watch = partial(_draw, env, frames)
        steps = play(player, env, seed=seed, deterministic=deterministic, watch=watch)
        for _, step in zip(range(max_steps), steps, strict=False):
            rewards.append(float(step.rewards[0]))
            ended += bool(step.terminated[0] or step.truncated[0])
            if ended == episodes:
                # The last picture of the episode.
                watch()
                rewards.append(0.0)
                break
    return Recording(frames, rewards, ended)


def _draw(env: VectorEnv, frames: list[np.ndarray]) -> None:
    pictures = env.render()
    if not pictures or pictures[0] is None:
        raise ArgumentError(f'{env}: found no pictures, expected some: make it with render_mode="rgb_array"')
    frames.append(np.asarray(pictures[0]))


def write_gif(path: Path, frames: Sequence[np.ndarray], *, fps: float = 15.0, scale: int | None = None) -> None:
    """Write frames ``(height, width, 3)`` of bytes as an animation without end.

    Args:
        path: file that ends in ``.gif``.
        frames: pictures of one size.
        fps: pictures a second. GIF keeps hundredths of a second, and at most 50 pictures a second.
        scale: whole factor of enlargement, by default so that the longer side has at least 320 pixels.
    """
    check_suffix("path", path, (".gif",))
    if not 0 < fps <= FASTEST:
        raise ArgumentError(f"fps: found {fps!r}, expected more than 0 and at most {FASTEST}: correct it")
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3 or any(frame.dtype != np.uint8 for frame in frames):
        raise DataError(f"frames: found the shapes {sorted(shapes)}, expected bytes of one shape (height, width, 3)")
    height, width, _ = frames[0].shape
    scale = whole("scale", max(1, -(-SIDE // max(height, width))) if scale is None else scale, 1)
    images = [
        Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.NEAREST) for frame in frames
    ]
    # One palette for all frames: with one for each, colours flicker and the file grows.
    sheet = Image.fromarray(np.concatenate([_thinned(frame) for frame in frames[:: max(1, len(frames) // 64)]]))
    palette = sheet.quantize(256, dither=Image.Dither.NONE)
    shown = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    content = io.BytesIO()
    shown[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=shown[1:],
        duration=round(1000 / fps),
        loop=0,
        optimize=False,
    )
    write_atomically(path, content.getvalue())


def _thinned(frame: np.ndarray) -> np.ndarray:
    """Every n-th pixel of a large picture: enough for its colours."""
    every = max(1, max(frame.shape[:2]) // 128)
    return frame[::every, ::every]
