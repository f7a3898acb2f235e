"""Every layer under what torch offers around a module: activation checkpointing, autocast, pickling."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - what torch's own worker processes do with a module
from collections.abc import Iterator

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from manyheads.core import state as trees
from manyheads.core.registry import LAYERS
from manyheads.core.testing import Case


def cases() -> Iterator:
    for name, entry in LAYERS.items():
        for label, config in entry.examples.items():
            yield pytest.param(Case(entry.layer, config, **entry.case), id=f"{name}-{label}")
    yield pytest.param(Case(LAYERS["prob-sparse"].layer, {"heads": 2, "resample": True}), id="prob-sparse-resample")


every_layer = pytest.mark.parametrize("case", list(cases()))
every_stream = pytest.mark.parametrize("case", [c for c in cases() if c.values[0].layer().state_kind != "none"])


@pytest.mark.parametrize("reentrant", [False, True])
@every_layer
def test_gradients_under_activation_checkpointing_are_those_without(case, reentrant):
    layer, x, context = case.layer().train(), case.x().requires_grad_(), case.context()
    wanted = [x, *layer.parameters()]

    def gradients(run):
        torch.manual_seed(3)
        loss = run(x).square().sum()
        return (
            torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            if not reentrant
            else back(loss)
        )

    def back(loss):  # the reentrant form supports backward only
        for tensor in wanted:
            tensor.grad = None
        loss.backward()
        return [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in wanted]

    def forward(x):
        return layer(x, context=context).y

    expected = gradients(forward)
    found = gradients(lambda x: checkpoint(forward, x, use_reentrant=reentrant))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@every_layer
def test_training_is_reproducible_by_torchs_seed(case):
    layer, x, context = case.layer().train(), case.x(), case.context()
    outputs = []
    for _ in range(2):
        torch.manual_seed(1)
        outputs.append(layer(x, context=context).y)
    assert torch.equal(*outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_stream
def test_state_keeps_its_dtype_under_autocast(case, dtype):
    layer = case.layer(torch.float32)
    x, state = case.x().float(), layer.init_state(case.batch)
    expected = [leaf.dtype for leaf in trees.leaves(state)]
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        for part in (x[:, :2], x[:, 2:3], x[:, 3:]):
            state = layer(part, state).state
            assert [leaf.dtype for leaf in trees.leaves(state)] == expected
        _, state = layer.step(x[:, 0], state)
    assert [leaf.dtype for leaf in trees.leaves(state)] == expected


@every_layer
def test_layer_survives_pickling_and_deep_copies(case):
    layer, x, context = case.layer(), case.x(), case.context()
    expected = layer(x, context=context).y
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x, context=context).y, expected)
