"""Embeddings: patches and values of a series, and positions.

    ValueEmbedding      e[t] = W [x[t-1], x[t], x[t+1]]      a convolution of width 3 on a circle (2012.07436)
    PatchEmbedding      e[p] = W x[pS : pS + P] + b          patches of P steps, S apart (2211.14730)
    sinusoidal          p[t, 2i] = sin(t / 10000^(2i/D)),  p[t, 2i+1] = cos(t / 10000^(2i/D))   (1706.03762)

Tokens are embedded by ``nn.Embedding``. Shapes: B batch, T tokens, C channels, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked, checked_constructor
from manyheads.core.errors import ArgumentError


@checked
def sinusoidal_positions(count: int, dim: int, *, first: int = 0) -> Tensor:
    """Sinusoidal positions ``(count, D)`` from position ``first`` on, in float32."""
    if count < 0 or dim < 1:
        raise ArgumentError(f"sinusoidal_positions: found {count} positions of width {dim}, expected 0 or more of 1")
    place = torch.arange(first, first + count, dtype=torch.float64).unsqueeze(1)
    angle = place * torch.exp(torch.arange(0, dim, 2, dtype=torch.float64) * (-math.log(10000.0) / dim))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :dim].float()


@checked_constructor
class LearnedPositions(nn.Module):
    """A learned vector for each of ``count`` positions, added to the tokens.

    Raises:
        ArgumentError: a ``count`` or width below 1; in ``forward`` more tokens than positions.
    """

    def __init__(self, count: int, dim: int, *, scale: float = 0.02) -> None:
        super().__init__()
        if count < 1 or dim < 1:
            raise ArgumentError(f"learned positions: found {count} of width {dim}, expected 1 or more of 1 or more")
        self.weight = nn.Parameter(torch.randn(count, dim) * scale)

    def forward(self, x: Tensor, *, first: Tensor | int = 0) -> Tensor:
        """``x (B, T, D)`` whose tokens stand at ``first, first + 1, …``; ``first`` is one number or one a row."""
        place = torch.as_tensor(first, device=x.device).view(-1, 1) + torch.arange(x.shape[1], device=x.device)
        if x.shape[1] and int(place.max()) >= len(self.weight):
            raise ArgumentError(
                f"learned positions: found {int(place.max()) + 1} tokens, expected {len(self.weight)} at most"
            )
        return x + self.weight[place].to(x.dtype)


@checked_constructor
class SinusoidalPositions(nn.Module):
    """Sinusoidal positions added to the tokens; any number of tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ArgumentError(f"sinusoidal positions: dim: found {dim}, expected 1 or more")
        self.dim = dim

    def forward(self, x: Tensor, *, first: Tensor | int = 0) -> Tensor:
        """``x (B, T, D)`` whose tokens stand at ``first, first + 1, …``; ``first`` is one number or one a row."""
        start = torch.as_tensor(first, device=x.device)
        table = sinusoidal_positions(int(start.max()) + x.shape[1], self.dim).to(x)
        return x + table[start.view(-1, 1) + torch.arange(x.shape[1], device=x.device)]


@checked_constructor
class ValueEmbedding(nn.Module):
    """``(B, T, C)`` -> ``(B, T, D)``: each step with its two neighbours on a circle, no bias.

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

    def forward(self, x: Tensor) -> Tensor:
        return self.weight(x.transpose(1, 2)).transpose(1, 2)


@checked_constructor
class PatchEmbedding(nn.Module):
    """``(B, T)`` -> ``(B, patches, D)``: patches of ``width`` steps, ``stride`` apart; the last value is repeated
    ``stride`` times at the end, so that the newest steps are in a patch of their own.

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

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] + self.stride < self.width:
            raise ArgumentError(
                f"patch embedding: found {x.shape[1]} steps, expected {self.width - self.stride} or more"
            )
        padded = torch.cat([x, x[:, -1:].expand(-1, self.stride)], 1)
        return self.project(padded.unfold(1, self.width, self.stride))
