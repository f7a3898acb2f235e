"""Background noise of a stream: the quietest window so far, repeated after the end of the stream."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

FRAMES = 25  # of the window: a quarter of a second at a hop of 10 ms
# of mean natural log energy (4.3 dB) below the loudest window: a window nearer to it may be speech
BELOW = 1.0


class BackgroundState(NamedTuple):
    """Of each stream. The shapes do not depend on how the stream was cut into chunks."""

    recent: Tensor  # (B, FRAMES - 1, M): the last frames
    seen: Tensor  # (B,): how many of them were heard
    frames: Tensor  # (B, FRAMES, M): the quietest window
    level: Tensor  # (B,): its mean log energy; infinite before the first window
    peak: Tensor  # (B,): that of the loudest window


def no_background(
    batch: int, bins: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> BackgroundState:
    """Before the first frame."""
    at: dict[str, Any] = {"device": device, "dtype": dtype}
    return BackgroundState(
        torch.zeros(batch, FRAMES - 1, bins, **at),
        torch.zeros(batch, dtype=torch.int64, device=device),
        torch.zeros(batch, FRAMES, bins, **at),
        torch.full((batch,), torch.inf, **at),
        torch.full((batch,), -torch.inf, **at),
    )


def follow(frames: Tensor, state: BackgroundState) -> BackgroundState:
    """The state after log-mel frames ``(B, T, M)``."""
    count = frames.shape[1]
    if count == 0:
        return state
    known = torch.cat([state.recent, frames], 1)
    means = known.mean(2).unfold(1, FRAMES, 1).mean(2)  # (B, T): of the window that ends in each frame
    whole = state.seen.unsqueeze(1) + torch.arange(1, count + 1, device=frames.device) >= FRAMES
    level, at = means.masked_fill(~whole, torch.inf).min(1)
    index = at.view(-1, 1) + torch.arange(FRAMES, device=frames.device)
    window = known.gather(1, index.unsqueeze(2).expand(-1, -1, known.shape[2]))
    quieter = level < state.level
    return BackgroundState(
        known[:, count:],
        (state.seen + count).clamp_max(FRAMES - 1),
        torch.where(quieter.view(-1, 1, 1), window, state.frames),
        torch.where(quieter, level, state.level),
        torch.maximum(state.peak, means.masked_fill(~whole, -torch.inf).amax(1)),
    )


def background(state: BackgroundState, quiet: Tensor) -> Tensor:
    """``quiet (B, T, M)`` with the background repeated in its place, for each stream that has one: a window at least
    ``BELOW`` under the loudest, and no quieter than ``quiet``, as digital silence is."""
    repeated = state.frames[:, torch.arange(quiet.shape[1], device=quiet.device) % FRAMES]
    heard = (state.level > quiet.mean((1, 2))) & (state.level < state.peak - BELOW)
    return torch.where(heard.view(-1, 1, 1), repeated, quiet)
