"""Pictures of what an encoder looks at in frames of play."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from manyheads.rl.encoders.frame_picture import draw_shares
from manyheads.rl.encoders.frames import FrameEncoder
from manyheads.rl.pretraining.recording import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def attention_over_frames(encoder: FrameEncoder, recording: Recording, *, frames: int = 6) -> Figure:
    """Draw frames spread over a recording, and below each what the last block reads, averaged over the heads.

    A share is drawn relative to the largest of its frame.
    """
    centres = recording.centres(stack=encoder.stack)
    at = centres[np.linspace(0, len(centres) - 1, frames + 2).astype(int)[1:-1]]
    seen = encoder.attention(torch.from_numpy(recording.observations(at, stack=encoder.stack))).mean(1).numpy()
    edge = encoder.seen
    return draw_shares(recording.frames[at], seen, [f"frame {one}" for one in at], covered=(edge, edge))
