"""Operations on states: nested tuples (named or not) of tensors with the batch on the first axis.

States are immutable. A layer without a state returns the empty tuple; it takes no state and refuses a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Shaped

State = Any  # a Tensor or a (named) tuple of States

_OVERWRITTEN = ContextVar("overwritten", default=False)


@contextmanager
def overwritten() -> Generator[None]:
    """Let layers write into the states that they are given: a cache then grows without being copied.

    For a caller that never uses a state again after it has passed it on, as generation does. Outside of it, or while
    gradients are recorded, states are immutable.
    """
    token = _OVERWRITTEN.set(True)
    try:
        yield
    finally:
        _OVERWRITTEN.reset(token)


def may_overwrite() -> bool:
    """Whether a layer may write into its state: within :func:`overwritten` and without gradients."""
    return not torch.compiler.is_compiling() and _OVERWRITTEN.get() and not torch.is_grad_enabled()


def tree_map(function: Callable[..., Any], state: State, *others: State) -> State:
    """Apply ``function`` to every tensor, and to the tensors of ``others`` at the same place of the same structure."""
    if isinstance(state, Tensor):
        return function(state, *others)
    children = [tree_map(function, *parts) for parts in zip(state, *others, strict=True)]
    return type(state)(*children) if hasattr(state, "_fields") else tuple(children)


def leaves(state: State) -> list[Shaped[Tensor, "..."]]:
    """All tensors in order."""
    if isinstance(state, Tensor):
        return [state]
    return [leaf for child in state for leaf in leaves(child)]


def detach(state: State) -> State:
    """Detach the state from the graph, as truncated backpropagation through time does between chunks."""
    return tree_map(lambda leaf: leaf.detach(), state)


def to(state: State, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
    """Move all tensors to a device; convert floating point tensors to ``dtype``."""
    return tree_map(lambda leaf: leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None), state)


def select(state: State, rows: Int[Tensor, "r"]) -> State:
    """Select batch rows: reorder, repeat or drop streams, for beam search and environments."""
    return tree_map(lambda leaf: leaf.index_select(0, rows), state)


def where(condition: Bool[Tensor, "b"], state: State, other: State) -> State:
    """Batch rows of ``state`` if ``condition`` holds, else of ``other``."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(condition.view(-1, *[1] * (a.dim() - 1)), a, b)

    return tree_map(choose, state, other)


def concat(states: Sequence[State]) -> State:
    """Concatenate states along the batch."""
    first, *rest = states
    return tree_map(lambda *parts: torch.cat(parts), first, *rest)


def nbytes(state: State) -> int:
    """Memory of all tensors in bytes."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state))


def zeros_like(state: State) -> State:
    """Zeros of the same structure."""
    return tree_map(torch.zeros_like, state)


def batch_size(state: State) -> int | None:
    """Batch rows of the first tensor; None for a state without tensors."""
    found = leaves(state)
    return found[0].shape[0] if found else None
