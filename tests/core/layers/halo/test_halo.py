"""Halo attention: who sees whom, what it becomes at the ends of its arguments, strided queries, borders."""

from __future__ import annotations

import itertools

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.functional.halo_attention import halo_attention
from manyheads.core.layers.halo import HaloAttention
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case
from tests.core.layers import ORACLES


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("block", "halo"), [(3, 2), (3, 0), (1, 2), (4, 5)])
def test_a_cell_sees_the_window_of_its_block_and_nothing_else(block, halo):
    height, width = 7, 5
    matrix = mixing_matrix(create("halo", 6, heads=2, block=block, halo=halo).double(), normal(1, height, width, 6))[0]
    cells = list(itertools.product(range(height), range(width)))

    def sees(i, j):
        return all(
            a // block * block - halo <= b < a // block * block + block + halo for a, b in zip(i, j, strict=True)
        )

    expected = torch.tensor([[sees(i, j) for j in cells] for i in cells])
    assert ((matrix > 0) == expected).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, len(cells), dtype=torch.float64))


def test_a_neighbour_is_in_reach_of_every_cell_up_to_the_halo_and_of_some_up_to_a_block_further():
    """The share of cells that reach a neighbour at distance d to the left: 1 for d <= h, then (b + h - d) / b."""
    block, halo, cells = 4, 2, 16
    layer = create("halo", 4, heads=1, block=block, halo=halo).double()
    matrix = mixing_matrix(layer, normal(1, 1, cells, 4))[0, 0]
    # whole blocks, so that every place in a block counts equally often
    cell = torch.arange(2 * block, cells)
    for distance in range(1, block + halo + 1):
        share = (matrix[cell, cell - distance] > 0).double().mean().item()
        assert share == min(1.0, (block + halo - distance) / block)


def test_without_halo_blocks_are_independent():
    layer, x = create("halo", 6, heads=2, block=3, halo=0).double(), normal(2, 6, 9, 6)
    alone = layer(x[:, 3:6, 6:9]).y
    torch.testing.assert_close(layer(x).y[:, 3:6, 6:9], alone, rtol=0, atol=1e-12)


def test_one_block_without_offsets_is_softmax_attention():
    layer, softmax = create("halo", 6, heads=2, block=7, halo=0).double(), create("softmax", 6, heads=2).double()
    softmax.load_state_dict({key: value for key, value in layer.state_dict().items() if "." in key})
    torch.nn.init.zeros_(layer.rows)
    torch.nn.init.zeros_(layer.columns)
    x = normal(2, 5, 7, 6)
    torch.testing.assert_close(layer(x).y.flatten(1, 2), softmax(x.flatten(1, 2)).y, rtol=0, atol=1e-12)


def test_a_shift_by_whole_blocks_commutes_inside():
    layer, x = create("halo", 6, heads=2, block=3, halo=2).double(), normal(1, 15, 15, 6)
    shifted = layer(x.roll((3, 6), (1, 2))).y
    expected = layer(x).y.roll((3, 6), (1, 2))
    torch.testing.assert_close(shifted[:, 6:12, 9:12], expected[:, 6:12, 9:12], rtol=0, atol=1e-12)


def test_weights_on_the_grid_sum_to_one_with_a_masked_border_and_to_its_share_of_the_window_with_a_zero_border():
    x = torch.ones(1, 4, 4, 4, dtype=torch.float64)
    sums = {}
    for border in ("masked", "zero"):
        layer = create("halo", 4, heads=1, block=2, halo=1, border=border).double()
        for table in (layer.rows, layer.columns, layer.query.weight):
            torch.nn.init.zeros_(table)
        sums[border] = mixing_matrix(layer, x).sum(-1).view(4, 4)
    torch.testing.assert_close(sums["masked"], torch.ones(4, 4, dtype=torch.float64))
    # every window has 4 x 4 cells; at a corner of the image 3 x 3 of them are inside
    torch.testing.assert_close(sums["zero"], torch.full((4, 4), 9 / 16, dtype=torch.float64))


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
@pytest.mark.parametrize("masked", [True, False])
def test_strided_queries_give_every_second_output(size, masked):
    q, k, v = (normal(2, *size, 3, width) + index for index, width in enumerate((4, 4, 6)))
    tables = normal(2, 2 * (4 + 1) - 1, 4)
    given = {"block": 4, "halo": 1, "masked": masked}
    whole = halo_attention(q, k, v, *tables, **given)
    strided = halo_attention(q[:, ::2, ::2], k, v, *tables, **given, stride=2)
    assert whole.shape == (2, *size, 3, 6)
    torch.testing.assert_close(strided, whole[:, ::2, ::2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 4}, "heads: found 4, expected a divisor of dim = 6"),
        ({"block": 0}, "block: found 0, expected 1 or more"),
        ({"halo": -1}, "halo: found -1, expected 0 or more"),
        ({"border": "wrap"}, "border: found 'wrap'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ArgumentError, match=message):
        create("halo", dim=6, **config)


class WrongWay(HaloAttention):
    """Broken on purpose: masks the real cells instead of the others."""

    def mix(self, x, state, context, mask):
        real = torch.ones(x.shape[:-1], dtype=torch.bool) if mask.padding is None else mask.padding.view(x.shape[:-1])
        return super().mix(x, state, context, type(mask)(padding=~real.flatten(1)))


class Crossed(HaloAttention):
    """Broken on purpose: the offsets between rows are taken for those between columns."""

    def mix(self, x, state, context, mask):
        self.rows, self.columns = self.columns, self.rows
        return super().mix(x, state, context, mask)


@pytest.mark.parametrize("broken", [WrongWay, Crossed])
def test_battery_fails_on_a_broken_layer(broken):
    case = Case(broken, {"heads": 2, "block": 2, "halo": 1}, grid=(3, 5), oracle=ORACLES["halo"])
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(case)
