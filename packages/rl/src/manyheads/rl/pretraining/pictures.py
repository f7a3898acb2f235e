"""Pictures of what an encoder looks at in frames of play."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from manyheads.rl.encoders.frames import FrameEncoder
from manyheads.rl.pretraining.recording import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def attention_over_frames(encoder: FrameEncoder, recording: Recording, *, frames: int = 6) -> Figure:
    """Draw frames spread over a recording, and below each what the last block reads, averaged over the heads.

    A share is drawn relative to the largest of its frame.
    """
    from matplotlib.figure import Figure

    centres = recording.centres(stack=encoder.stack)
    at = centres[np.linspace(0, len(centres) - 1, frames + 2).astype(int)[1:-1]]
    seen = encoder.attention(torch.from_numpy(recording.observations(at, stack=encoder.stack))).mean(1).numpy()
    figure = Figure(figsize=(1.7 * frames, 3.6), layout="constrained")
    for column, (top, bottom) in enumerate(figure.subplots(2, frames, squeeze=False).T):
        frame = recording.frames[at[column]]
        edge = encoder.seen
        top.imshow(frame, cmap="gray", vmin=0, vmax=255)
        bottom.imshow(frame[:edge, :edge], cmap="gray", vmin=0, vmax=255, extent=(0, edge, edge, 0))
        bottom.imshow(seen[column] / seen[column].max(), cmap="magma", alpha=0.6, vmin=0, extent=(0, edge, edge, 0))
        top.set_title(f"frame {at[column]}", fontsize=8)
        for axes in (top, bottom):
            axes.set_axis_off()
    return figure
