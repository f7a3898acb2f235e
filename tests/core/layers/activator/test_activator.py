"""What the Activator promises beyond the battery."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.blocks.feed_forward import FeedForward, GatedFeedForward
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layers.activator import Activator
from manyheads.core.methods.mixing_matrix import influence
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case

from .oracle import activator_oracle


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_along_the_channels_no_token_sees_another():
    jacobian = influence(create("activator", dim=6).double(), normal(1, 5, 6))[0]
    assert torch.equal(jacobian != 0, torch.eye(5, dtype=torch.bool))


def test_along_the_tokens_every_token_sees_every_other():
    layer = create("activator", dim=6, axis="token", tokens=5).double()
    assert (influence(layer, normal(1, 5, 6))[0] > 1e-6).all()


def test_along_the_channels_shuffled_patches_give_shuffled_outputs():
    layer, x = create("activator", dim=6).double(), normal(2, 3, 4, 6)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    y = layer(x).y.flatten(1, 2)
    torch.testing.assert_close(layer(x.flatten(1, 2)[:, order]).y, y[:, order], rtol=0, atol=1e-12)


def test_along_the_tokens_the_channels_are_permuted_freely_in_the_first_block():
    layer, x = create("activator", dim=6, axis="token", tokens=5, second_block=False).double(), normal(2, 5, 6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(layer(x[..., order]).y, layer(x).y[..., order], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("second", "matrices", "biases"), [(True, 5, 2 * 512 + 256 + 512 + 256), (False, 3, 1280)])
def test_parameters_are_those_of_the_authors_block(second, matrices, biases):
    """Width 256 and 512 hidden: 3 D F (5 D F) weights, their biases, one norm of each width whatever the blocks."""
    layer = create("activator", dim=256, hidden=512, second_block=second)
    assert sum(p.numel() for p in layer.parameters()) == matrices * 256 * 512 + biases + 2 * 256 + 2 * 512


def test_one_norm_serves_both_blocks_and_one_both_branches():
    layer = create("activator", dim=6)
    assert [name for name, part in layer.named_modules() if isinstance(part, torch.nn.LayerNorm)] == [
        "norm",
        "gated.norm",
    ]


def test_a_gate_that_is_shut_leaves_the_residual():
    layer, x = create("activator", dim=6, second_block=False).double(), normal(2, 5, 6)
    torch.nn.init.zeros_(layer.gated.norm.weight)
    torch.nn.init.zeros_(layer.gated.norm.bias)
    torch.nn.init.zeros_(layer.gated.down.bias)
    assert torch.equal(layer(x).y, x)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"hidden": 0}, ArgumentError, "hidden: found 0, expected 1 or more"),
        ({"axis": "tokens"}, ArgumentError, "axis: found 'tokens', expected 'channel' or 'token'"),
        ({"axis": "token"}, ArgumentError, "tokens: found None with axis='token', expected 1 or more"),
        ({"axis": "token", "tokens": 0}, ArgumentError, "tokens: found 0"),
        ({"tokens": 5}, ArgumentError, "tokens: found 5 with axis='channel', expected None"),
        ({"activation": "gelo"}, UnknownNameError, "did you mean 'gelu'"),
    ],
)
def test_bad_arguments_are_named(config, error, message):
    with pytest.raises(error, match=message):
        create("activator", dim=4, **config)


def test_feed_forward_with_relu_on_a_positive_input_is_linear():
    block = FeedForward(3, 4, activation="relu", bias=False).double()
    with torch.no_grad():
        block.up.weight.abs_()
    x = normal(2, 3).abs()
    torch.testing.assert_close(block(x), x @ (block.down.weight @ block.up.weight).mT, rtol=1e-12, atol=1e-12)


def test_gated_feed_forward_with_relu_is_bilinear_where_open():
    block = GatedFeedForward(3, 4, activation="relu", bias=False).double()
    with torch.no_grad():
        block.gate.weight.abs_()
    x = normal(2, 3).abs()
    torch.testing.assert_close(block(2 * x), 4 * block(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [FeedForward, GatedFeedForward])
def test_feed_forward_widths_are_checked(block):
    with pytest.raises(ArgumentError, match="hidden: found 0"):
        block(3, 0)


class NormsApart(Activator):
    """A second norm for the second block, as a reader would expect."""

    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        hidden = x + self.gated(self.norm(x))
        plain = torch.nn.functional.layer_norm(hidden, (self.dim,))
        return out._replace(y=hidden + self.feed_forward(plain))


def test_battery_fails_on_norms_that_are_not_shared():
    case = Case(NormsApart, {}, oracle=activator_oracle)
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(case)
