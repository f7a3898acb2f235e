"""``manyheads rl collect``."""

from __future__ import annotations

from pathlib import Path

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.command import Outcome


def collect(
    game: str,
    /,
    *,
    frames: int = 30_000,
    out: Path | None = None,
    size: int = 84,
    hold: int = 4,
    skip: int = 4,
    seed: int = 0,
) -> Outcome:
    """Collect random play of an Atari game into one file; an unfinished file is continued.

    Args:
        game: name of the ROM, such as pong or ms_pacman.
        frames: number of frames, one for each step.
        out: file to write (.safetensors); <game>.safetensors by default.
        size: height and width of a frame in pixels.
        hold: mean number of steps for which an action is held.
        skip: screens for each step.
        seed: random seed.
    """
    from manyheads.rl.pretraining.collect import collect as collect_play

    path = Path(f"{game}.safetensors") if out is None else out
    if path.is_dir():
        raise ArgumentError(f"--out: found the folder {path}, expected a file")
    made = collect_play(game, frames, path, size=size, hold=hold, skip=skip, seed=seed, progress=True)
    document = {
        "game": game,
        "frames": len(made),
        "episodes": len(made.bounds),
        "reward": float(made.rewards.sum()),
        "digest": made.digest,
        "path": str(path),
    }
    return Outcome(document, f"{path}: {len(made):,} frames of {len(made.bounds)} episodes, digest {made.digest[:12]}")
