"""Points about states: chunked against whole input, rows of the batch, padding, gradients, size.

A stream runs along the first grid axis: a chunk of an image is a block of its rows. Masks are given per token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.errors import StateError
from manyheads.core.layer import Layer
from manyheads.core.mask import Mask
from manyheads.core.testing.case import Case, close, close_states, refuses


def _splits(steps: int) -> list[list[int]]:
    ragged = [2, 0, 1, steps - 3] if steps > 3 else [steps]
    return [[1] * steps, [steps], ragged, [0, steps - 1, 0, 1]]


def _stream(layer: Layer, x: Tensor, sizes: Iterable[int], mask: Mask | None = None, state: Any = None) -> tuple:
    outputs, at, row = [], 0, math.prod(x.shape[2:-1])
    for size in sizes:
        tokens = slice(at * row, (at + size) * row)
        cut = mask and Mask(
            padding=None if mask.padding is None else mask.padding[:, tokens],
            reset=None if mask.reset is None else mask.reset[:, tokens],
        )
        out = layer(x[:, at : at + size], state, mask=cut)
        outputs.append(out.y)
        state, at = out.state, at + size
    return torch.cat(outputs, 1), state


def chunks_equal_the_whole(case: Case) -> None:
    layer, x = case.layer(), case.x()
    for name, mask in {"no mask": None, **case.masks()}.items():
        whole = layer(x, mask=mask)
        for sizes in _splits(case.steps):
            y, state = _stream(layer, x, sizes, mask)
            close(y, whole.y, f"chunks {sizes} ({name})")
            close_states(state, whole.state, f"chunks {sizes} ({name})")


def steps_equal_the_whole(case: Case) -> None:
    layer, x = case.layer(), case.x()
    whole, state = layer(x), layer.init_state(case.batch, dtype=x.dtype)
    for t in range(case.steps):
        y, state = layer.step(x[:, t], state)
        close(y, whole.y[:, t], f"step {t}")
    close_states(state, whole.state, "after the last step")


def nothing_is_changed_in_place(case: Case) -> None:
    layer, x = case.layer(), case.x()
    state = layer(case.x(offset=12)).state
    before_x, before = x.clone(), trees.tree_map(torch.clone, state)
    buffers = {name: value.clone() for name, value in layer.state_dict().items()}
    first, second = layer(x, state), layer(x, state)
    assert torch.equal(x, before_x), "x was changed"
    close_states(state, before, "the state that was given was changed", 0.0)
    assert torch.equal(first.y, second.y), "the second run differs: something is remembered outside the state"
    for name, value in layer.state_dict().items():
        assert torch.equal(value, buffers[name]), f"{name} was changed"


def rows_of_a_state_are_independent(case: Case) -> None:
    """Selecting rows of a state commutes with streaming, also for rows at different times."""
    layer, x = case.layer(), case.x()
    states = [_stream(layer, x[i : i + 1], [i + 1])[1] for i in range(case.batch)]
    joined = trees.concat(states)
    out = layer(x, joined)
    for i, state in enumerate(states):
        alone = layer(x[i : i + 1], state)
        close(out.y[i : i + 1], alone.y, f"row {i} at its own time")
    order = torch.arange(case.batch).flip(0)
    permuted = layer(x[order], trees.select(joined, order))
    close(permuted.y, out.y[order], "selected rows", 1e-12)
    close_states(permuted.state, trees.select(out.state, order), "selected rows", 1e-12)


def right_padding_leaves_the_state(case: Case) -> None:
    layer, x = case.layer(), case.x()
    for keep in range(case.steps + 1):
        padding = torch.arange(case.tokens).expand(case.batch, -1) < keep * case.row
        padded = layer(x, mask=Mask(padding=padding)).state
        close_states(padded, layer(x[:, :keep]).state, f"{keep} real steps")


def gradient_flows_through_the_state(case: Case) -> None:
    layer, x = case.layer(), case.x().requires_grad_()
    weights = torch.randn(x.shape, generator=case.generator(8), dtype=torch.float64)
    tensors = [x, *layer.parameters()]
    whole = torch.autograd.grad((layer(x).y * weights).sum(), tensors)
    cut = case.steps // 2
    y, _ = _stream(layer, x, [cut, 0, case.steps - cut])
    for a, b in zip(torch.autograd.grad((y * weights).sum(), tensors), whole, strict=True):
        close(a, b, "gradient of chunks with the state attached")
    head = layer(x[:, :cut])
    tail = layer(x[:, cut:], trees.detach(head.state))
    (grad,) = torch.autograd.grad((tail.y * weights[:, cut:]).sum(), x)
    assert (grad[:, :cut] == 0).all(), "a detached state lets a gradient through"


def state_does_not_grow(case: Case) -> None:
    layer = case.layer()
    sizes = set()
    state = layer.init_state(case.batch, dtype=torch.float64)
    for index in range(6):
        state = layer(case.x(grid=(1, *case.grid[1:]), offset=20 + index), state).state
        sizes.add(trees.nbytes(state))
    assert len(sizes) == 1, f"the state has {sorted(sizes)} bytes over time"


def full_growing_state_raises_an_error(case: Case) -> None:
    layer = case.layer()
    room = case.config["max_len"]
    full = layer(case.x(grid=(room // case.row, *case.grid[1:]))).state
    more = case.x(grid=(1, *case.grid[1:]))
    refuses(StateError, lambda: layer(more, full), str(room), "one step more than there is room for")


def layer_without_state_refuses_streaming(case: Case) -> None:
    """The error names the arguments that give the layer a state, and the layer has a state with these arguments."""
    layer, x = case.layer(), case.x()
    ways = layer.info.streams_with
    names = [f"{key}={value!r}" for way in ways for key, value in way.items() if layer.config.get(key) != value]
    for part in names or ["no streaming form"]:
        refuses(StateError, lambda: layer(x, (), context=case.context()), part, "a state")
        refuses(StateError, lambda: layer.step(x[:, 0], ()), part, "a step")
        refuses(StateError, lambda: layer.step(x[:, 0], None), part, "a first step")
    for way in ways:
        config: dict[str, Any] = {**layer.config, **way}
        if case.context() is not None:
            config["context_dim"] = None
        made = type(layer)(**config)
        assert made.state_kind != "none", f"{dict(way)} gives no state"
