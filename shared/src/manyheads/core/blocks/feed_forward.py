"""Feed-forward networks.

    FeedForward            W2 act(W1 x)
    GatedFeedForward       W3 (act(W1 x) o W2 x)       GLU Variants Improve Transformer (2002.05202): GEGLU with
                                                       ``activation="gelu"``, SwiGLU with ``"silu"``, ReGLU ``"relu"``
    ConvolvedFeedForward   W2 act(C W1 x)              C a depthwise 3 x 3 convolution of an image (PVT v2, 2106.13797);
                                                       with ``skip`` I + C in its place (SG-Former, 2308.12216)

Axes: d width, F hidden width; any leading axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked, checked_constructor
from manyheads.core.blocks.depthwise import DepthwiseConvolution
from manyheads.core.errors import ArgumentError, UnknownNameError

if TYPE_CHECKING:
    from jaxtyping import Float

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


@checked
def find_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Find an activation by name. Raises :class:`UnknownNameError` with the nearest name."""
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


@checked_constructor
class FeedForward(nn.Module):
    """Feed-forward network ``W2 act(W1 x)``.

    Raises :class:`ArgumentError` for widths below 1, :class:`UnknownNameError` for an unknown activation.
    """

    def __init__(self, dim: int, hidden: int, *, activation: str = "gelu", bias: bool = True) -> None:
        super().__init__()
        _check_widths("feed-forward", dim, hidden)
        self.activation = find_activation(activation)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """Map each token."""
        return self.down(self.activation(self.up(x)))


@checked_constructor
class GatedFeedForward(nn.Module):
    """Gated feed-forward network ``W3 (act(W1 x) o W2 x)``; ``normed`` applies one layer norm to both factors.

    Raises :class:`ArgumentError` for widths below 1, :class:`UnknownNameError` for an unknown activation.
    """

    def __init__(
        self, dim: int, hidden: int, *, activation: str = "gelu", bias: bool = True, normed: bool = False
    ) -> None:
        super().__init__()
        _check_widths("gated feed-forward", dim, hidden)
        self.activation = find_activation(activation)
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.norm = nn.LayerNorm(hidden) if normed else nn.Identity()

    def forward(self, x: Float[Tensor, "*grid d"]) -> Float[Tensor, "*grid d"]:
        """Map each token."""
        return self.down(self.norm(self.activation(self.gate(x))) * self.norm(self.up(x)))


@checked_constructor
class ConvolvedFeedForward(nn.Module):
    """Feed-forward network with a depthwise 3 x 3 convolution of its hidden channels, which shows it positions.

    Raises :class:`ArgumentError` for widths below 1, :class:`UnknownNameError` for an unknown activation.
    """

    def __init__(self, dim: int, hidden: int, *, activation: str = "gelu", skip: bool = False) -> None:
        super().__init__()
        _check_widths("convolved feed-forward", dim, hidden)
        self.activation, self.skip = find_activation(activation), skip
        self.up = nn.Linear(dim, hidden)
        self.convolution = DepthwiseConvolution(hidden, (3, 3))
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Map an image, channels last; it is padded with zeros."""
        h = self.up(x)
        convolved = self.convolution(h)
        return self.down(self.activation(h + convolved if self.skip else convolved))


def _check_widths(name: str, dim: int, hidden: int) -> None:
    for argument, value in (("dim", dim), ("hidden", hidden)):
        if value < 1:
            raise ArgumentError(f"{name}: {argument}: found {value}, expected 1 or more")
