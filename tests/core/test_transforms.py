"""Every layer under what torch offers around a module: activation checkpointing, autocast, half precision, pickling,
second derivatives, per-sample gradients, export. What ``info`` says of a layer is held against what it does."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - what torch's own worker processes do with a module
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from manyheads.core import state as trees
from manyheads.core.errors import DerivativeError
from manyheads.core.functional import attention
from manyheads.core.registry import LAYERS
from manyheads.core.testing import Case

from .layers import CASES, EXAMPLES


def cases() -> Iterator:
    for name, layer in LAYERS.items():
        for label, config in EXAMPLES[name].items():
            yield pytest.param(Case(layer, config, **CASES[name]), id=f"{name}-{label}")
    yield pytest.param(Case(LAYERS["prob-sparse"], {"heads": 2, "resample": True}), id="prob-sparse-resample")


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


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("scale", [30, 1000])
@every_layer
def test_float16_is_finite_where_the_result_fits(case, scale, train):
    """Weights as initialised, tokens of ``scale``, against float64 with the same weights, tokens and draws."""
    torch.manual_seed(0)
    narrow = case.layer_class(case.dim, **case.config).half().train(train)
    wide = copy.deepcopy(narrow).double()
    x, context = (scale * case.x()).half(), case.context()
    torch.manual_seed(1)
    expected = wide(x.double(), context=None if context is None else context.half().double()).y
    torch.manual_seed(1)
    found = narrow(x, context=None if context is None else context.half()).y
    if expected.abs().max() > 6e4:
        return
    assert found.isfinite().all()
    if not case.layer_class.info.discontinuous:
        error = ((found.double() - expected).square().mean() / expected.square().mean()).sqrt()
        assert error < 5e-2


@pytest.mark.parametrize("scale", [1, 30, 1000])
@every_layer
def test_float16_autocast_is_finite_where_the_result_fits(case, scale):
    torch.manual_seed(0)
    layer = case.layer_class(case.dim, **case.config).train()
    x, context = scale * case.x(), case.context()
    torch.manual_seed(1)
    if copy.deepcopy(layer).double()(x, context=context).y.abs().max() > 6e4:
        return
    x, context = x.float().requires_grad_(), None if context is None else context.float()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.float16):
        y = layer(x, context=context).y
    assert y.isfinite().all()
    (gradient,) = torch.autograd.grad(y.float().sum(), x, allow_unused=True, materialize_grads=True)
    assert gradient.isfinite().all()


# Second derivatives: a product with the Hessian over the input and all parameters, against differences of gradients.


def gradients(case, moved=0.0, *, mask=None, create_graph=False):
    """Of a scalar of the output, by the input and all parameters, which are moved along a fixed direction."""
    layer, x = case.layer(), case.x()
    wanted = [x.requires_grad_(), *layer.parameters()]
    directions = [torch.randn(part.shape, generator=case.generator(11), dtype=part.dtype) for part in wanted]
    with torch.no_grad():
        for part, direction in zip(wanted, directions, strict=True):
            part.add_(direction, alpha=moved)
    loss = layer(x, context=case.context(), mask=mask).y.square().sum()
    found = torch.autograd.grad(loss, wanted, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return wanted, directions, found


def hessian_product(case, mask=None):
    wanted, directions, first = gradients(case, mask=mask, create_graph=True)
    inner = sum((g * d).sum() for g, d in zip(first, directions, strict=True))
    return torch.autograd.grad(inner, wanted, allow_unused=True, materialize_grads=True)


def assert_hessian_product(case, mask=None):
    step = 1e-5
    above, below = (gradients(case, moved, mask=mask)[2] for moved in (step, -step))
    expected = [(a - b) / (2 * step) for a, b in zip(above, below, strict=True)]
    scale = max(part.abs().max() for part in expected)
    for a, b in zip(hessian_product(case, mask), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * scale.item())


@every_layer
def test_second_derivatives_are_right_or_refused(case):
    if case.layer_class.info.second_derivatives:
        assert_hessian_product(case)
        return
    with pytest.raises(DerivativeError, match="found a second derivative, expected a first one"):
        hessian_product(case)


@pytest.mark.parametrize("name", ["transformer-xl", "gtrxl", "lama", "combiner-axial", "softmax"])
def test_second_derivatives_of_own_backward_passes_are_right_under_masks(name):
    for config in EXAMPLES[name].values():
        case = Case(LAYERS[name], config, **CASES[name])
        for mask in case.masks().values():
            assert_hessian_product(case, mask)


@pytest.mark.parametrize("value_width", [2, 3, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_every_derivative_of_attention_is_that_of_its_equation(causal, value_width):
    """By torch's finite differences; by q alone too, as then the other inputs ask for no gradient."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, width, generator=generator, dtype=torch.float64) for width in (3, 3, value_width))

    def run(q, k, v):
        return attention(q, k, v, causal=causal)

    parts = [part.requires_grad_() for part in (q, k, v)]
    assert torch.autograd.gradcheck(run, parts)
    assert torch.autograd.gradgradcheck(run, parts)
    assert torch.autograd.gradgradcheck(lambda q: run(q, k.detach(), v.detach()), [q])


def test_first_derivatives_of_attention_run_on_the_fused_kernel():
    q = torch.randn(1, 1, 3, 4, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        attention(q, q, q).sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in names


def test_refused_derivative_is_refused_where_only_the_saved_tensors_depend_on_the_input():
    """A linear loss: the incoming gradient is a constant, so that torch's own decorator would give 0."""
    layer = Case(LAYERS["lif"]).layer()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).y.sum(), x, create_graph=True)
    with pytest.raises(DerivativeError, match="lif: found a second derivative"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("name", ["softmax", "transformer-xl", "lama", "ponet"])
def test_nested_functional_transforms_give_second_derivatives(name):
    case = Case(LAYERS[name], next(iter(EXAMPLES[name].values())), **CASES[name])
    layer, x = case.layer(), case.x()
    v = torch.randn(x.shape, generator=case.generator(11), dtype=x.dtype)

    def loss(x):
        return layer(x).y.square().sum()

    step = 1e-5
    expected = (grad(loss)(x + step * v) - grad(loss)(x - step * v)) / (2 * step)
    reverse = grad(lambda x: (grad(loss)(x) * v).sum())(x)
    forward = jvp(grad(loss), (x,), (v,))[1]
    for found in (reverse, forward):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


@every_layer
def test_per_sample_gradients_are_those_of_each_row(case):
    layer, x, context = case.layer(), case.x(), case.context()
    parameters = {name: part.detach() for name, part in layer.named_parameters()}
    rows = (x,) if context is None else (x, context)

    def loss(x, parameters, *context):
        given = {"context": context[0].unsqueeze(0)} if context else {}
        return functional_call(layer, parameters, (x.unsqueeze(0),), given).y.square().sum()

    every = vmap(grad(loss, argnums=(0, 1)), in_dims=(0, None, *(0 for _ in rows[1:])))
    if not layer.info.vmaps:
        with pytest.raises(DerivativeError, match=r"torch\.func"):
            every(x, parameters, *rows[1:])
        return
    by_x, by_parameter = every(x, parameters, *rows[1:])
    for row in range(case.batch):
        wanted = [x[row : row + 1].clone().requires_grad_(), *layer.parameters()]
        y = layer(wanted[0], context=None if context is None else context[row : row + 1]).y
        expected = torch.autograd.grad(y.square().sum(), wanted, allow_unused=True, materialize_grads=True)
        for a, b in zip([by_x[row : row + 1], *(part[row] for part in by_parameter.values())], expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class _OutputOnly(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, context=None):
        return self.layer(x, context=context).y


def exported_agrees(case):
    """With another batch size than the one it was exported with, one row among them."""
    layer, x, context = case.layer(torch.float32), case.x().float(), case.context()
    given = (x,) if context is None else (x, context.float())
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(_OutputOnly(layer), given, dynamic_shapes=({0: batch},) * len(given)).module()
    for size in (1, 5):
        x, context = case.x(batch=size).float(), case.context(batch=size)
        context = None if context is None else context.float()
        found = program(x) if context is None else program(x, context)
        torch.testing.assert_close(found, layer(x, context=context).y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["transformer-xl", "prob-sparse", "extractor-she", "lif"])
def test_layer_exports_with_a_batch_of_any_size(name):
    assert LAYERS[name].info.exports
    exported_agrees(Case(LAYERS[name], next(iter(EXAMPLES[name].values())), **CASES[name]))


@pytest.mark.slow
@every_layer
def test_layer_exports_if_it_says_so(case):
    with nullcontext() if case.layer_class.info.exports else pytest.raises(Exception, match=r"\w"):
        exported_agrees(case)
