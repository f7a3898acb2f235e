"""Encoder of vectors and discrete values: optional running normalisation, one-hot codes, a small MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

# Normalised observations are cut to this many standard deviations.
CUT = 10.0


class RunningNorm(nn.Module):
    """Normalise by mean and variance of all observations so far; :meth:`update` takes in more.

    ``forward`` never changes the statistics: the policy that is trained is the policy that acted.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(width, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, width)``."""
        mean, sd = self.mean.to(x.dtype), (self.variance + 1e-8).sqrt().to(x.dtype)
        return ((x - mean) / sd).clamp(-CUT, CUT)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in ``(N, width)`` (Chan's update)."""
        if len(x) == 0:
            return
        x = x.double()
        count = self.count + len(x)
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        shift = mean - self.mean
        squares = self.variance * self.count + variance * len(x) + shift**2 * self.count * len(x) / count
        self.mean += shift * len(x) / count
        self.variance.copy_(squares / count)
        self.count.copy_(count)


class VectorEncoder(nn.Module):
    """Concatenate vectors and one-hot codes of the parts, then linear maps with ReLU.

    Args:
        parts: spaces by name, none of them an image.
        width: of the output.
        depth: linear maps, each followed by a ReLU.
        normalise: running normalisation of the boxes.
    """

    def __init__(self, parts: Mapping[str, spaces.Space[Any]], width: int, *, depth: int, normalise: bool) -> None:
        super().__init__()
        self.names = list(parts)
        self.sizes = {name: _sizes(space) for name, space in parts.items()}
        boxes = {name: _width(space) for name, space in parts.items() if isinstance(space, spaces.Box)}
        # names of modules cannot hold dots
        self.norms = nn.ModuleDict({name.replace(".", "_"): RunningNorm(wide) for name, wide in boxes.items()})
        if not normalise:
            self.norms = nn.ModuleDict()
        wide, maps = sum(_width(space) for space in parts.values()), []
        for _ in range(depth):
            maps += [nn.Linear(wide, width), nn.ReLU()]
            wide = width
        self.maps = nn.Sequential(*maps)

    def forward(self, parts: Mapping[str, Tensor]) -> Tensor:
        """``(N, …)`` each to ``(N, width)``."""
        return self.maps(torch.cat([self._features(name, parts[name]) for name in self.names], -1))

    def take_in(self, parts: Mapping[str, Tensor]) -> None:
        """Update the running normalisation with observations ``(N, …)``."""
        for name in self.names:
            key = name.replace(".", "_")
            if key in self.norms:
                self.norms[key].update(parts[name])  # ty: ignore[not-callable]

    def _features(self, name: str, x: Tensor) -> Tensor:
        sizes, key, kind = self.sizes[name], name.replace(".", "_"), next(self.maps.parameters()).dtype
        if sizes is not None:
            return one_hot(x if x.dim() > 1 else x.unsqueeze(-1), sizes).to(kind)
        x = x.to(kind)
        return self.norms[key](x) if key in self.norms else x


def one_hot(values: Tensor, sizes: list[int]) -> Tensor:
    """``(…, K)`` numbers from 0 to the one-hot codes side by side, ``(…, sum(sizes))``."""
    columns = [functional.one_hot(values[..., place], size) for place, size in enumerate(sizes)]
    return torch.cat(columns, -1)


def _sizes(space: spaces.Space[Any]) -> list[int] | None:
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return [int(n) for n in space.nvec.flatten()] if isinstance(space, spaces.MultiDiscrete) else None


def _width(space: spaces.Space[Any]) -> int:
    sizes = _sizes(space)
    if sizes is not None:
        return sum(sizes)
    total = 1
    for side in space.shape or ():
        total *= side
    return total
