"""Mesa: codes, ranges and groups, what is kept as it is, and the gradients of whole networks."""

from __future__ import annotations

import copy
import gc
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from manyheads.core import create
from manyheads.core.backbones.stack import build_stack
from manyheads.core.errors import ArgumentError
from manyheads.core.methods import mesa as method
from manyheads.core.methods.mesa import (
    Mesa,
    MesaGELU,
    MesaLayerNorm,
    MesaLinear,
    MesaMatMul,
    MesaSoftmax,
    heads_of,
    use_mesa_modules,
)


class Keep(torch.autograd.Function):
    """Identity whose gradient is what it has saved of the other argument."""

    @staticmethod
    def forward(ctx, x, saved):
        ctx.save_for_backward(saved)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.saved_tensors[0], None


def restored(saved, mesa):
    """What the backward pass gets of a saved tensor."""
    x = torch.zeros(saved.shape, dtype=saved.dtype, requires_grad=True)
    with mesa:
        y = Keep.apply(x, saved)
    return torch.autograd.grad(y, x, torch.ones_like(x))[0]


def plain(**options):
    return Mesa(nn.Identity(), **({"least": 1} | options))


def gradients(model, x, weights, mesa=None):
    model.zero_grad()
    if mesa is None:
        y = model(x).y
    else:
        with mesa:
            y = model(x).y
    loss = (y * weights).sum()
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def network():
    """The Transformer of the specification: four blocks of width 96, three heads, 32 rows of 65 tokens."""
    torch.manual_seed(0)
    return build_stack("softmax", 96, depth=4, options={"heads": 3}), torch.randn(32, 65, 96), torch.randn(32, 65, 96)


def relative(found, exact):
    return float((found - exact).norm() / exact.norm())


def test_a_transformer_saves_a_quarter_and_its_loss_is_the_same_bit_for_bit(network):
    model, x, weights = network
    mesa = Mesa(model)
    loss, exact = gradients(model, x, weights)
    same, found = gradients(model, x, weights, mesa)
    assert torch.equal(loss, same)
    before, after = mesa.saved_bytes
    assert before / after >= 3.3
    assert torch.cosine_similarity(exact, found, dim=0) > 0.999


def test_the_mean_of_twelve_gradients_has_less_than_half_the_error_of_one(network):
    model, x, weights = network
    model, x, weights = copy.deepcopy(model), x[:8], weights[:8]
    mesa = Mesa(model)
    _, exact = gradients(model, x, weights)
    found = [gradients(model, x, weights, mesa)[1] for _ in range(12)]
    single = [relative(one, exact) for one in found]
    assert relative(sum(found) / 12, exact) < 0.5 * min(single)


def test_the_bytes_before_are_those_of_the_distinct_storages_that_autograd_saves(network):
    model, x, _ = network
    storages = {}

    def count(tensor):
        if not any(tensor.untyped_storage().data_ptr() == p.untyped_storage().data_ptr() for p in model.parameters()):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = model(x).y
    mesa = Mesa(model)
    with mesa:
        kept = kept + model(x).y
    assert mesa.saved_bytes.before == sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_an_error_is_below_one_step_of_the_group(dtype):
    x = torch.randn(50, 24).to(dtype)
    found = restored(x, plain(groups=3)).double()
    groups = x.double().view(50, 3, 8)
    steps = (groups.amax((0, 2)) - groups.amin((0, 2))) / 254.9
    rounding = x.double().abs().max() * torch.finfo(dtype).eps
    assert ((found - x.double()).view(50, 3, 8).abs().amax((0, 2)) <= steps + rounding).all()
    assert found.dtype == torch.float64
    assert restored(x, plain()).dtype == dtype


def test_rounding_is_unbiased():
    x = torch.cat([torch.rand(400), torch.tensor([0.001, 1.0])]).repeat_interleave(2).view(2, -1)
    mesa = plain(groups=1)
    many = torch.stack([restored(x, mesa) for _ in range(600)])
    step = 1 / 255
    # of a value between two codes, at most step / 2 from the mean
    assert ((many.mean(0) - x).abs() < 5 * 0.5 * step / math.sqrt(600)).all()
    assert many.std(0).max() > 0.3 * step


def test_deterministic_rounding_is_found_out(monkeypatch):
    """Negative control of the test above."""
    x = torch.rand(2, 400)
    monkeypatch.setattr(method._Dither, "draw", lambda self, like: torch.tensor(0.5))
    many = torch.stack([restored(x, plain(groups=1)) for _ in range(3)])
    assert (many.mean(0) - x).abs().max() > 0.4 / 255


def test_equal_rows_are_rounded_apart():
    row = torch.rand(32)
    found = restored(row.repeat(3072, 1), plain(groups=1))
    # the mean of many rows is near, as no two neighbours share their rounding
    assert (found.mean(0) - row).abs().max() < 5 * 0.5 / 255 / math.sqrt(3072)


@pytest.mark.parametrize(
    "value", [torch.tensor(2.5), torch.tensor(2.5).expand(40, 50), torch.ones(1, 1).expand(40, 50)]
)
def test_one_number_is_kept_as_it_is(value):
    assert torch.equal(restored(value, plain()), value)


@pytest.mark.parametrize("value", [0.0, 3.25, -1e6, 1e-30])
def test_equal_values_come_back_exactly(value):
    x = torch.full((40, 8), value)
    assert torch.equal(restored(x, plain()), x)


def test_far_from_zero_no_code_wraps_around():
    x = 1e4 + torch.rand(300, 8)
    assert (restored(x, plain(groups=1)) - x).abs().max() < 2 / 255 + 0.01


def test_groups_of_heads_serve_heads_of_unequal_scale():
    model = create("softmax", dim=32, heads=4)
    scale = torch.tensor([1e-3, 1.0, 1e3, 1e-1])[:, None, None]
    for x in (
        torch.randn(5, 4, 20, 8) * scale,
        (torch.randn(5, 4, 20, 8) * scale).transpose(1, 2).contiguous().transpose(1, 2),
        # long enough for a range of its own in each row of memory
        torch.randn(2, 4, 700, 8) * scale,
    ):
        by_head = (restored(x, Mesa(model)) - x).abs().amax((0, 2, 3))
        together = (restored(x, plain(groups=1)) - x).abs().amax((0, 2, 3))
        assert (by_head <= 8 * scale.flatten() / 200).all()
        assert (by_head[[0, 1, 3]] < together[[0, 1, 3]] / 10).all()


def test_groups_of_channels_serve_channels_of_unequal_scale():
    scale = torch.tensor([1e-3, 1e3]).repeat_interleave(6)
    for x in (torch.randn(4, 30, 12) * scale, torch.randn(2, 5, 5, 12) * scale, torch.randn(1, 9000, 12) * scale):
        error = (restored(x, plain(groups=2)) - x).abs().flatten(0, -2).amax(0)
        assert (error <= scale * 10 / 200).all()
    # the largest divisor up to the wish
    assert (restored(x, plain(groups=5)) - x).abs().flatten(0, -2).amax(0)[0] < 1e-3


def test_heads_are_those_of_the_layers():
    model = nn.ModuleList([create("softmax", dim=32, heads=4), nn.MultiheadAttention(6, 3), nn.Linear(2, 2)])
    assert heads_of(model) == [3, 4]
    assert Mesa(model).groups == 4
    assert Mesa(nn.Linear(2, 2)).groups == 8


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.transpose(1, 2),
        lambda x: x[:, :, 2:5],
        lambda x: x[:, 3],
        lambda x: x[:1].expand(6, -1, -1),
        lambda x: x[..., :1].expand(-1, -1, 7),
        lambda x: x.flatten(0, 1).t(),
        lambda x: x.permute(2, 0, 1)[:, :, ::2],
        lambda x: x[:, None],
    ],
)
def test_views_come_back_in_their_shape(view):
    x = view(torch.randn(6, 9, 8))
    found = restored(x, plain(groups=2))
    assert found.shape == x.shape
    torch.testing.assert_close(found, x, rtol=0, atol=0.05)


def test_what_two_operations_save_is_kept_once():
    x = torch.randn(16, 64, 24)
    one = torch.randn(24, 24, requires_grad=True)
    mesa = plain()
    sizes = []
    for times in (1, 3):
        with mesa:
            kept = [functional.linear(x, one) for _ in range(times)]
        sizes.append(mesa.saved_bytes)
        del kept
    # the weight is no parameter of the model here
    assert sizes[0] == sizes[1]
    assert sizes[0].after < x.nbytes / 3.5 + 2 * one.nbytes


def test_memory_that_is_used_again_is_not_taken_for_the_old():
    mesa = plain()
    found, expected = [], []
    x = torch.ones(1, requires_grad=True)
    with mesa:
        for seed in range(8):
            value = torch.randn(500, generator=torch.Generator().manual_seed(seed))
            expected.append(value.clone())
            found.append(x * value)
            del value
            gc.collect()
    for y, value in zip(found, expected, strict=True):
        (grad,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(grad, value.sum()[None], rtol=0, atol=500 * 0.05)


def test_a_tensor_changed_in_place_between_two_saves_is_kept_twice():
    base = torch.rand(64, 16, requires_grad=True)
    with plain():
        y = (base * 1).exp_().exp_()
    (found,) = torch.autograd.grad(y.sum(), base)
    with torch.no_grad():
        exact = base.exp() * base.exp().exp()
    torch.testing.assert_close(found, exact, rtol=0.15, atol=0.2)


def test_codes_are_freed_with_the_graph():
    model = nn.Linear(32, 32)
    mesa = Mesa(model, least=1)
    with mesa:
        for _ in range(3):
            y = model(torch.randn(64, 32))
        assert len(mesa._blocks) == 1
        y.sum().backward()
    assert len(mesa._blocks) == 0
    assert mesa._decoded is None


@pytest.mark.parametrize("rectify", [torch.relu, functional.leaky_relu, torch.abs])
def test_networks_with_a_kink_have_near_gradients(rectify):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 256), nn.Linear(256, 8))
    x, weights = torch.randn(256, 64), torch.randn(256, 8)

    def grads(mesa=None):
        model.zero_grad()
        with mesa or torch.enable_grad():
            y = model[2](rectify(model[1](rectify(model[0](x)))))
        (y * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact = grads()
    limit = 0.999 if rectify is torch.relu else 0.98
    assert torch.cosine_similarity(exact, grads(Mesa(model)), dim=0) > limit


def test_zeros_of_a_relu_stay_zero_and_its_other_values_above():
    x = torch.relu(torch.randn(80, 40)) * 1e-2
    x[0, 0] = 1e-9
    for dtype in (torch.float32, torch.float16):
        x = x.to(dtype)
        found = restored(x, plain())
        assert torch.equal(found > 0, x > 0)


def test_log_sum_exp_of_attention_is_not_rounded(monkeypatch):
    layer = create("softmax", dim=48, heads=3)
    shapes = []
    compress = Mesa._compress

    def noted(self, tensor, reference):
        shapes.append(tuple(tensor.shape))
        return compress(self, tensor, reference)

    monkeypatch.setattr(Mesa, "_compress", noted)
    x = torch.randn(4, 70, 48, requires_grad=True)
    lse_saved = []

    def note(tensor):
        lse_saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x)
    assert (4, 3, 70) in lse_saved
    with Mesa(layer, least=1):
        y = layer(x).y
    assert (4, 3, 70, 16) in shapes
    assert (4, 3, 70) not in shapes
    y.sum().backward()


def test_kept_as_they_are():
    mesa = plain()
    infinite = torch.zeros(8, 8).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), float("-inf"))
    for saved in (
        infinite,
        torch.full((8, 8), float("nan")),
        torch.rand(64, 1),
        torch.rand(8, 8, dtype=torch.complex64),
    ):
        if saved.is_complex():
            x = torch.zeros(8, 8, dtype=torch.complex64, requires_grad=True)
            with mesa:
                y = Keep.apply(x, saved)
            found = torch.autograd.grad(y, x, torch.ones_like(x))[0]
        else:
            found = restored(saved, mesa)
        assert torch.equal(
            found.nan_to_num(7.0) if not found.is_complex() else found,
            saved.nan_to_num(7.0) if not saved.is_complex() else saved,
        )
    small = torch.rand(10, 10)
    assert torch.equal(restored(small, Mesa(nn.Identity())), small)
    weight = nn.Linear(40, 40)
    with Mesa(weight, least=1) as kept:
        y = functional.linear(torch.randn(50, 40, requires_grad=True), weight.weight)
    assert kept.saved_bytes.before == 50 * 40 * 4


def test_a_small_view_does_not_keep_the_whole_storage():
    mesa = Mesa(nn.Identity())
    x = torch.zeros(10, requires_grad=True)
    with mesa:
        y = x * torch.randn(1000, 10)[3]
    assert mesa.saved_bytes == (40_000, 40)
    y.sum().backward()


def test_a_kept_tensor_that_is_changed_in_place_is_refused():
    x, scale = torch.ones(4, requires_grad=True), torch.ones(4)
    with Mesa(nn.Identity()):
        y = x * scale
    scale.add_(1)
    with pytest.raises(ArgumentError, match=r"mesa: found a tensor of shape \(4,\) that was changed in place"):
        y.sum().backward()


def test_second_derivatives_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 1)).double()
    x = torch.randn(64, 12, dtype=torch.float64, requires_grad=True)

    def penalty(mesa=None):
        with mesa or torch.enable_grad():
            (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            loss = grad.square().sum()
        return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)

    for found, exact in zip(penalty(Mesa(model, least=1)), penalty(), strict=True):
        if exact is not None:
            torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


def test_torchs_generator_is_not_used_and_a_seed_repeats():
    model = nn.Linear(32, 32)
    x = torch.randn(64, 32)
    state = torch.random.get_rng_state()
    found = []
    for seed in (1, 1, 2):
        mesa = Mesa(model, least=1, seed=seed)
        with mesa:
            y = model(x)
        found.append(torch.autograd.grad((y**2).sum(), model.weight)[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert Mesa(model)._dither.seed != Mesa(model)._dither.seed


def test_running_ranges_are_the_averages_of_the_paper_and_clamp():
    mesa = plain(ranges="running", groups=1, decay=0.9)
    first, second = torch.rand(40, 8) - 0.5, 10 * torch.rand(40, 8) - 5
    restored(first, mesa)
    found = restored(second, mesa)
    low = 0.9 * first.min() + 0.1 * second.min()
    span = 0.9 * (first.max() - first.min()) + 0.1 * (second.max() - second.min())
    assert found.min() >= low - 1e-2
    assert found.max() <= low + span + 1e-2
    inside = (second > low) & (second < low + span)
    assert ((found - second)[inside].abs() <= span / 254).all()
    torch.testing.assert_close(
        found[second > low + span], (low + span).expand(int((second > low + span).sum())), atol=1e-2, rtol=0
    )


def test_running_ranges_of_one_call_are_not_changed_by_the_next():
    model = MesaLinear(8, 8, groups=1)
    x, large = torch.rand(40, 8), 100 * torch.rand(40, 8)
    y = model(x)
    model(large)
    (found,) = torch.autograd.grad(y.sum(), model.weight)
    torch.testing.assert_close(found, x.sum(0).expand(8, 8), rtol=0.02, atol=0)


def test_running_ranges_are_told_apart_by_the_order_of_saving():
    mesa = plain(ranges="running", groups=1)
    x = torch.zeros(40, 8, requires_grad=True)
    saved = [torch.rand(40, 8), 100 * torch.rand(40, 8)]
    for _ in range(3):
        with mesa:
            y = [Keep.apply(x, one) for one in saved]
    for one, value in zip(y, saved, strict=True):
        (found,) = torch.autograd.grad(one, x, torch.ones_like(x))
        assert (found - value).abs().max() <= value.max() / 250


def test_attached_to_a_model_every_training_step_is_compressed(network):
    model, x, weights = network
    model, x, weights = copy.deepcopy(model), x[:4], weights[:4]
    _, exact = gradients(model, x, weights)
    mesa = Mesa(model)
    attached = mesa.attach()
    _, found = gradients(model, x, weights)
    assert mesa.saved_bytes.before > 3.3 * mesa.saved_bytes.after > 0
    assert 0 < relative(found, exact) < 0.1
    model.eval()
    assert relative(gradients(model, x, weights)[1], exact) == 0
    with pytest.raises(RuntimeError, match="normalized_shape"):
        model.train()(x[..., :5])
    assert not mesa._active
    copied = copy.deepcopy(model).train()
    assert 0 < relative(gradients(copied, x, weights)[1], exact) < 0.1
    attached.close()
    assert relative(gradients(model, x, weights)[1], exact) == 0


def test_training_reaches_the_loss_of_plain_training():
    def train(compress):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 1))
        if compress:
            Mesa(model, least=1).attach()
        x = torch.randn(256, 16)
        y = torch.sin(x.sum(1, keepdim=True))
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(40):
            optimiser.zero_grad()
            loss = functional.mse_loss(model(x), y)
            loss.backward()
            optimiser.step()
        return float(loss.detach())

    exact, found = train(False), train(True)
    assert abs(found - exact) < 0.2 * exact


MODULES = [
    (MesaLinear(24, 16, groups=3), lambda m, x: functional.linear(x, m.weight, m.bias)),
    (MesaLayerNorm(24, groups=3), lambda m, x: functional.layer_norm(x, (24,), m.weight, m.bias)),
    (MesaGELU(groups=3), lambda m, x: functional.gelu(x)),
    (MesaSoftmax(groups=3), lambda m, x: x.softmax(-1)),
    (MesaMatMul(groups=3), lambda m, x: x @ x.transpose(-1, -2)),
]


@pytest.mark.parametrize(("module", "function"), MODULES, ids=lambda m: type(m).__name__)
def test_modules_compute_exactly_and_differentiate_nearly(module, function):
    x = torch.randn(4, 30, 24, requires_grad=True)
    inputs = (x, x.transpose(-1, -2)) if isinstance(module, MesaMatMul) else (x,)
    y, expected = module(*inputs), function(module, x)
    assert torch.equal(y, expected)
    weights = torch.randn(y.shape)
    sources = [x, *module.parameters()]
    found = torch.autograd.grad((y * weights).sum(), sources)
    exact = torch.autograd.grad((expected * weights).sum(), sources)
    assert not torch.equal(found[0], exact[0]) or isinstance(module, MesaLinear)
    for a, b in zip(found, exact, strict=True):
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999
    module.eval()
    again = torch.autograd.grad((module(*inputs) * weights).sum(), sources)
    assert all(map(torch.equal, again, exact))
    module.train()


def test_softmax_keeps_its_output_by_head():
    module = MesaSoftmax(groups=2)
    y = module(torch.randn(3, 2, 20, 20, requires_grad=True))
    codes = list(module.mesa._blocks.values())
    assert [(c.layout.groups, c.codes.numel()) for c in codes] == [(2, y.numel())]


def test_modules_are_put_into_a_model():
    torch.manual_seed(0)
    model = build_stack("softmax", 24, depth=2, options={"heads": 3})
    names, parameters = list(model.state_dict()), list(model.parameters())
    x, weights = torch.randn(4, 20, 24), torch.randn(4, 20, 24)
    loss, exact = gradients(model, x, weights)
    # each block has six maps and two norms, and a norm follows
    assert use_mesa_modules(model) == 2 * (6 + 2) + 1
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    same, found = gradients(model, x, weights)
    assert torch.equal(loss, same)
    assert 0 < relative(found, exact) < 0.05
    layer = next(m for m in model.modules() if isinstance(m, MesaLinear))
    assert layer.mesa.groups == 3
    copied = copy.deepcopy(model)
    assert torch.equal(gradients(copied, x, weights)[0], loss)


def test_what_does_not_fit_is_named():
    model = nn.Linear(2, 2)
    for call, message in (
        (lambda: Mesa(model, groups=0), "mesa: groups: found 0, expected 1 or more"),
        (lambda: Mesa(model, least=0), "mesa: least: found 0"),
        (lambda: Mesa(model, decay=1.0), "mesa: decay: found 1.0"),
        (lambda: Mesa(model, ranges="mean"), "ranges: found 'mean', expected 'exact' or 'running'"),
        (lambda: MesaLinear(2, 2, groups=0), "groups: found 0"),
        (lambda: use_mesa_modules(model), "found Linear, expected one with a Linear"),
        (lambda: use_mesa_modules(nn.Sequential(model), groups=0), "groups: found 0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
