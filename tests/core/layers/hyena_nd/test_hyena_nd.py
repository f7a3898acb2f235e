"""Hyena N-D: orthants, kernels, directions, weights of the authors' code, what is refused."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from manyheads.core.errors import ArgumentError, StateError
from manyheads.core.layers.hyena_nd import HyenaND
from manyheads.core.methods.mixing_matrix import influence
from manyheads.core.testing import POINTS, Case
from tests.core.layers import ORACLES


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def made(**config):
    torch.manual_seed(0)
    return HyenaND(4, filter_width=5, **config).double()


@pytest.mark.parametrize("grid", [(6,), (3, 4), (2, 3, 2)])
def test_a_causal_cell_sees_exactly_the_cells_before_it_on_every_axis(grid):
    reach = influence(made(axes=len(grid), causal=True), normal(1, *grid, 4))[0]
    cells = list(itertools.product(*map(range, grid)))
    before = [[all(a <= b for a, b in zip(q, p, strict=True)) for q in cells] for p in cells]
    # the transforms leave rounding where there is no influence
    assert reach[torch.tensor(before)].min() > 1e-9
    assert reach[~torch.tensor(before)].max() < 1e-12


@pytest.mark.parametrize("grid", [(6,), (3, 4), (2, 3, 2)])
def test_with_all_directions_a_cell_sees_the_whole_grid(grid):
    reach = influence(made(axes=len(grid), directions="all"), normal(1, *grid, 4))[0]
    assert reach.min() > 1e-9


def test_the_centred_short_convolution_of_the_paper_sees_one_cell_ahead():
    reach = influence(made(axes=1), normal(1, 6, 4))[0]
    for token in range(6):
        assert [bool(reach[token, other] > 1e-12) for other in range(6)] == [other <= token + 1 for other in range(6)]


def test_nothing_wraps_round_the_end_of_an_axis():
    layer, x = made(causal=True), normal(1, 3, 4, 4)
    changed = x.clone()
    changed[0, 2, 3] += 1
    moved = (layer(x).y - layer(changed).y).abs().amax(-1).flatten() > 1e-12
    assert moved.tolist() == [False] * 11 + [True]


@pytest.mark.parametrize("filter", ["product", "joint"])
def test_the_kernels_of_a_product_have_rank_one(filter):
    kernels = made(filter=filter, order=3).kernels((5, 7)).flatten(0, 1)
    assert kernels.shape == (8, 5, 7)
    ranks = torch.linalg.matrix_rank(kernels, rtol=1e-9)
    assert (ranks == 1).all() if filter == "product" else (ranks > 1).all()


@pytest.mark.parametrize("filter", ["product", "joint"])
@pytest.mark.parametrize("window", ["exponential", "learned", "none"])
def test_another_grid_samples_the_same_kernels(filter, window):
    layer = made(filter=filter, window=window, bands=3)
    fine = layer.kernels((9, 5))
    torch.testing.assert_close(fine[..., ::2, ::2], layer.kernels((5, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(fine[..., ::4, ::4], layer.kernels((3, 2)), rtol=0, atol=1e-12)


def test_a_symmetric_window_falls_with_the_distance_in_cells():
    layer = made(filter="joint", window="symmetric")
    with torch.no_grad():
        layer.shift.zero_()
        layer.decay.fill_(0.5)
    without = copy.deepcopy(layer)
    without.window = "none"
    distance = torch.arange(3).unsqueeze(1) + torch.arange(4).double()
    expected = without.kernels((3, 4)) * torch.exp(-0.5 * distance)
    torch.testing.assert_close(layer.kernels((3, 4)), expected, rtol=0, atol=1e-12)


def test_the_exponential_window_reaches_one_percent_at_its_two_ends():
    layer = made(axes=1, order=2)
    flat = copy.deepcopy(layer)
    flat.window = "none"
    places = torch.arange(31) / 30
    window = (layer.kernels((31,)) / flat.kernels((31,)))[0]
    torch.testing.assert_close(window[-1, places == 0.3], torch.tensor([0.01], dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(window[0, -1].item(), 0.01 ** (1 / 1.5), atol=1e-8, rtol=0)


def test_all_directions_commute_with_flips():
    """With equal weights of the directions and a short convolution that is symmetric itself."""
    layer, x = made(directions="all"), normal(2, 3, 4, 4)
    with torch.no_grad():
        weight = layer.short.weight
        weight.copy_(sum(weight.flip(axes) for axes in ([], [2], [3], [2, 3])))
    for axes in ([1], [2], [1, 2]):
        torch.testing.assert_close(layer(x.flip(axes)).y, layer(x).y.flip(axes), rtol=0, atol=1e-12)


def test_the_parameters_do_not_depend_on_the_grid():
    layer = made()
    assert layer(normal(1, 3, 4, 4)).y.shape == (1, 3, 4, 4)
    assert layer(normal(1, 9, 2, 4)).y.shape == (1, 9, 2, 4)


def test_half_precision_is_close_to_the_exact_layer_of_the_rounded_weights():
    layer = HyenaND(6).bfloat16()
    x = normal(2, 6, 7, 6).bfloat16()
    expected = copy.deepcopy(layer).double()(x.double()).y
    error = (layer(x).y.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 1e-2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"axes": 4}, "axes: found 4, expected 1 to 3"),
        ({"order": 1}, "order: found 1, expected 2 or more"),
        ({"causal": True, "directions": "all"}, "causal: found True with directions='all', expected 'one'"),
        ({"window": "symmetric"}, "window: found 'symmetric' with filter='product', expected filter='joint'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ArgumentError, match=message):
        HyenaND(4, **config)


def test_a_grid_of_another_number_of_axes_is_refused():
    with pytest.raises(ArgumentError, match=r"found shape \(1, 7, 4\), .* with 2 grid axes"):
        made()(normal(1, 7, 4))
    with pytest.raises(StateError, match="it has no streaming form"):
        made(axes=1, causal=True).step(normal(1, 4), ())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"directions": "all", "window": "learned"},
        {"filter": "joint", "order": 3},
        {"filter": "joint", "window": "learned"},
        {"filter": "joint", "window": "symmetric", "directions": "all"},
    ],
)
def test_takes_the_weights_of_the_authors_code(config):
    layer, reference = made(**config), _Reference(4, 6, **config).double()
    found = layer.from_reference(reference.state_dict())
    assert set(found) == set(layer.state_dict())
    layer.load_state_dict(found)
    x = normal(2, 6, 6, 4)
    # the angle of the embedding differs by 1e-4 / 6 turns
    torch.testing.assert_close(layer(x).y, reference(x), rtol=2e-4, atol=2e-4)


class _Reference(nn.Module):
    """The authors' HyenaOperator2d with its names, stated again for this test."""

    def __init__(self, dim, size, *, order=2, directions="one", filter="product", window="exponential"):
        super().__init__()
        self.dim, self.size, self.order, self.window = dim, size, order, window
        inner, kernels, width = dim * (order + 1), dim * (order - 1), 5
        self.in_proj, self.out_proj = nn.Linear(dim, inner), nn.Linear(dim, dim)
        self.short_filter = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        if directions == "all":
            self.linear_mix = nn.Linear(4, 1)
        self.filter_fn = nn.Module()
        self.filter_fn.bias = nn.Parameter(torch.randn(kernels))
        self.filter_fn.pos_emb = nn.Module()
        t = torch.linspace(0, 1, size)
        angle = 1e-4 * 2 * math.pi * torch.arange(size) / size
        self.filter_fn.pos_emb.z = nn.Parameter(torch.stack([t, angle.cos(), -angle.sin()], -1).unsqueeze(0))
        self.filter_fn.pos_emb.register_buffer("t", t.view(1, -1, 1))
        frequency = nn.Parameter(0.5 + torch.rand(1, width))

        def network(inputs):
            found = nn.Sequential()
            for a in (inputs, width, width):
                sine = nn.Module()
                sine.freq = frequency
                found.extend([nn.Linear(a, width), sine])
            return found.append(nn.Linear(width, kernels, bias=False))

        def modulation(*names):
            found = nn.Module()
            rates = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, kernels).view(1, 1, -1)
            for name in names:
                if window == "exponential":
                    found.register_buffer(name, rates)
                else:
                    setattr(found, name, nn.Parameter(rates + 0.1 * torch.randn(rates.shape)))
            if window != "exponential":
                found.shift = nn.Parameter(torch.rand(rates.shape))
            return found

        if filter == "product":
            for axis in "XY":
                setattr(self.filter_fn, f"{axis}implicit_filter", network(3))
                setattr(self.filter_fn, f"{axis}modulation", modulation("deltas"))
        else:
            self.filter_fn.implicit_filter = network(6)
            names = ["deltas"] if window == "symmetric" else ["Xdeltas", "Ydeltas"]
            self.filter_fn.modulation = modulation(*names)

    def forward(self, x):
        size, fn, t = self.size, self.filter_fn, self.filter_fn.pos_emb.t[0]

        def run(network, h):
            for one in network:
                h = torch.sin(one.freq * h) if hasattr(one, "freq") else one(h)
            return h

        z = fn.pos_emb.z[0]
        if hasattr(fn, "Xmodulation"):
            sides = []
            for axis in "XY":
                window = getattr(fn, f"{axis}modulation")
                decay = torch.exp(-t * window.deltas[0].abs()) + getattr(window, "shift", torch.zeros(1))[0]
                sides.append(run(getattr(fn, f"{axis}implicit_filter"), z) * decay)
            kernel = sides[0][:, None] * sides[1][None]
        else:
            both = torch.cat([z[:, None].expand(-1, size, -1), z[None].expand(size, -1, -1)], -1)
            window = fn.modulation
            if self.window == "symmetric":
                distance = torch.arange(size)[:, None, None] + torch.arange(size)[None, :, None]
                decay = torch.exp(-distance * window.deltas[0, 0].abs())
            else:
                decay = torch.exp(-t * window.Xdeltas[0].abs())[:, None] * torch.exp(-t * window.Ydeltas[0].abs())[None]
            kernel = run(fn.implicit_filter, both) * (decay + getattr(window, "shift", torch.zeros(1)))
        kernel = kernel.view(size, size, self.order - 1, self.dim).permute(2, 3, 0, 1)

        def convolved(v, step):
            padded = (2 * size, 2 * size)
            spectrum = torch.fft.rfft2(kernel[step], s=padded) / (2 * size) * torch.fft.rfft2(v, s=padded)
            skip = fn.bias.view(self.order - 1, self.dim)[step][:, None, None]
            return torch.fft.irfft2(spectrum, s=padded)[..., :size, :size] + v * skip

        u = self.short_filter(self.in_proj(x).permute(0, 3, 1, 2))

        def recurrence(u):
            *gates, v = u.split(self.dim, 1)
            for step, gate in enumerate(reversed(gates[1:])):
                v = convolved(v * gate, step)
            return v * gates[0]

        if hasattr(self, "linear_mix"):
            # theirs: none, both axes, the last, the first
            flips = ([], [2, 3], [3], [2])
            y = self.linear_mix(torch.stack([recurrence(u.flip(f)).flip(f) for f in flips], -1)).squeeze(-1)
        else:
            y = recurrence(u)
        return self.out_proj(y.permute(0, 2, 3, 1))


class Circular(HyenaND):
    """Broken on purpose: the convolution is as long as the grid, so that the end wraps round to the start."""

    def _recurrence(self, u, kernels):
        *gates, v = u.split(self.dim, 1)
        v, grid = v * gates[1], u.shape[2:]
        spectrum = torch.fft.rfftn(v, dim=(-2, -1)) * torch.fft.rfftn(kernels[0], dim=(-2, -1))
        return (torch.fft.irfftn(spectrum, s=grid, dim=(-2, -1)) + self.skip.view(-1, 1, 1) * v) * gates[0]


@pytest.mark.parametrize("point", ["oracle_and_layer_agree", "future_does_not_change_the_past"])
def test_battery_fails_on_a_convolution_that_wraps_round(point):
    case = Case(Circular, {"filter_width": 4, "causal": True}, oracle=ORACLES["hyena-nd"])
    with pytest.raises(AssertionError):
        POINTS[point].check(case)
