"""Build the encoder of an observation space by name: ``build_encoder("nature-cnn", space, 256)``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError, CheckpointError
from manyheads.rl.encoders.images import NETWORKS, ImageEncoder, image_encoder
from manyheads.rl.encoders.observations import ONE, image_shape, is_image, leaves
from manyheads.rl.encoders.vectors import VectorEncoder


class Encoder(nn.Module):
    """Map observations by name to ``(N, width)``: an encoder for each image, one for all other parts together.

    With several, a linear map with ReLU joins them.
    """

    def __init__(self, space: spaces.Space[Any], name: str, width: int, *, depth: int, normalise: bool) -> None:
        super().__init__()
        parts = leaves(space)
        self.images = [key for key, part in parts.items() if is_image(part)]
        vectors = {key: part for key, part in parts.items() if key not in self.images}
        if name != "auto" and not self.images and name != "mlp":
            # an unknown name is told first
            image_encoder(name, (64, 64, 3), 1)
            raise ArgumentError(f"encoder: found {name!r} for a space without images, expected 'mlp' or 'auto'")
        if name == "mlp" and self.images:
            raise ArgumentError(f"encoder: found 'mlp' for images, expected one of {', '.join(NETWORKS)} or a backbone")
        network = "nature-cnn" if name == "auto" else name
        made = [image_encoder(network, image_shape(parts[key]), width) for key in self.images]
        self.pictures = nn.ModuleList(made)
        self.vectors = VectorEncoder(vectors, width, depth=depth, normalise=normalise) if vectors else None
        count = len(made) + (self.vectors is not None)
        self.joint = nn.Sequential(nn.Linear(count * width, width), nn.ReLU()) if count > 1 else nn.Identity()

    def forward(self, observations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """``(N, …)`` each to ``(N, width)``; a space of one part may be given as a tensor."""
        parts = {ONE: observations} if isinstance(observations, Tensor) else observations
        features = [net(parts[key]) for net, key in zip(self.pictures, self.images, strict=True)]
        if self.vectors is not None:
            features.append(self.vectors(parts))
        return self.joint(features[0] if len(features) == 1 else torch.cat(features, -1))

    def take_in(self, observations: Mapping[str, Tensor]) -> None:
        """Update the running normalisation with observations ``(N, …)``."""
        if self.vectors is not None:
            self.vectors.take_in(observations)


def build_encoder(
    name: str,
    observation_space: spaces.Space[Any],
    width: int,
    *,
    depth: int = 1,
    normalise: bool = False,
    weights: str | Path | None = None,
    frozen: bool = False,
) -> Encoder:
    """Build an encoder from observations by name (:func:`to_tensors`) to ``(N, width)``.

    Args:
        name: "mlp", "nature-cnn", "small-cnn", "impala-resnet", a preset of an image backbone ("vit-nano"), or "auto":
            "nature-cnn" for images. Parts that are no images go through an MLP in any case.
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of them.
        width: of the output.
        depth: linear maps of the MLP.
        normalise: running normalisation of vectors.
        weights: a safetensors file with the network of the images; its last linear map may be missing.
        frozen: do not train the network of the images.

    Raises:
        UnknownNameError: an unknown name.
        ArgumentError: an encoder that does not fit the space.
        CheckpointError: weights of another network.
    """
    if depth < 1 or width < 1:
        raise ArgumentError(f"encoder: found depth {depth} and width {width}, expected 1 or more")
    encoder = Encoder(observation_space, name, width, depth=depth, normalise=normalise)
    if (weights is not None or frozen) and not encoder.images:
        raise ArgumentError("encoder: found weights or frozen=True for a space without images, expected images")
    for picture in encoder.pictures:
        assert isinstance(picture, ImageEncoder)
        if weights is not None:
            load_network(picture.network, Path(weights))
        if frozen:
            picture.freeze()
    return encoder


def load_network(network: nn.Module, path: Path) -> None:
    """Load the network of an image encoder from a safetensors file.

    Raises :class:`CheckpointError` that names the first tensor that is missing or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    fix = "choose the encoder that the file was made with, and its image size and channels"
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}), expected a safetensors file: {fix}") from error
    expected = network.state_dict()
    for prefix in ("network.", "encoder."):
        if all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    for key, tensor in expected.items():
        if key not in found:
            raise CheckpointError(f"{path}: {key}: found nothing, expected shape {tuple(tensor.shape)}: {fix}")
        if found[key].shape != tensor.shape:
            shapes = f"found shape {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
            raise CheckpointError(f"{path}: {key}: {shapes}: {fix}")
    network.load_state_dict({key: found[key] for key in expected})
