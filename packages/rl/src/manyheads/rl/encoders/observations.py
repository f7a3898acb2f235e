"""Observations as tensors: the leaves of a Gymnasium space by name, images as ``(…, H, W, C)`` bytes.

    tensors = to_tensors(space, batch)          {name: (B, …)}

A space of one part has the name ``"observation"``; the parts of Dict and Tuple spaces have their key or place, nested
ones joined by dots. Images keep their bytes, ``(H, W)`` and ``(C, H, W)`` are brought to ``(H, W, C)``; other boxes
become float32 vectors; discrete values become int64 counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from manyheads.core.errors import ArgumentError, DataError

ONE = "observation"


def leaves(space: spaces.Space[Any], name: str = "") -> dict[str, spaces.Space[Any]]:
    """Return the parts of a space by name. Raises :class:`ArgumentError` for a part that no encoder reads."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        found = {}
        for key, part in named:
            found |= leaves(part, f"{name}.{key}" if name else str(key))
        if not found:
            raise ArgumentError(f"observation space: found an empty {type(space).__name__}, expected parts")
        return found
    known = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    if not isinstance(space, known):
        raise ArgumentError(
            f"observation space: found {type(space).__name__}, expected Box, Discrete, MultiDiscrete, MultiBinary, "
            "Dict or Tuple: convert it in a wrapper (gymnasium.wrappers.TransformObservation)"
        )
    return {name or ONE: space}


def is_image(space: spaces.Space[Any]) -> bool:
    """Return whether a part is an image: bytes with two or three axes."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def image_shape(space: spaces.Space[Any]) -> tuple[int, int, int]:
    """Return height, width and channels of an image; the shorter of first and last axis holds the channels."""
    shape = tuple(space.shape or ())
    if len(shape) == 2:
        return shape[0], shape[1], 1
    first, middle, last = shape
    return (middle, last, first) if first < last else (first, middle, last)


def to_tensors(space: spaces.Space[Any], batch: Any) -> dict[str, Tensor]:
    """Convert a batch of observations, arrays or tensors with a leading batch axis, to tensors by name.

    Raises :class:`DataError` for a batch of another structure or shape than the space.
    """
    found: dict[str, Tensor] = {}
    _collect(space, batch, "", found)
    return found


def _collect(space: spaces.Space[Any], batch: Any, name: str, found: dict[str, Tensor]) -> None:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in named:
            try:
                inner = batch[key]
            except (KeyError, IndexError, TypeError) as error:
                raise DataError(f"observation: found no part {key!r}, expected it as in the space {space}") from error
            _collect(part, inner, f"{name}.{key}" if name else str(key), found)
        return
    name = name or ONE
    values = torch.as_tensor(batch)
    shape = tuple(space.shape or ())
    if tuple(values.shape[1:]) != shape:
        raise DataError(f"{name}: found shape {tuple(values.shape)}, expected (B, {', '.join(map(str, shape))})")
    found[name] = _leaf(space, values)


def _leaf(space: spaces.Space[Any], values: Tensor) -> Tensor:
    if is_image(space):
        if values.dim() == 3:
            return values.unsqueeze(-1)
        return values if image_shape(space) == tuple(values.shape[1:]) else values.permute(0, 2, 3, 1).contiguous()
    if isinstance(space, spaces.Discrete):
        return values.long() - int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return (values.long() - torch.as_tensor(np.asarray(space.start)).long()).flatten(1)
    return values.float().reshape(len(values), -1)


def single(space: spaces.Space[Any], observation: Any) -> Any:
    """Add a batch axis of one to an observation of the space."""
    if isinstance(space, spaces.Dict):
        return {key: single(part, observation[key]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(single(part, one) for part, one in zip(space.spaces, observation, strict=True))
    return torch.as_tensor(observation).unsqueeze(0)


def is_single(space: spaces.Space[Any], observation: Any) -> bool:
    """Return whether an observation has no batch axis."""
    if isinstance(space, spaces.Dict):
        key = next(iter(space.spaces))
        return is_single(space.spaces[key], observation[key] if isinstance(observation, Mapping) else observation)
    if isinstance(space, spaces.Tuple):
        return is_single(space.spaces[0], observation[0])
    return np.ndim(observation) == len(space.shape or ())
