"""Build the encoder of an observation space by name: ``build_encoder("nature-cnn", space, 256)``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError, CheckpointError
from manyheads.lab.data.storage import ENTRY, load_tensors
from manyheads.rl.encoders.frames import KIND
from manyheads.rl.encoders.images import NETWORKS, ImageEncoder, image_encoder
from manyheads.rl.encoders.observations import ONE, image_shape, is_image, leaves
from manyheads.rl.encoders.vectors import VectorEncoder


class Encoder(nn.Module):
    """Map observations by name to ``(N, width)``: an encoder for each image, one for all other parts together.

    With several, a linear map with ReLU joins them.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        name: str,
        width: int,
        *,
        depth: int,
        normalise: bool,
        stored: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        # header of a file of pretraining, whose backbone reads the images
        self.stored = stored
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
        made = [image_encoder(network, image_shape(parts[key]), width, stored) for key in self.images]
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
    stored: Mapping[str, Any] | None = None,
) -> Encoder:
    """Build an encoder from observations by name (:func:`to_tensors`) to ``(N, width)``.

    Args:
        name: "mlp", "nature-cnn", "small-cnn", "impala-resnet", a preset of an image backbone ("vit-nano"), or "auto":
            "nature-cnn" for images. Parts that are no images go through an MLP in any case.
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of them.
        width: of the output.
        depth: linear maps of the MLP.
        normalise: running normalisation of vectors.
        weights: a file of pretraining (``manyheads rl pretrain``), whose backbone then reads the images, whatever
            ``name`` is; or a safetensors file with the network of the images that ``name`` builds.
        frozen: do not train the network of the images.
        stored: header of a file of pretraining, to build its backbone with new weights.

    Raises:
        UnknownNameError: an unknown name.
        ArgumentError: an encoder that does not fit the space.
        CheckpointError: weights of another network.
    """
    if depth < 1 or width < 1:
        raise ArgumentError(f"encoder: found depth {depth} and width {width}, expected 1 or more")
    tensors: dict[str, Tensor] = {}
    if weights is not None:
        tensors, stored = read_network(Path(weights))
    encoder = Encoder(observation_space, name, width, depth=depth, normalise=normalise, stored=stored)
    if (weights is not None or frozen) and not encoder.images:
        raise ArgumentError("encoder: found weights or frozen=True for a space without images, expected images")
    for picture in encoder.pictures:
        assert isinstance(picture, ImageEncoder)
        if weights is not None:
            load_network(picture.network, tensors, Path(weights))
        if frozen:
            picture.freeze()
    return encoder


_FIX = "choose the encoder that the file was made with, and its image size and channels"


def read_network(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Read a file of pretraining, or any safetensors file: tensors, and the header of the former.

    Raises :class:`CheckpointError` for a file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            own = ENTRY in (file.metadata() or {})
        if own:
            return load_tensors(path, kind=KIND, fix=_FIX)
        return load_file(path), None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}), expected a safetensors file: {_FIX}") from error


def load_network(network: nn.Module, found: Mapping[str, Tensor], path: Path) -> None:
    """Load the tensors of a file into a network; further tensors of the file are left.

    Raises :class:`CheckpointError` that names the first tensor that is missing or of another shape.
    """
    expected = network.state_dict()
    for prefix in ("network.", "encoder."):
        if all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    for key, tensor in expected.items():
        if key not in found:
            raise CheckpointError(f"{path}: {key}: found nothing, expected shape {tuple(tensor.shape)}: {_FIX}")
        if found[key].shape != tensor.shape:
            shapes = f"found shape {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
            raise CheckpointError(f"{path}: {key}: {shapes}: {_FIX}")
    network.load_state_dict({key: found[key] for key in expected})
