"""Helpers for states: nested tuples (named or not) of tensors with the batch on the first axis, never changed in place.

The empty tuple is the state that a layer returns if it keeps none; such a layer takes no state and refuses a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

State = Any  # a Tensor or a (named) tuple of States


def tree_map(function: Callable[..., Any], state: State, *others: State) -> State:
    """``function`` on every tensor; ``others`` have the same structure."""
    if isinstance(state, Tensor):
        return function(state, *others)
    children = [tree_map(function, *parts) for parts in zip(state, *others, strict=True)]
    return type(state)(*children) if hasattr(state, "_fields") else tuple(children)


def leaves(state: State) -> list[Tensor]:
    """All tensors in order."""
    if isinstance(state, Tensor):
        return [state]
    return [leaf for child in state for leaf in leaves(child)]


def detach(state: State) -> State:
    """Cuts the gradient, as truncated backpropagation through time does between chunks."""
    return tree_map(lambda leaf: leaf.detach(), state)


def to(state: State, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
    """Moves all leaves; ``dtype`` is applied to floating point leaves only."""
    return tree_map(lambda leaf: leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None), state)


def select(state: State, rows: Tensor) -> State:
    """The batch rows ``rows`` (int64): reorder, repeat or drop streams, as beam search and environments need."""
    return tree_map(lambda leaf: leaf.index_select(0, rows), state)


def where(condition: Tensor, state: State, other: State) -> State:
    """Row by row ``state`` where ``condition`` ``(B,)`` holds, else ``other``."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition.view(-1, *[1] * (a.dim() - 1)), a, b)

    return tree_map(choose, state, other)


def concat(states: Sequence[State]) -> State:
    """Joins along the batch."""
    first, *rest = states
    return tree_map(lambda *parts: torch.cat(parts), first, *rest)


def nbytes(state: State) -> int:
    """Memory of all leaves in bytes."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state))


def zeros_like(state: State) -> State:
    return tree_map(torch.zeros_like, state)


def batch_size(state: State) -> int | None:
    """Rows of the first leaf; None for a state without leaves."""
    found = leaves(state)
    return found[0].shape[0] if found else None
