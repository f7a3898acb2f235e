"""Augmentations of observations, batched, on the device of the images, drawn from a generator.

    crop      a random part of the image, by scale and aspect ratio, resized back: one affine map
    jitter    contrast c around the mean, then brightness b:  b (m + c (x - m))
    blur      Gaussian, separable, one standard deviation for each image
    solarise  x -> 1 - x where x >= threshold

An observation is a stack of frames. Each draw holds for all frames of the stack, so that motion survives. There is
neither a flip, which mirrors the game, nor hue or grayscale, which mix the frames of a stack.

Axes: b batch, c frames of a stack, h and w pixels; pixels from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.errors import ArgumentError

Generator = torch.Generator | None
# Taps of the blur on each side of the centre: 7 x 7 pixels.
TAPS = 3


def _uniform(count: int, least: float, most: float, images: Tensor, generator: Generator) -> Tensor:
    drawn = torch.rand(count, generator=generator, device=generator.device if generator else images.device)
    return (least + (most - least) * drawn).to(images.device, images.dtype)


def _chosen(count: int, probability: float, images: Tensor, generator: Generator) -> Tensor:
    """Return ``(B, 1, 1, 1)`` bool, True with that probability."""
    return (_uniform(count, 0, 1, images, generator) < probability)[:, None, None, None]


def random_crops(
    images: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator = None
) -> Tensor:
    """Draw affine maps ``(B, 2, 3)`` of random resized crops.

    ``scale`` is the range of the area, ``ratio`` that of width over height; a side is at most that of the image.
    """
    count = len(images)
    area = _uniform(count, *scale, images, generator)
    shape = _uniform(count, math.log(ratio[0]), math.log(ratio[1]), images, generator).exp()
    width, height = (area * shape).sqrt().clamp_max(1), (area / shape).sqrt().clamp_max(1)
    x = (1 - width) * _uniform(count, -1, 1, images, generator)
    y = (1 - height) * _uniform(count, -1, 1, images, generator)
    zero = torch.zeros_like(x)
    return torch.stack([width, zero, x, zero, height, y], 1).view(count, 2, 3)


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Apply an affine map ``(B, 2, 3)`` to each image, bilinear."""
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def jitter(images: Tensor, strength: float, probability: float, generator: Generator = None) -> Tensor:
    """Change contrast and brightness by factors from ``1 - strength`` to ``1 + strength``."""
    count = len(images)
    chosen = _chosen(count, probability, images, generator)
    contrast, brightness = (
        torch.where(chosen, _uniform(count, 1 - strength, 1 + strength, images, generator)[:, None, None, None], 1.0)
        for _ in range(2)
    )
    mean = images.mean((1, 2, 3), keepdim=True)
    return torch.where(chosen, (brightness * (mean + contrast * (images - mean))).clamp(0, 1), images)


def blur(images: Tensor, sigma: tuple[float, float], probability: float, generator: Generator = None) -> Tensor:
    """Blur with a Gaussian of 7 x 7 taps, whose standard deviation in pixels is drawn from the range ``sigma``."""
    count = len(images)
    chosen = _chosen(count, probability, images, generator).flatten()
    drawn = _uniform(count, *sigma, images, generator)
    at = chosen.nonzero().flatten()
    if not len(at):
        return images
    taps = torch.arange(-TAPS, TAPS + 1, device=images.device, dtype=images.dtype)
    weights = (-(taps**2) / (2 * drawn[at, None] ** 2)).exp()
    weights = weights / weights.sum(1, keepdim=True)
    made = images[at]
    for axis, sides in ((2, (0, 0, TAPS, TAPS)), (3, (TAPS, TAPS, 0, 0))):
        size, padded = made.shape[axis], functional.pad(made, sides, mode="replicate")
        made = torch.zeros_like(made)
        for tap in range(2 * TAPS + 1):
            made += weights[:, tap, None, None, None] * padded.narrow(axis, tap, size)
    return images.index_copy(0, at, made)


def solarise(images: Tensor, threshold: float, probability: float, generator: Generator = None) -> Tensor:
    """Invert the pixels at or above the threshold."""
    chosen = _chosen(len(images), probability, images, generator)
    return torch.where(chosen & (images >= threshold), 1 - images, images)


@dataclass(frozen=True)
class Augmentation:
    """Strengths of a view; the defaults change nothing."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the area of a crop."""
    ratio: tuple[float, float] = (1.0, 1.0)
    """Range of width over height of a crop."""
    jitter: float = 0.0
    """Strength of the change of contrast and brightness."""
    jitter_probability: float = 0.8
    blur: tuple[float, float] = (0.1, 1.0)
    """Range of the standard deviation of the blur, in pixels."""
    blur_probability: float = 0.0
    solarise: float = 120 / 255
    """Threshold of the inversion."""
    solarise_probability: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "ratio", "blur"):
            least, most = getattr(self, name)
            if not 0 < least <= most or (name == "scale" and most > 1):
                raise ArgumentError(f"augmentation: {name}: found {least} to {most}, expected a range above 0")
        if not 0 <= self.jitter <= 1:
            raise ArgumentError(f"augmentation: jitter: found {self.jitter}, expected 0 to 1")

    @property
    def crops(self) -> bool:
        """Whether the view moves pixels."""
        return self.scale != (1.0, 1.0) or self.ratio != (1.0, 1.0)

    def views(self, images: Tensor, generator: Generator = None) -> Tensor:
        """Return one view of each image of a batch ``(B, C, H, W)``."""
        if self.crops:
            images = warp(images, random_crops(images, self.scale, self.ratio, generator))
        return self._colours(images, generator)

    def shared_views(self, sequences: Tensor, generator: Generator = None) -> Tensor:
        """Return views of ``(B, T, C, H, W)`` with one draw for all T observations of a row."""
        rows, steps, frames = sequences.shape[:3]
        return self.views(sequences.flatten(1, 2), generator).view(rows, steps, frames, *sequences.shape[3:])

    def _colours(self, images: Tensor, generator: Generator) -> Tensor:
        if self.jitter and self.jitter_probability:
            images = jitter(images, self.jitter, self.jitter_probability, generator)
        if self.blur_probability:
            images = blur(images, self.blur, self.blur_probability, generator)
        if self.solarise_probability:
            images = solarise(images, self.solarise, self.solarise_probability, generator)
        return images


# Published: the crop keeps 8 to 100 % of the area. Left out: hue, grayscale and flip.
PUBLISHED_STRONG = Augmentation(
    scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), jitter=0.4, blur=(0.1, 0.2), blur_probability=1.0
)
PUBLISHED_SECOND = Augmentation(
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    jitter=0.4,
    blur=(0.1, 0.2),
    blur_probability=0.1,
    solarise_probability=0.2,
)
PUBLISHED_LIGHT = Augmentation(jitter=0.4)
