"""Embeddings of images: patches, and positions on a grid. Grids are channels last.

    ImagePatches     e[i, j] = W x[iP : (i+1)P, jP : (j+1)P] + b     patches of P x P pixels (2010.11929)
    GridPositions    e[i, j] + p[i, j]; p is interpolated for a grid of another size

Axes: b batch, c channels, h and w pixels or tokens, d width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked, checked_constructor
from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Float


@checked_constructor
class ImagePatches(nn.Module):
    """Embed the patches of an image, ``(B, C, H, W)`` to ``(B, H / P, W / P, D)``.

    Raises:
        ArgumentError: channels, patch or width below 1.
    """

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        if min(channels, patch, dim) < 1:
            raise ArgumentError(
                f"image patches: found {channels} channels, patch {patch} and width {dim}, expected 1 or more of each"
            )
        self.project = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h2 w2 d"]:
        """Embed each patch; the image is a multiple of the patch."""
        return self.project(images).permute(0, 2, 3, 1)


@checked
def interpolated(grid: Float[Tensor, "h w d"], size: tuple[int, ...]) -> Float[Tensor, "h2 w2 d"]:
    """Return a grid of vectors at another size, by bicubic interpolation; the same grid at its own size."""
    if tuple(grid.shape[:2]) == tuple(size):
        return grid
    resized = functional.interpolate(
        grid.permute(2, 0, 1)[None], size=tuple(size), mode="bicubic", align_corners=False, antialias=False
    )
    return resized[0].permute(1, 2, 0)


@checked_constructor
class GridPositions(nn.Module):
    """Learned positions of an ``h x w`` grid, added to the tokens.

    Raises:
        ArgumentError: a size or width below 1.
    """

    def __init__(self, height: int, width: int, dim: int, *, scale: float = 0.02) -> None:
        super().__init__()
        if min(height, width, dim) < 1:
            raise ArgumentError(f"grid positions: found {height} x {width} of width {dim}, expected 1 or more of each")
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(height, width, dim), std=scale))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Add the position of each token; for a grid of another size they are interpolated."""
        return x + interpolated(self.weight, tuple(x.shape[1:3])).to(x.dtype)
