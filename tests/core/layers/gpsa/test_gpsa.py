"""Gated positional self-attention: local initialisation, gates, what heads look at."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from manyheads.core.errors import ArgumentError
from manyheads.core.functional import non_locality
from manyheads.core.layers.gpsa import GatedPositionalAttention, head_centres
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case
from tests.core.layers import ORACLES


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("alpha", "published"), [(0.5, 0.1592), (1.0, 0.3182), (2.0, 0.6187), (10.0, 0.9998)])
def test_the_first_attention_of_the_central_head_peaks_as_a_gaussian(alpha, published):
    """In the interior the peak is 1 / theta_3(exp(-alpha))^2."""
    layer = create("gpsa", dim=9, heads=9, alpha=alpha, gate=1e3).double()
    weights = mixing_matrix(layer, normal(1, 14, 14, 9)).view(9, 14, 14, 14, 14)
    peak = weights[head_centres(9).index((0, 0)), 7, 7, 7, 7].item()
    theta = sum(math.exp(-alpha * n**2) for n in range(-50, 51))
    assert peak == pytest.approx(1 / theta**2, abs=1e-9)
    assert peak == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize("heads", [1, 2, 4, 6, 9, 12, 16])
def test_each_head_looks_first_at_its_own_offset(heads):
    layer = create("gpsa", dim=heads, heads=heads, alpha=6.0, gate=1e3).double()
    weights = mixing_matrix(layer, normal(1, 8, 11, heads)).view(heads, 8, 11, 8, 11)[:, 4, 5]
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(11.0)).double()
    mean = torch.einsum("hs,sd->hd", weights.flatten(1), places) - torch.tensor([4.0, 5.0])
    expected = torch.tensor(head_centres(heads)).double().flip(1)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-2)


def test_square_numbers_of_heads_fill_a_square_and_others_the_nearest_offsets():
    for side in range(1, 8):
        line = [step - (side - 1) / 2 for step in range(side)]
        assert set(head_centres(side**2)) == {(x, y) for x in line for y in line}
    assert set(head_centres(13)) == set(head_centres(9)) | {(2, 0), (0, 2), (-2, 0), (0, -2)}
    assert len(set(head_centres(12))) == 12


def test_the_first_attention_is_the_gated_sum_where_queries_are_zero():
    layer = create("gpsa", dim=4, heads=4).double()
    torch.nn.init.zeros_(layer.query.weight)
    x = normal(1, 5, 3, 4)
    found = mixing_matrix(layer, x)
    positions = create("gpsa", dim=4, heads=4, gate=1e3).double()
    gate = 1 / (1 + math.exp(-1.0))
    torch.testing.assert_close(found, (1 - gate) / 15 + gate * mixing_matrix(positions, x), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 4, 15, dtype=torch.float64))
    torch.testing.assert_close(layer.value.weight, torch.eye(4, dtype=torch.float64))


def test_without_positions_it_is_softmax_attention():
    layer = create("gpsa", dim=6, heads=2, bias=True).double()
    torch.nn.init.constant_(layer.gates, -math.inf)
    softmax = create("softmax", dim=6, heads=2, bias=True).double()
    softmax.load_state_dict({k: v for k, v in layer.state_dict().items() if k not in ("position", "gates")})
    x = normal(2, 3, 5, 6)
    torch.testing.assert_close(layer(x).y.flatten(1, 2), softmax(x.flatten(1, 2)).y, rtol=0, atol=1e-12)


def test_nine_sharp_heads_are_a_convolution():
    layer = create("gpsa", dim=18, heads=9, alpha=1e3, gate=1e3).double()
    x = normal(2, 6, 7, 18)
    value, output = layer.value.weight.view(9, 2, 18), layer.output.weight.view(18, 9, 2)
    kernel = torch.zeros(18, 18, 3, 3, dtype=torch.float64)
    for head, (right, down) in enumerate(head_centres(9)):
        kernel[:, :, int(down) + 1, int(right) + 1] = output[:, head] @ value[head]
    expected = functional.conv2d(x.permute(0, 3, 1, 2), kernel, layer.output.bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x).y[:, 1:-1, 1:-1], expected, rtol=0, atol=1e-12)


def test_non_locality_grows_as_the_gates_close():
    x = normal(2, 4, 6, 8)
    distances = []
    for gate in (3.0, 0.0, -3.0):
        torch.manual_seed(0)
        distances.append(non_locality(mixing_matrix(create("gpsa", dim=8, heads=4, gate=gate).double(), x), (4, 6)))
    assert (distances[0] < distances[1]).all()
    assert (distances[1] < distances[2]).all()
    identity = torch.eye(6).expand(1, 1, 6, 6)
    assert non_locality(identity, (2, 3)).item() == 0
    assert non_locality(identity[..., [1, 2, 0, 4, 5, 3]], (2, 3)).item() == pytest.approx((1 + 1 + 2) / 3)
    with pytest.raises(ArgumentError, match="expected \\(B, H, 4, 4\\) on a grid of 2 x 2"):
        non_locality(identity, (2, 2))


def test_every_gate_gets_a_gradient():
    layer = create("gpsa", dim=8, heads=4)
    layer(torch.randn(2, 3, 3, 8)).y.square().sum().backward()
    assert (layer.gates.grad != 0).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alpha": -1.0}, "alpha: found -1.0, expected None or a number, 0 or more"),
        ({"gate": math.nan}, "gate: found nan, expected a finite number"),
        ({"heads": 4}, "heads: found 4, expected a divisor of dim = 6"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ArgumentError, match=message):
        create("gpsa", dim=6, **config)


class OtherWay(GatedPositionalAttention):
    """Broken on purpose: exchanges rows and columns in the positional part."""

    def _by_position(self, v, grid, real):
        height, width = grid
        real = None if real is None else real.unflatten(1, (height, width)).mT.flatten(1)
        turned = v.unflatten(2, (height, width)).transpose(2, 3).flatten(2, 3)
        y = super()._by_position(turned, torch.Size((width, height)), real)
        return y.unflatten(2, (width, height)).transpose(2, 3).flatten(2, 3)


def test_battery_fails_on_exchanged_axes():
    case = Case(OtherWay, {"heads": 2}, grid=(3, 4), oracle=ORACLES["gpsa"])
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(case)
