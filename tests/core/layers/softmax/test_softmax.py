"""Softmax attention: rotary positions."""

from __future__ import annotations

import pytest
import torch

from manyheads.core import Mask
from manyheads.core.errors import ArgumentError
from manyheads.core.functional.rotary import rotate
from manyheads.core.registry import create


def test_rotated_products_depend_on_the_difference_of_positions_only():
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    products = [(rotate(q, torch.tensor([t])) * rotate(k, torch.tensor([t - 3]))).sum() for t in (3, 4, 10, 100)]
    torch.testing.assert_close(torch.stack(products), products[0].expand(4), rtol=0, atol=1e-12)


def test_rotation_keeps_lengths_and_position_zero_turns_nothing():
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    turned = rotate(x, torch.arange(5))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=0, atol=1e-12)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_rotary_attention_does_not_change_if_all_positions_move_by_the_same_step():
    layer = create("softmax", dim=8, heads=2, causal=True, rotary=100.0).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    y = layer(x).y
    padding = torch.tensor([[False] * 4 + [True] * 6])
    longer = torch.cat([torch.randn(1, 4, 8, dtype=torch.float64), x], 1)
    found = layer(longer, mask=Mask(padding=padding)).y[:, 4:]
    torch.testing.assert_close(found, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "config", [{"heads": 2, "rotary": 1.0}, {"heads": 4, "rotary": 100.0}, {"context_dim": 3, "rotary": 100.0}]
)
def test_rotary_needs_a_base_above_one_even_heads_and_no_context(config):
    with pytest.raises(ArgumentError, match="softmax: rotary: found"):
        create("softmax", dim=12 if config.get("heads") == 4 else 8, **config)
