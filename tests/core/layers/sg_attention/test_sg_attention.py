"""Hybrid-scale and self-guided attention: the mass of the significance, the groups, what has a gradient."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.layers.sg_attention import HybridScaleAttention, SelfGuidedAttention, SGAttention, group_sizes
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case
from tests.core.layers import ORACLES


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("ratio", "window", "size", "windows"), [(4, 3, (12, 12), 16), (2, 7, (14, 28), 8)])
def test_significance_is_positive_and_sums_to_the_reduction_squared_plus_the_windows(ratio, window, size, windows):
    """The query-mean of a softmax sums to 1: once in each window, and over the blocks, each spread to r^2 cells."""
    torch.manual_seed(0)
    hybrid = HybridScaleAttention(8, heads=4, ratio=ratio, window=window).double()
    _, significance = hybrid(normal(2, *size, 8))
    assert significance.shape == (2, *size)
    assert (significance > 0).all()
    total = torch.full((2,), float(ratio**2 + windows), dtype=torch.float64)
    torch.testing.assert_close(significance.sum((1, 2)), total, rtol=0, atol=1e-12)


def test_windows_at_the_border_share_a_mass_of_one_too():
    """With one block that covers all of the grid, its share is 1 for each cell."""
    torch.manual_seed(0)
    hybrid = HybridScaleAttention(8, heads=2, ratio=8, window=3).double()
    _, significance = hybrid(normal(1, 7, 5, 8))
    torch.testing.assert_close(significance.sum().item(), 35.0 + 3 * 2)


def test_no_gradient_goes_through_the_significance():
    layer, x = create("sg-attention", 8, heads=2, ratio=2, window=2).double(), normal(1, 4, 4, 8).requires_grad_()
    out = layer(x)
    assert not out.aux["significance"].requires_grad
    _, significance = layer.hybrid(x)
    guided = layer.guided(x.detach(), significance)
    assert torch.autograd.grad(guided.sum(), x, allow_unused=True) == (None,)


def test_keys_of_an_image_of_224_pixels_are_those_of_the_paper():
    """Stages of 56 x 56, 28 x 28 and 14 x 14 cells, reduced by 8, 4 and 2."""
    assert [group_sizes(ratio) for ratio in (8, 4, 2)] == [(196, 56, 28), (49, 14, 7), (2, 1)]
    counts = []
    for side, ratio in ((56, 8), (28, 4), (14, 2)):
        guided = SelfGuidedAttention(2, heads=2, groups=group_sizes(ratio))
        counts.append(guided.merged(torch.zeros(1, side, side, 2), torch.rand(1, side, side)).shape[1])
    assert counts == [60, 60, 147]


def test_significant_cells_get_more_tokens():
    """A merge of equal weights: each token is the mean of its cells, in order of significance."""
    guided = SelfGuidedAttention(1, heads=1, groups=(4, 2, 1))
    for merge in guided.merges:
        torch.nn.init.constant_(merge.weight, 1 / merge.in_features)
        torch.nn.init.zeros_(merge.bias)
    rank = torch.randperm(16, generator=torch.Generator().manual_seed(0)).float().view(1, 4, 4)
    tokens = guided.merged(rank.unsqueeze(-1), rank)
    expected = [1.5, 4.5, 6.5, 8.5, 10.5, 12.0, 13.0, 14.0, 15.0]
    torch.testing.assert_close(tokens.flatten(), torch.tensor(expected))


def test_equal_significances_keep_the_raster_order():
    guided = SelfGuidedAttention(1, heads=1, groups=(1, 1))
    for merge in guided.merges:
        torch.nn.init.ones_(merge.weight)
        torch.nn.init.zeros_(merge.bias)
    cells = torch.arange(400.0).view(1, 20, 20, 1)
    assert torch.equal(guided.merged(cells, torch.ones(1, 20, 20)).flatten(), cells.flatten())


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 2), (7, 11)])
def test_any_grid_is_taken(size):
    for ratio in (2, 3, 8):
        layer = create("sg-attention", 4, heads=2, ratio=ratio)
        y = layer(torch.randn(2, *size, 4)).y
        assert y.shape == (2, *size, 4)
        assert y.isfinite().all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 4}, "heads: found 4, expected a divisor of dim = 6"),
        ({"heads": 2, "ratio": 1}, "ratio: found 1, expected 2 or more"),
        ({"heads": 2, "groups": (3,)}, "groups: found .*, expected two or three sizes"),
        ({"heads": 2, "groups": (2, 0)}, "groups: found .*, expected two or three sizes of 1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ArgumentError, match=message):
        create("sg-attention", dim=6, **config)


class Upside(SGAttention):
    """Broken on purpose: merges the significant cells, and keeps the others."""

    def mix(self, x, state, context, mask):
        u, significance = self.hybrid(x)
        return type(super().mix(x, state, context, mask))(u + self.guided(self.norm(x + u), -significance))


def test_battery_fails_on_an_order_upside_down():
    config = {"heads": 2, "ratio": 2, "window": 2}
    case = Case(Upside, config, grid=(4, 6), batch=2, oracle=ORACLES["sg-attention"])
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(case)
