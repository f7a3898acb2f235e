"""Encoders of images ``(N, H, W, C)`` in bytes: three convolutional networks, and every image backbone of the core.

The channels stand last in memory too, as the convolutions of a CPU want them: a view, no copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.backbones.presets import BACKBONES, create_backbone, find_backbone, preset_names
from manyheads.core.errors import ArgumentError, UnknownNameError


def planes(images: Tensor, dtype: torch.dtype) -> Tensor:
    """``(N, H, W, C)`` bytes to ``(N, C, H, W)`` from 0 to 1, channels last in memory."""
    return images.permute(0, 3, 1, 2).to(dtype) / 255


class ImageEncoder(nn.Module):
    """A network for ``(N, C, H, W)`` and a linear map with ReLU from its features to ``width``.

    Args:
        network: returns ``(N, …)``.
        size: height and width of the images that it takes; smaller ones are padded with 0, larger ones cut, below and
            on the right.
        shape: height, width and channels of the images.
        width: of the output.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int], shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        height, wide, channels = shape
        self.network = network
        self.pad = (size[0] - height, size[1] - wide)
        self.frozen = False
        with torch.no_grad():
            try:
                features = network(torch.zeros(1, channels, *size)).flatten(1).shape[1]
            except RuntimeError as error:
                raise ArgumentError(
                    f"encoder: found images of {height} x {wide} pixels, expected larger ones: choose another encoder "
                    "(small-cnn) or enlarge the images"
                ) from error
        self.output = nn.Linear(features, width)

    def freeze(self) -> None:
        """Train the linear map only."""
        self.frozen = True
        self.network.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """``(N, H, W, C)`` to ``(N, width)``."""
        x = planes(images, self.output.weight.dtype)
        if any(self.pad):
            x = functional.pad(x, (0, self.pad[1], 0, self.pad[0]))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.network(x)
        return torch.relu(self.output(features.flatten(1)))


def nature(channels: int) -> nn.Sequential:
    """Human-level control through deep reinforcement learning (Mnih et al., 2015): 84 x 84 pixels."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU()),
        *(nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3), nn.ReLU()),
    )


def small(channels: int) -> nn.Sequential:
    """Three convolutions with 32 channels, for 42 x 42 pixels: an eighth of the arithmetic of ``nature`` on 84 x 84."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 4, stride=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
    )


class ResidualUnit(nn.Module):
    """``x + C(relu(C(relu(x))))`` with 3 x 3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        return x + self.second(torch.relu(self.first(torch.relu(x))))


def impala(channels: int) -> nn.Sequential:
    """The large network of IMPALA (1802.01561): three sections of 16, 32 and 32 channels with two residual units."""
    layers: list[nn.Module] = []
    for width in (16, 32, 32):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualUnit(width),
            ResidualUnit(width),
        ]
        channels = width
    return nn.Sequential(*layers, nn.ReLU())


NETWORKS = {"nature-cnn": nature, "small-cnn": small, "impala-resnet": impala}


def backbone(name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, tuple[int, int]]:
    """Build an image backbone without a head; also the size of its images, the next multiple that it takes."""
    kind, _ = find_backbone(name)
    changes: dict[str, Any] = {"classes": None, "channels": shape[2]}
    down, right = create_backbone(name, **changes).multiple
    size = (shape[0] + -shape[0] % down, shape[1] + -shape[1] % right)
    if "image_size" in {one.name for one in kind.arguments}:
        changes["image_size"] = size[0] if size[0] == size[1] else size
    return create_backbone(name, **changes), size


def pretrained_backbone(stored: Mapping[str, Any], shape: tuple[int, int, int]) -> tuple[nn.Module, tuple[int, int]]:
    """Build the backbone of a file of pretraining, whose header is ``stored``; also the size of its images.

    Raises :class:`ArgumentError` for images of another size or number of channels than those of pretraining.
    """
    arguments, size = stored["arguments"], stored["size"]
    expected = (size, size, arguments["channels"])
    if shape != expected:
        raise ArgumentError(
            f"encoder_weights: found images of shape {shape}, expected {expected}, that of the pretraining: make the "
            "environment with this size and number of stacked frames"
        )
    tuples: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in arguments.items()}
    seen = tuples["image_size"]
    return BACKBONES[stored["backbone"]](**tuples), (seen, seen) if isinstance(seen, int) else seen


def image_encoder(
    name: str, shape: tuple[int, int, int], width: int, stored: Mapping[str, Any] | None = None
) -> ImageEncoder:
    """Build an image encoder by name, or that of a file of pretraining by its header.

    Raises :class:`UnknownNameError` with the nearest name.
    """
    network: nn.Module
    if stored is not None:
        network, size = pretrained_backbone(stored, shape)
        return ImageEncoder(network, size, shape, width)
    if name in NETWORKS:
        network = NETWORKS[name](shape[2])
        network.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        return ImageEncoder(network, (shape[0], shape[1]), shape, width)
    if name in preset_names():
        network, size = backbone(name, shape)
        return ImageEncoder(network, size, shape, width)
    raise UnknownNameError("encoder", name, [*NETWORKS, *preset_names(), "mlp"])
