"""A picture of frames, and of what an encoder reads in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_shares(
    frames: np.ndarray, shares: np.ndarray, titles: Sequence[str], *, covered: tuple[int, int], heading: str = ""
) -> Figure:
    """Draw frames in a row, and below each the share that each patch has.

    A share is drawn relative to the largest of its frame.

    Args:
        frames: ``(N, H, W)`` or ``(N, H, W, 3)`` bytes.
        shares: ``(N, rows, columns)``.
        titles: one for each frame.
        covered: height and width of the pixels that the patches cover, from the upper left.
        heading: above all.
    """
    from matplotlib.figure import Figure

    height, width = covered
    figure = Figure(figsize=(1.7 * len(frames), 3.6 + 0.3 * bool(heading)), layout="constrained")
    for column, (top, bottom) in enumerate(figure.subplots(2, len(frames), squeeze=False).T):
        frame = frames[column]
        for axes in (top, bottom):
            axes.imshow(frame, cmap="gray", vmin=0, vmax=255, extent=(0, frame.shape[1], frame.shape[0], 0))
            axes.set_axis_off()
        share = shares[column] / shares[column].max()
        bottom.imshow(share, cmap="magma", alpha=0.6, vmin=0, extent=(0, width, height, 0))
        bottom.set(xlim=(0, width), ylim=(height, 0))
        top.set_title(titles[column], fontsize=8)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure
