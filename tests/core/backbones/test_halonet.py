"""HaloNet: down-sampling, the shape of its bottleneck, what it refuses."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.backbones.halonet import HaloNet
from manyheads.core.backbones.presets import create_backbone
from manyheads.core.blocks.halo_bottleneck import HaloBottleneck, StridedHaloAttention
from manyheads.core.errors import ArgumentError


@pytest.mark.parametrize("size", [(8, 8), (5, 3), (1, 7)])
def test_strided_attention_is_every_second_cell_of_the_whole(size):
    torch.manual_seed(0)
    strided = StridedHaloAttention(8, 12, heads=4, block=4, halo=1, stride=2).double()
    whole = StridedHaloAttention(8, 12, heads=4, block=4, halo=1).double()
    whole.load_state_dict(strided.state_dict())
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    y = strided(x)
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 12)
    torch.testing.assert_close(y, whole(x)[:, ::2, ::2], rtol=0, atol=1e-12)


def test_a_fresh_bottleneck_is_its_shortcut():
    """The last norm starts at 0, so that a deep network starts as a shallow one."""
    block = HaloBottleneck(6, 8, 8, 6, heads=2, block=4, halo=1)
    x = torch.randn(2, 5, 4, 6)
    torch.testing.assert_close(block(x), torch.nn.functional.silu(x))


def test_images_of_several_sizes_pass_through_one_network():
    model = create_backbone("halonet-nano", classes=3, channels=1).eval()
    for height, width in ((32, 64), (96, 32)):
        features = model.forward_features(torch.randn(1, 1, height, width))
        assert [one.shape[1:3] for one in features] == [(height // s, width // s) for s, _ in model.levels]


def test_there_is_no_map_from_other_code():
    with pytest.raises(ArgumentError, match="halonet: from_reference: this backbone has no map"):
        create_backbone("halonet-nano").from_reference({})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depths": (1, 1, 1)}, "depths: found .*, expected four numbers"),
        ({"width": 24}, "width: found 24, expected a multiple of head_width = 16"),
        ({"output_ratio": 0.3}, "ratio: found 0.3 of the width 64, expected a whole number"),
        ({"block": 3}, "block: found 3, expected a multiple of 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ArgumentError, match=message):
        HaloNet(**config)
