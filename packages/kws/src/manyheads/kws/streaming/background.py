"""Background noise of a stream: track the quietest window, and repeat it after the end of the stream.

Shapes: B streams, T frames, M mel bins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# Window length in frames: 0.25 s at a hop of 10 ms.
FRAMES = 25
# Least distance below the loudest window, in mean natural log energy (1.0 is 4.3 dB). A window nearer to the loudest
# one may be speech.
BELOW = 1.0


class BackgroundState(NamedTuple):
    """Quietest window and levels of each stream. The shapes do not depend on the chunk sizes."""

    recent: Tensor  # (B, FRAMES - 1, M): the last frames
    seen: Tensor  # (B,): number of valid frames in ``recent``
    frames: Tensor  # (B, FRAMES, M): the quietest window
    level: Tensor  # (B,): mean log energy of the quietest window; infinite before the first window
    peak: Tensor  # (B,): mean log energy of the loudest window


def no_background(
    batch: int, bins: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> BackgroundState:
    """Return the state before the first frame."""
    at: dict[str, Any] = {"device": device, "dtype": dtype}
    return BackgroundState(
        torch.zeros(batch, FRAMES - 1, bins, **at),
        torch.zeros(batch, dtype=torch.int64, device=device),
        torch.zeros(batch, FRAMES, bins, **at),
        torch.full((batch,), torch.inf, **at),
        torch.full((batch,), -torch.inf, **at),
    )


def follow(frames: Tensor, state: BackgroundState) -> BackgroundState:
    """Return the state after log-mel frames ``(B, T, M)``."""
    count = frames.shape[1]
    if count == 0:
        return state
    # Mean log energy (B, T) of the window that ends at each frame.
    known = torch.cat([state.recent, frames], 1)
    means = known.mean(2).unfold(1, FRAMES, 1).mean(2)
    # Early windows still contain zeros from before the stream: leave them out.
    whole = state.seen.unsqueeze(1) + torch.arange(1, count + 1, device=frames.device) >= FRAMES
    # Quietest complete window of this chunk.
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
    """Replace ``quiet (B, T, M)`` by the repeated background of each stream that has one.

    A stream has a background if its quietest window lies at least ``BELOW`` under the loudest one and is louder than
    ``quiet``. Digital silence is quieter, and is no background.
    """
    repeated = state.frames[:, torch.arange(quiet.shape[1], device=quiet.device) % FRAMES]
    heard = (state.level > quiet.mean((1, 2))) & (state.level < state.peak - BELOW)
    return torch.where(heard.view(-1, 1, 1), repeated, quiet)
