"""Points about states: chunks against the whole, rows, padding, gradients, size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.errors import StateError
from manyheads.core.layer import Layer
from manyheads.core.mask import Mask
from manyheads.core.testing.case import Case, close, close_states, refuses


def _splits(tokens: int) -> list[list[int]]:
    ragged = [2, 0, 1, tokens - 3] if tokens > 3 else [tokens]
    return [[1] * tokens, [tokens], ragged, [0, tokens - 1, 0, 1]]


def _stream(layer: Layer, x: Tensor, sizes: Iterable[int], mask: Mask | None = None, state: Any = None) -> tuple:
    outputs, at = [], 0
    for size in sizes:
        part = slice(at, at + size)
        cut = mask and Mask(
            padding=None if mask.padding is None else mask.padding[:, part],
            reset=None if mask.reset is None else mask.reset[:, part],
        )
        out = layer(x[:, part], state, mask=cut)
        outputs.append(out.y)
        state, at = out.state, at + size
    return torch.cat(outputs, 1), state


def chunks_give_the_whole(case: Case) -> None:
    layer, x = case.layer(), case.x()
    for name, mask in {"no mask": None, **case.masks()}.items():
        whole = layer(x, mask=mask)
        for sizes in _splits(case.tokens):
            y, state = _stream(layer, x, sizes, mask)
            close(y, whole.y, f"chunks {sizes} ({name})")
            close_states(state, whole.state, f"chunks {sizes} ({name})")


def step_is_forward_on_one_token(case: Case) -> None:
    layer, x = case.layer(), case.x()
    state = other = layer.init_state(case.batch, dtype=x.dtype)
    for t in range(case.tokens):
        y, state = layer.step(x[:, t], state)
        out = layer(x[:, t : t + 1], other)
        other = out.state
        close(y, out.y[:, 0], f"step {t}", 1e-12)
        close_states(state, other, f"step {t}", 1e-12)


def nothing_is_changed_in_place(case: Case) -> None:
    layer, x = case.layer(), case.x()
    _, state = _stream(layer, x, [3])
    before_x, before = x.clone(), trees.tree_map(torch.clone, state)
    buffers = {name: value.clone() for name, value in layer.state_dict().items()}
    first, second = layer(x, state), layer(x, state)
    assert torch.equal(x, before_x), "x was changed"
    close_states(state, before, "the state that was given was changed", 0.0)
    assert torch.equal(first.y, second.y), "the second run differs: something is remembered outside the state"
    for name, value in layer.state_dict().items():
        assert torch.equal(value, buffers[name]), f"{name} was changed"


def rows_of_a_state_are_independent(case: Case) -> None:
    """Selecting rows commutes with streaming, also for rows at different times."""
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
    for keep in range(case.tokens + 1):
        padding = torch.arange(case.tokens).expand(case.batch, -1) < keep
        padded = layer(x, mask=Mask(padding=padding)).state
        close_states(padded, layer(x[:, :keep]).state, f"{keep} real tokens")


def gradient_flows_through_the_state(case: Case) -> None:
    layer, x = case.layer(), case.x().requires_grad_()
    weights = torch.randn(x.shape, generator=case.generator(8), dtype=torch.float64)
    tensors = [x, *layer.parameters()]
    whole = torch.autograd.grad((layer(x).y * weights).sum(), tensors)
    y, _ = _stream(layer, x, [3, 0, case.tokens - 3])
    for a, b in zip(torch.autograd.grad((y * weights).sum(), tensors), whole, strict=True):
        close(a, b, "gradient of chunks with the state attached")
    head = layer(x[:, :3])
    tail = layer(x[:, 3:], trees.detach(head.state))
    (grad,) = torch.autograd.grad((tail.y * weights[:, 3:]).sum(), x)
    assert (grad[:, :3] == 0).all(), "a detached state lets a gradient through"


def state_does_not_grow(case: Case) -> None:
    layer = case.layer()
    sizes = set()
    state = layer.init_state(case.batch, dtype=torch.float64)
    for index in range(6):
        state = layer(case.x(grid=(2,), offset=20 + index), state).state
        sizes.add(trees.nbytes(state))
    assert len(sizes) == 1, f"the state has {sorted(sizes)} bytes over time"


def growing_state_overflows_with_an_error(case: Case) -> None:
    layer = case.layer()
    room = case.config["max_len"]
    full = layer(case.x(grid=(room,))).state
    refuses(StateError, lambda: layer(case.x(grid=(1,)), full), str(room), "one token more than there is room for")
