"""Embeddings of values and patches of a series, and of positions.

    ValueEmbedding      e[t] = W [x[t-1], x[t], x[t+1]]      a circular convolution of width 3 (2012.07436)
    PatchEmbedding      e[p] = W x[pS : pS + P] + b          patches of P steps, S apart (2211.14730)
    sinusoidal          p[t, 2i] = sin(t / 10000^(2i/D)),  p[t, 2i+1] = cos(t / 10000^(2i/D))   (1706.03762)

``nn.Embedding`` embeds token ids. Axes: b batch, t tokens or steps, c channels, d width, n positions or patches.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked, checked_constructor
from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@checked
def sinusoidal_positions(count: int, dim: int, *, first: int = 0) -> Float[Tensor, "n d"]:
    """Sinusoidal embeddings of ``count`` positions from ``first`` on, in float32.

    Raises:
        ArgumentError: a ``count`` below 0, a width below 1.
    """
    if count < 0 or dim < 1:
        raise ArgumentError(f"sinusoidal_positions: found {count} positions of width {dim}, expected 0 or more of 1")
    return _sines(torch.arange(first, first + count), dim)


def _sines(place: Tensor, dim: int) -> Tensor:
    """The sinusoidal embeddings ``(…, D)`` of positions ``(…)``, in float32."""
    frequency = torch.exp(torch.arange(0, dim, 2, dtype=torch.float64, device=place.device) * (-math.log(1e4) / dim))
    angle = place.double().unsqueeze(-1) * frequency
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :dim].float()


@checked_constructor
class LearnedPositions(nn.Module):
    """Learned position embeddings for ``count`` positions, added to the tokens.

    Args:
        count: number of positions.
        dim: width D.
        scale: standard deviation of the initial weights.

    Raises:
        ArgumentError: a ``count`` or width below 1; in ``forward`` more tokens than positions.
    """

    def __init__(self, count: int, dim: int, *, scale: float = 0.02) -> None:
        super().__init__()
        if count < 1 or dim < 1:
            raise ArgumentError(f"learned positions: found {count} of width {dim}, expected 1 or more of 1 or more")
        self.weight = nn.Parameter(torch.randn(count, dim) * scale)

    def forward(
        self, x: Float[Tensor, "b t d"], *, first: Int[Tensor, "b"] | Int[Tensor, ""] | int = 0
    ) -> Float[Tensor, "b t d"]:
        """Add the embeddings of the positions ``first, first + 1, …``; ``first`` is one number, or one for each row."""
        place = torch.as_tensor(first, device=x.device).view(-1, 1) + torch.arange(x.shape[1], device=x.device)
        if x.shape[1] and int(place.max()) >= len(self.weight):
            raise ArgumentError(
                f"learned positions: found {int(place.max()) + 1} tokens, expected {len(self.weight)} at most"
            )
        return x + self.weight[place].to(x.dtype)


@checked_constructor
class SinusoidalPositions(nn.Module):
    """Sinusoidal position embeddings for any number of tokens, added to these.

    Raises:
        ArgumentError: a width below 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ArgumentError(f"sinusoidal positions: dim: found {dim}, expected 1 or more")
        self.dim = dim

    def forward(
        self, x: Float[Tensor, "b t d"], *, first: Int[Tensor, "b"] | Int[Tensor, ""] | int = 0
    ) -> Float[Tensor, "b t d"]:
        """Add the embeddings of the positions ``first, first + 1, …``; ``first`` is one number, or one for each row."""
        start = torch.as_tensor(first, device=x.device).view(-1, 1)
        return x + _sines(start + torch.arange(x.shape[1], device=x.device), self.dim).to(x.dtype)


@checked_constructor
class ValueEmbedding(nn.Module):
    """Embed each step with its two neighbours by a circular convolution without bias.

    Raises:
        ArgumentError: channels or a width below 1.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        if channels < 1 or dim < 1:
            raise ArgumentError(
                f"value embedding: found {channels} channels to width {dim}, expected 1 or more of both"
            )
        self.weight = nn.Conv1d(channels, dim, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.weight.weight, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t d"]:
        """Embed the channels of each step."""
        return self.weight(x.transpose(1, 2)).transpose(1, 2)


@checked_constructor
class PatchEmbedding(nn.Module):
    """Embed patches of ``width`` steps, ``stride`` apart.

    The series is padded by repeating the last value ``stride`` times, so that the newest steps get their own patch.

    Raises:
        ArgumentError: a stride above the width; in ``forward`` fewer steps than one patch has.
    """

    def __init__(self, width: int, stride: int, dim: int) -> None:
        super().__init__()
        if not 1 <= stride <= width:
            raise ArgumentError(f"patch embedding: stride: found {stride}, expected 1 to the width {width}")
        self.width, self.stride = width, stride
        self.project = nn.Linear(width, dim)

    def count(self, steps: int) -> int:
        """The number of patches of ``steps`` steps."""
        return (steps + self.stride - self.width) // self.stride + 1

    def forward(self, x: Float[Tensor, "b t"]) -> Float[Tensor, "b n d"]:
        """Embed the patches of each row."""
        if x.shape[1] + self.stride < self.width:
            raise ArgumentError(
                f"patch embedding: found {x.shape[1]} steps, expected {self.width - self.stride} or more"
            )
        padded = torch.cat([x, x[:, -1:].expand(-1, self.stride)], 1)
        return self.project(padded.unfold(1, self.width, self.stride))
