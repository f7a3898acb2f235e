"""Action spaces: their distribution, their codes as an input, and the form in which the environment takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.rl.encoders.vectors import one_hot
from manyheads.rl.policies.distributions import Categorical, Distribution, Gaussian

# Small first outputs make the first policy close to uniform, or to its mean.
GAIN = 0.01


class ActionHead(nn.Module):
    """The linear map from features to a distribution over Discrete, MultiDiscrete or Box actions.

    Raises :class:`ArgumentError` for another space.
    """

    def __init__(self, space: spaces.Space[Any], width: int) -> None:
        super().__init__()
        self.space = space
        if isinstance(space, spaces.Discrete):
            self.sizes, outputs = [int(space.n)], int(space.n)
        elif isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
            self.sizes = [int(n) for n in space.nvec]
            outputs = sum(self.sizes)
        elif isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            self.sizes, outputs = None, int(np.prod(space.shape))
        else:
            raise ArgumentError(
                f"action space: found {space}, expected Discrete, MultiDiscrete with one axis, or a Box of floating "
                "point numbers: convert it in a wrapper (gymnasium.wrappers.TransformAction)"
            )
        self.map = nn.Linear(width, outputs)
        nn.init.orthogonal_(self.map.weight, GAIN)
        nn.init.zeros_(self.map.bias)
        self.log_sd = nn.Parameter(torch.zeros(outputs)) if self.sizes is None else None

    @property
    def code_width(self) -> int:
        """Width of :meth:`codes`."""
        return self.map.out_features

    @property
    def parameter_width(self) -> int:
        """Numbers that describe a distribution."""
        return self.map.out_features * (2 if self.sizes is None else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an action as a tensor, without the batch axes."""
        if self.sizes is None:
            return (self.map.out_features,)
        return () if self._flat else (len(self.sizes),)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of an action as a tensor."""
        return torch.float32 if self.sizes is None else torch.int64

    @property
    def _flat(self) -> bool:
        return isinstance(self.space, spaces.Discrete)

    def forward(self, features: Tensor) -> Distribution:
        """``(…, D)`` to a distribution for each element."""
        outputs = self.map(features)
        if self.sizes is not None:
            return Categorical(outputs, self.sizes, self._flat)
        return Gaussian(torch.cat([outputs, self.log_sd.expand_as(outputs)], -1))  # ty: ignore

    def distribution(self, parameters: Tensor) -> Distribution:
        """The distribution with stored parameters."""
        return Gaussian(parameters) if self.sizes is None else Categorical(parameters, self.sizes, self._flat)

    def codes(self, action: Tensor) -> Tensor:
        """``(…, code_width)``: one-hot codes of discrete actions, clipped continuous ones."""
        kind = self.map.weight.dtype
        if self.sizes is None:
            low, high = self._bounds(action)
            return action.clamp(low, high).to(kind)
        return one_hot(action.unsqueeze(-1) if self._flat else action, self.sizes).to(kind)

    def to_environment(self, action: Tensor) -> np.ndarray:
        """Actions as the environment takes them: from the first number of the space, clipped to the bounds of a Box."""
        space = self.space
        if isinstance(space, spaces.Box):
            low, high = self._bounds(action)
            return action.clamp(low, high).view(-1, *space.shape).numpy().astype(space.dtype)
        assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
        return (action.numpy() + np.asarray(space.start)).astype(space.dtype)

    def from_environment(self, action: np.ndarray) -> Tensor:
        """Inverse of :meth:`to_environment`, without the clipping."""
        if self.sizes is None:
            return torch.as_tensor(np.asarray(action)).float().flatten(1)
        return torch.as_tensor(np.asarray(action) - np.asarray(self.space.start)).long()  # ty: ignore

    def _bounds(self, action: Tensor) -> tuple[Tensor, Tensor]:
        box = self.space
        assert isinstance(box, spaces.Box)
        return torch.as_tensor(box.low).flatten().to(action), torch.as_tensor(box.high).flatten().to(action)
