"""Axial attention: who sees whom on a grid, and what is refused."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.layers.axial import AxialAttention
from manyheads.core.methods.mixing_matrix import influence, mixing_matrix
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case
from tests.core.layers import ORACLES


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("axis", "same"), [(0, 1), (1, 0), (-2, 1)])
def test_tokens_see_their_own_line_and_nothing_else(axis, same):
    matrix = mixing_matrix(create("axial", dim=6, heads=2, axis=axis).double(), normal(1, 3, 4, 6))[0]
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    line = cells[:, None, same] == cells[None, :, same]
    assert ((matrix > 0) == line).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 12, dtype=torch.float64))


def test_transposing_the_grid_exchanges_the_axes():
    rows, columns = (create("axial", dim=6, heads=3, axis=axis).double() for axis in (1, 0))
    columns.load_state_dict(rows.state_dict())
    x = normal(2, 3, 5, 6)
    torch.testing.assert_close(columns(x.transpose(1, 2)).y, rows(x).y.transpose(1, 2), rtol=0, atol=1e-12)


def test_one_line_is_softmax_attention():
    axial, softmax = create("axial", dim=6, heads=2).double(), create("softmax", dim=6, heads=2).double()
    softmax.load_state_dict(axial.state_dict())
    x = normal(2, 1, 7, 6)
    torch.testing.assert_close(axial(x).y[:, 0], softmax(x[:, 0]).y, rtol=0, atol=1e-12)


def test_a_layer_along_each_axis_reaches_the_whole_grid():
    both = torch.nn.ModuleList([create("axial", dim=4, heads=2, axis=axis).double() for axis in (0, 1)])
    x = normal(1, 3, 4, 4).requires_grad_()
    y = both[1](both[0](x).y).y
    (grad,) = torch.autograd.grad(y[0, 1, 2].sum(), x)
    assert (grad.abs().sum(-1) > 0).all()
    assert (influence(both[0], x)[0, 0].view(3, 4)[:, 1:] == 0).all()


def test_a_third_axis_is_a_line_like_any_other():
    layer = create("axial", dim=4, heads=2, axis=2, causal=True).double()
    x = normal(2, 2, 3, 5, 4)
    flat = x.flatten(0, 2).unsqueeze(1)
    expected = create("axial", dim=4, heads=2, axis=1, causal=True).double()
    expected.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x).y.flatten(0, 2), expected(flat).y[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"heads": 4}, "heads: found 4, expected a divisor of dim = 6"), ({"heads": 2, "axis": 3}, "axis: found 3")],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ArgumentError, match=message):
        create("axial", dim=6, **config)


def test_an_axis_that_the_grid_has_not_is_refused():
    with pytest.raises(ArgumentError, match="axis: found 2 for a grid of 2 axes, expected -2 to 1"):
        create("axial", dim=6, heads=2, axis=2)(torch.randn(1, 3, 4, 6))


class OtherAxis(AxialAttention):
    """Broken on purpose: runs along the other axis."""

    def mix(self, x, state, context, mask):
        self.axis = -1 - self.axis % 2 if self.axis >= 0 else -3 - self.axis
        return super().mix(x, state, context, mask)


def test_battery_fails_on_the_other_axis():
    case = Case(OtherAxis, {"heads": 2}, grid=(3, 4), oracle=ORACLES["axial"])
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(case)
