"""The interface of image backbones: features at one or several strides, one vector for the image, a class for it.

    features = model.forward_features(images)     tuple of (B, H / s, W / s, D_s), the finest level first
    logits   = model(images)                      (B, K), a linear map of the pooled features

``model.levels`` gives stride and width of each level. Images are ``(B, C, H, W)``, features channels last.

Axes: b batch, c channels, h and w pixels, d width, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.arguments import describe
from manyheads.core.errors import ArgumentError, CheckpointError
from manyheads.core.fields import Configured, argument, attribute

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


class Level(NamedTuple):
    """One level of features: ``stride`` in pixels, ``width`` of a feature."""

    stride: int
    width: int


class Encoded(NamedTuple):
    """What :meth:`ImageBackbone.encode` returns."""

    levels: tuple[Tensor, ...]  # (B, H / s, W / s, D_s) each, finest first
    pooled: Tensor  # (B, D), the vector of the image that the head reads


@dataclass(frozen=True)
class BackboneInfo:
    """Source and presets of a backbone."""

    name: str
    title: str
    arxiv: str
    presets: Mapping[str, Mapping[str, Any]]  # preset -> arguments
    # preset -> parameters as published, for 1000 classes: a number is exact, "23.8M" is rounded
    parameters: Mapping[str, int | str]
    # arguments of a preset that hold for its own layer only, dropped beside another
    for_layer: tuple[str, ...] = ()
    good_for: str = ""  # one sentence: the task, and why this backbone
    not_for: str = ""  # one sentence: when to take another, and which
    compiles: str = ""  # why torch.compile(fullgraph=True) does not work; "" where it does
    exports: str = ""  # why torch.export with a batch of any size does not work; "" where it does
    onnx: str = ""  # why ONNX export does not work; "" where it does
    deviations: tuple[str, ...] = ()


class ImageBackbone(Configured):
    """Base of image backbones. A subclass has ``info``, declares its arguments as fields, and implements ``encode``.

    ``setup`` builds its parameters and sets ``levels``; it calls ``make_head`` with the width of the pooled vector.
    """

    info: ClassVar[BackboneInfo]
    classes: int | None = argument(default=1000, least=1)
    """K; None for no head: then ``forward`` returns the pooled features."""
    channels: int = argument(default=3, least=1)
    """C of the images."""
    config: dict[str, Any] = attribute()
    levels: tuple[Level, ...] = attribute()
    head: nn.Module = attribute()

    @property
    def multiple(self) -> tuple[int, int]:
        """Height and width of an image are multiples of these; the coarsest stride by default."""
        return (self.levels[-1].stride, self.levels[-1].stride)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The only size of images that the backbone takes; None for any multiple."""
        return None

    def make_head(self, dim: int) -> nn.Module:
        """The linear map from the pooled vector to the classes."""
        if self.classes is None:
            return nn.Identity()
        head = nn.Linear(dim, self.classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        """Features and pooled vector; ``images`` has been checked."""
        raise NotImplementedError(f"{type(self).__name__} does not implement encode")

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Features of every level, finest first, channels last.

        Raises:
            ArgumentError: no floating point images, wrong channels, a size that the grid cannot hold.
        """
        return self.encode(self._checked(images)).levels

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of the classes. Raises as :meth:`forward_features`."""
        return self.head(self.encode(self._checked(images)).pooled)

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename and reshape a state dict of the authors' code for ``load_weights``."""
        raise ArgumentError(f"{self.info.name}: from_reference: this backbone has no map from other code")

    def load_weights(self, state: Mapping[str, Shaped[Tensor, "..."]], *, head: bool = True) -> None:
        """Load tensors by name; ``head=False`` leaves the head as it is, for other classes than those of the weights.

        Raises :class:`ArgumentError` for anything but tensors by name, :class:`CheckpointError` naming the first tensor
        that is missing, unexpected or of another shape.
        """
        if not isinstance(state, Mapping):
            raise ArgumentError(
                f"{self.info.name}: state: found {describe(state)}, expected tensors by name: "
                "safetensors.torch.load_file reads them from a file"
            )
        own = self.state_dict()
        if not head:
            kept = {name: tensor for name, tensor in own.items() if name.startswith("head.")}
            state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")} | kept
        for name in sorted(set(own) | set(state)):
            found = "nothing" if name not in state else f"shape {tuple(state[name].shape)}"
            expected = "nothing" if name not in own else f"shape {tuple(own[name].shape)}"
            if found != expected:
                raise CheckpointError(f"{self.info.name}: {name}: found {found}, expected {expected}: {_cause(name)}")
        self.load_state_dict(dict(state))

    def _checked(self, images: Tensor) -> Tensor:
        name = self.info.name
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            raise ArgumentError(
                f"{name}: images: found {describe(images)}, expected a floating point tensor (B, {self.channels}, H, W)"
            )
        if images.shape[1] != self.channels:
            raise ArgumentError(f"{name}: images: found {images.shape[1]} channels, expected {self.channels}")
        size, (down, right) = tuple(images.shape[2:]), self.multiple
        if self.fixed_size is not None and size != self.fixed_size:
            height, width = self.fixed_size
            raise ArgumentError(f"{name}: images: found {size[0]} x {size[1]} pixels, expected {height} x {width}")
        if size[0] < down or size[1] < right or size[0] % down or size[1] % right:
            raise ArgumentError(
                f"{name}: images: found {size[0]} x {size[1]} pixels, expected multiples of {down} and {right}: "
                "resize or pad them"
            )
        weight = next(self.parameters())
        if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
            raise ArgumentError(f"{name}: images: found {images.dtype}, expected {weight.dtype} as the weights")
        return images


def _cause(name: str) -> str:
    """Why the tensor of that name may have another shape."""
    if name.startswith("head."):
        return "these are weights for other classes: load them with head=False, or build the model with their classes"
    return "these are the weights of another preset, image size or number of channels"


def pair(size: int | tuple[int, ...], name: str, owner: str) -> tuple[int, int]:
    """Height and width from one number or two. Raises :class:`ArgumentError` for anything else."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ArgumentError(f"{owner}: {name}: found {size}, expected one number or (height, width), 1 or more")
    return sides[0], sides[1]


def token_grid(size: int | tuple[int, ...], stride: int, owner: str) -> tuple[int, int]:
    """Rows and columns of tokens, ``stride`` pixels apart, of images of that size.

    Raises :class:`ArgumentError` for a size that is no multiple of the stride.
    """
    height, width = pair(size, "image_size", owner)
    if height % stride or width % stride:
        raise ArgumentError(f"{owner}: image_size: found {height} x {width}, expected multiples of {stride}")
    return height // stride, width // stride
