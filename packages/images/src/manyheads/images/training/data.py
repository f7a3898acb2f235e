"""Labelled pictures as train, validation and test parts of standardised tensors."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.errors import ArgumentError
from manyheads.images.pictures.labelled import Labelled, digits, folder
from manyheads.lab.data.files import digest_of
from manyheads.lab.training.experiment import Splits


class ImageBatch(NamedTuple):
    """``images (B, C, H, W)``, standardised, and ``targets (B,)``, the number of each label."""

    images: Tensor
    targets: Tensor


@dataclass(frozen=True)
class ImagePart:
    """One part. Pictures are kept as bytes; those of the train part are shifted at random."""

    pixels: Tensor  # (N, C, H, W), uint8
    targets: Tensor
    mean: Tensor
    sd: Tensor
    shift: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor) -> ImageBatch:
        images = standardised(self.pixels[indices], self.mean, self.sd)
        return ImageBatch(_shifted(images, self.shift) if self.shift else images, self.targets[indices])


def standardised(pixels: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Bytes ``(B, C, H, W)`` to float32 with mean 0 and standard deviation 1 of each channel of the train part."""
    return (pixels.float() / 255 - mean[:, None, None]) / sd[:, None, None]


def _shifted(images: Tensor, most: int) -> Tensor:
    """Move each image by up to ``most`` pixels in both directions; the border is repeated."""
    batch, _, height, width = images.shape
    padded = functional.pad(images, (most, most, most, most), mode="replicate")
    down, right = torch.randint(0, 2 * most + 1, (2, batch))
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(batch)[:, None, None, None], torch.arange(images.shape[1])[:, None, None], rows, columns]


@dataclass(frozen=True)
class ImageData:
    """A labelled set of pictures, resized to squares."""

    set: str = "digits"
    """"digits", or "folder" for the pictures below ``folder``."""
    folder: Path | None = None
    """Folder with a subfolder of pictures for each label."""
    image_size: int = 32
    """Height and width in pixels to which every picture is resized."""
    channels: int = 3
    """1 for grey, 3 for colour; digits are grey."""
    shift: int = 2
    """Largest random shift of a training picture, in pixels."""
    validation_share: float = 0.1
    """Share of each label for validation."""
    test_share: float = 0.25
    """Share of each label for the test part."""

    def content(self) -> str | None:
        """Return the digest of the pictures of a folder; None for a set that is known by name."""
        return digest_of(self.folder) if self.set == "folder" else None

    def open(self) -> Splits:
        """Read the pictures. Raises :class:`DataError` and :class:`ArgumentError`."""
        self._check()
        shares = (self.validation_share, self.test_share)
        if self.set == "digits":
            found = digits(self.image_size, shares)
        else:
            assert self.folder is not None
            found = folder(self.folder, self.image_size, self.channels, shares)
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
        return self._parts(found)

    def _check(self) -> None:
        if self.set not in ("digits", "folder"):
            raise ArgumentError(f"data.set: found {self.set!r}, expected 'digits' or 'folder'")
        if self.set == "folder" and self.folder is None:
            raise ArgumentError("data.folder: found none, expected a folder of pictures: data.folder=photos")
        if self.channels not in (1, 3):
            raise ArgumentError(f"data.channels: found {self.channels}, expected 1 (grey) or 3 (colour)")
        if self.image_size < 1 or self.shift < 0:
            raise ArgumentError(
                f"data: found image_size {self.image_size} and shift {self.shift}, expected 1 or more and 0 or more"
            )
        if self.shift >= self.image_size:
            raise ArgumentError(
                f"data.shift: found {self.shift}, expected less than the {self.image_size} pixels of a side "
                f"(data.shift={self.image_size // 16})"
            )
        if not (self.validation_share >= 0 and self.test_share > 0 and self.validation_share + self.test_share < 1):
            raise ArgumentError(
                f"data: found validation_share {self.validation_share} and test_share {self.test_share}, expected "
                "shares that leave something for training"
            )

    def _parts(self, found: Labelled) -> Splits:
        pixels = torch.from_numpy(np.ascontiguousarray(found.pixels.transpose(0, 3, 1, 2)))
        targets = torch.from_numpy(found.targets)
        train = pixels[torch.from_numpy(found.parts["train"])].float() / 255
        mean, sd = train.mean((0, 2, 3)), train.std((0, 2, 3)).clamp_min(1e-3)

        def part(name: str, shift: int = 0) -> ImagePart:
            chosen = torch.from_numpy(found.parts[name])
            return ImagePart(pixels[chosen], targets[chosen], mean, sd, shift)

        facts = {
            "labels": list(found.labels),
            "channels": pixels.shape[1],
            "image_size": self.image_size,
            "mean": mean.tolist(),
            "sd": sd.tolist(),
        }
        return Splits(part("train", self.shift), part("validation"), part("test"), facts)
