"""Permuted sequential digits (a small psMNIST): handwritten digits pixel by pixel, in one shuffled order.

The data are the 1,797 digits of 8 x 8 pixels in scikit-learn. The task tests the memory of a network without audio.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from manyheads.core.errors import MissingPackageError
from manyheads.kws.training.data import ClipBatch
from manyheads.lab.training.experiment import Splits


@dataclass(frozen=True)
class PixelPart:
    """Digits as sequences of one pixel per step."""

    pixels: Tensor  # (N, 64, 1) in [0, 1]
    targets: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.targets)

    def heard_frames(self) -> Tensor:
        return torch.full((len(self),), self.pixels.shape[1])

    def batch(self, indices: Tensor) -> ClipBatch:
        target = torch.nn.functional.one_hot(self.targets[indices], 10).float()
        return ClipBatch(self.pixels[indices], self.heard_frames()[indices], target)


@dataclass(frozen=True)
class PixelDigits:
    """Handwritten digits: 1,297 for training, 100 for validation, 400 for test; the split is fixed."""

    permuted: bool = True
    """Shuffle the order of the pixels, once for all digits."""
    order_seed: int = 0
    """Random seed of the order of the pixels."""

    def open(self) -> Splits:
        """Load the digits and return the splits. Raises :class:`MissingPackageError` without scikit-learn."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise MissingPackageError("the digits come with scikit-learn: pip install scikit-learn") from error
        loaded = load_digits()
        pixels = torch.from_numpy(loaded["data"]).float().unsqueeze(2) / 16
        targets = torch.from_numpy(loaded["target"]).long()
        if self.permuted:
            pixels = pixels[:, torch.randperm(64, generator=torch.Generator().manual_seed(self.order_seed))]
        shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
        parts = [PixelPart(pixels[rows], targets[rows]) for rows in shuffled.split([1297, 100, 400])]
        return Splits(*parts, {"bins": 1, "labels": tuple(map(str, range(10)))})
