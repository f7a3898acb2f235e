"""Feed-forward networks: plain, ``W2 act(W1 x)``, and gated, ``W3 (act(W1 x) o W2 x)`` (GLU Variants Improve
Transformer, 2002.05202: GEGLU with ``activation="gelu"``, SwiGLU with ``"silu"``, ReGLU with ``"relu"``).

Axes: d width, F hidden width; any leading axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked, checked_constructor
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


def _check_widths(name: str, dim: int, hidden: int) -> None:
    for argument, value in (("dim", dim), ("hidden", hidden)):
        if value < 1:
            raise ArgumentError(f"{name}: {argument}: found {value}, expected 1 or more")
