"""Checks of spaces, actions, observations and rewards.

Gymnasium's vector environments check nothing at a step, and some hang for ever on an action that is out of range. Each
check here names the environment and the step. It usually costs two reductions over each array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from manyheads.core.errors import ArgumentError, DataError

OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"
ACTIONS = "Discrete, MultiDiscrete, or a Box of floats with one axis and finite bounds"


@dataclass(frozen=True)
class Leaf:
    """One array of a space: its place in dicts and tuples, and the dtype, shape and bounds of a single environment."""

    path: tuple[str | int, ...]
    dtype: np.dtype
    shape: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray

    @property
    def label(self) -> str:
        """The place in words, such as ``['position'][0]``; empty for a space that is one array."""
        return "".join(f"[{key!r}]" for key in self.path)

    def of(self, value: Any) -> Any:
        """Return the array of this leaf in a nested value."""
        for key in self.path:
            value = value[key]
        return value


def leaves_of(space: Space, path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """Yield the arrays of an observation space.

    Raises:
        ArgumentError: for a space other than :data:`OBSERVATIONS`.
    """
    if isinstance(space, Dict):
        for key, inner in space.spaces.items():
            yield from leaves_of(inner, (*path, key))
    elif isinstance(space, Tuple):
        for index, inner in enumerate(space.spaces):
            yield from leaves_of(inner, (*path, index))
    elif isinstance(space, Box):
        yield Leaf(path, space.dtype, space.shape, space.low, space.high)
    elif isinstance(space, Discrete):
        low = np.asarray(space.start)
        yield Leaf(path, space.dtype, (), low, low + space.n - 1)
    elif isinstance(space, MultiDiscrete):
        yield Leaf(path, space.dtype, space.shape, space.start, space.start + space.nvec - 1)
    elif isinstance(space, MultiBinary):
        yield Leaf(path, space.dtype, space.shape, np.zeros(space.shape, np.int8), np.ones(space.shape, np.int8))
    else:
        raise ArgumentError(
            f"observation space{''.join(f'[{key!r}]' for key in path)}: found {type(space).__name__}, expected "
            f"{OBSERVATIONS}: wrap the environment in gymnasium.wrappers.TransformObservation"
        )


def check_spaces(observation_space: Space, action_space: Space) -> None:
    """Check that an agent can be built for the spaces of a single environment.

    Raises:
        ArgumentError: for a space other than :data:`OBSERVATIONS` and :data:`ACTIONS`.
    """
    leaves = list(leaves_of(observation_space))
    if not leaves:
        raise ArgumentError(f"observation space: found {observation_space}, expected at least one part: add one")
    for leaf in leaves:
        if 0 in leaf.shape:
            raise ArgumentError(
                f"observation space{leaf.label}: found the shape {leaf.shape}, expected at least one element: "
                "leave this part out of the space"
            )
    if isinstance(action_space, Discrete):
        return
    if isinstance(action_space, MultiDiscrete) and len(action_space.shape) == 1:
        return
    found = f"{action_space}"
    if isinstance(action_space, Box):
        is_vector = len(action_space.shape) == 1 and action_space.dtype.kind == "f"
        if is_vector and action_space.is_bounded():
            return
        fix = "wrap the environment in gymnasium.wrappers.TransformAction or RescaleAction"
    elif isinstance(action_space, MultiBinary):
        fix = f"use MultiDiscrete([2] * {action_space.n}) through gymnasium.wrappers.TransformAction"
    else:
        fix = "wrap the environment in gymnasium.wrappers.TransformAction"
    raise ArgumentError(f"action space: found {found}, expected {ACTIONS}: {fix}")


class ActionCheck:
    """Check the actions of ``count`` environments and return them as the array that the environments take."""

    def __init__(self, space: Space, count: int, name: str) -> None:
        self.count, self.name = count, name
        (self.leaf,) = leaves_of(space)
        self.shape = (count, *self.leaf.shape)
        self.is_continuous = self.leaf.dtype.kind == "f"
        # Bounds as plain numbers: a comparison with them is faster than one with arrays.
        self.floor, self.ceiling = self.leaf.low.max().item(), self.leaf.high.min().item()

    def __call__(self, actions: Any, step: int) -> np.ndarray:
        """Return the actions as a contiguous array of the dtype of the space.

        Raises:
            ArgumentError: for another shape or kind of number, and for an action outside its range.
        """
        array = np.asarray(actions)
        kinds, expected = ("fiu", "numbers") if self.is_continuous else ("iu", "integers")
        if array.dtype.kind not in kinds:
            raise ArgumentError(
                f"{self.name}, step {step}: actions: found {array.dtype}, expected {expected}: convert them"
            )
        if array.shape != self.shape:
            raise ArgumentError(
                f"{self.name}, step {step}: actions: found the shape {array.shape}, expected {self.shape}: "
                "give one action for each environment"
            )
        if not (array.min() >= self.floor and array.max() <= self.ceiling):
            self._search(array, step)
        return np.ascontiguousarray(array, self.leaf.dtype)

    def _search(self, array: np.ndarray, step: int) -> None:
        inside = (array >= self.leaf.low) & (array <= self.leaf.high)
        if inside.all():
            return
        index, *element = (int(i) for i in np.argwhere(~inside)[0])
        low, high = (bound[tuple(element)] for bound in (self.leaf.low, self.leaf.high))
        part = f"[{element[0]}]" if element else ""
        fix = "clip it" if self.is_continuous else "check the head of the policy"
        raise ArgumentError(
            f"{self.name}, environment {index}, step {step}: action{part}: found {array[(index, *element)]}, "
            f"expected {low} to {high}: {fix}"
        )


class ObservationCheck:
    """Check the observations of ``count`` environments: dtype and shape always, finite numbers, and bounds."""

    def __init__(self, space: Space, count: int, name: str, *, bounds: bool = True) -> None:
        self.count, self.name, self.bounds = count, name, bounds
        self.leaves = []
        for leaf in leaves_of(space):
            low, high = leaf.low.max().item(), leaf.high.min().item()
            if not bounds:
                low, high = -math.inf, math.inf
            # An array of bytes between 0 and 255 cannot leave its bounds.
            full = leaf.dtype.kind in "iu" and low <= np.iinfo(leaf.dtype).min and high >= np.iinfo(leaf.dtype).max
            self.leaves.append((leaf, (count, *leaf.shape), low, high, full or leaf.dtype.kind == "b"))

    def __call__(self, observations: Any, step: int) -> None:
        """Check one batch of observations.

        Raises:
            DataError: for another dtype or shape, NaN, infinity, and a value outside the bounds of the space.
        """
        for leaf, shape, low, high, full in self.leaves:
            array = leaf.of(observations)
            if not isinstance(array, np.ndarray) or array.dtype != leaf.dtype or array.shape != shape:
                self._refuse(leaf, array, shape, step)
            if full:
                continue
            # NaN is passed on by both reductions, so two numbers stand for all elements.
            least, largest = float(array.min()), float(array.max())
            if not (low <= least and largest <= high and -math.inf < least and largest < math.inf):
                self._search(leaf, array, step)

    def _refuse(self, leaf: Leaf, array: Any, shape: tuple[int, ...], step: int) -> None:
        found = f"{array.dtype}{array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(
            f"{self.name}, step {step}: observations{leaf.label}: found {found}, expected {leaf.dtype}{shape}: "
            "correct the environment or its observation_space"
        )

    def _search(self, leaf: Leaf, array: np.ndarray, step: int) -> None:
        inside = np.isfinite(array)
        if self.bounds:
            inside &= (array >= leaf.low) & (array <= leaf.high)
        if inside.all():
            return
        index, *element = (int(i) for i in np.argwhere(~inside)[0])
        value = array[(index, *element)]
        at = f"[{', '.join(map(str, element))}]" if element else ""
        where = f"{self.name}, environment {index}, step {step}: observation{leaf.label}{at}: found {value}"
        if not np.isfinite(value):
            raise DataError(f"{where}, expected a finite number: correct the environment")
        low, high = (bound[tuple(element)] for bound in (leaf.low, leaf.high))
        raise DataError(
            f"{where}, expected {low} to {high}: correct the observation_space of the environment, or make it with "
            "bounds=False"
        )


def check_outcome(rewards: Any, terminated: Any, truncated: Any, *, count: int, name: str, step: int) -> None:
    """Check rewards and ends of one step: one finite number and two booleans for each environment.

    Raises:
        DataError: naming the environment.
    """
    for label, array, kinds in (
        ("rewards", rewards, "fiu"),
        ("terminated", terminated, "b"),
        ("truncated", truncated, "b"),
    ):
        if not isinstance(array, np.ndarray) or array.shape != (count,) or array.dtype.kind not in kinds:
            found = f"{array.dtype}{array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            expected = "numbers" if label == "rewards" else "booleans"
            raise DataError(
                f"{name}, step {step}: {label}: found {found}, expected {count} {expected}: correct the environment"
            )
    if not np.isfinite(rewards).all():
        index = int(np.argmin(np.isfinite(rewards)))
        raise DataError(
            f"{name}, environment {index}, step {step}: reward: found {rewards[index]}, expected a finite number: "
            "correct the environment"
        )
