"""Depthwise convolutions against torch's own, and their folding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from manyheads.core.blocks.depthwise import DepthwiseConvolution
from manyheads.core.errors import ArgumentError


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 5)])
def test_one_branch_is_a_grouped_convolution(kernel, stride):
    layer, x = DepthwiseConvolution(4, kernel, outputs=8, stride=stride).double(), normal(2, 6, 8, 4)
    around = (kernel[0] // 2, kernel[1] // 2)
    images = x.permute(0, 3, 1, 2)
    expected = functional.conv2d(images, layer.large.weight, layer.large.bias, stride, around, groups=4)
    torch.testing.assert_close(layer(x), expected.permute(0, 2, 3, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_pair_folds_into_one_convolution(stride, norm):
    layer = DepthwiseConvolution(3, (7, 5), small=(3, 1), outputs=6, stride=stride, norm=norm).double()
    x = normal(2, 8, 6, 3)
    for _ in range(3):
        layer(x)
    layer.eval()
    fused = layer.fused()
    assert fused.small is None
    assert fused.large_norm is None
    torch.testing.assert_close(fused(x), layer(x), rtol=0, atol=1e-12)
    if stride == 1:
        torch.testing.assert_close(fused(x, pad=False), layer(x, pad=False), rtol=0, atol=1e-12)
        torch.testing.assert_close(layer(x, pad=False), layer(x)[:, 3:-3, 2:-2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kernel": (4, 3)}, "expected odd sides"),
        ({"kernel": (3, 3), "small": (3, 5)}, "small: found \\(3, 5\\), expected one that fits"),
        ({"kernel": (3, 3), "small": (3, 3)}, "small: found \\(3, 3\\), expected one that fits"),
        ({"kernel": (3, 3), "outputs": 5}, "a multiple of the channels"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ArgumentError, match=message):
        DepthwiseConvolution(4, **config)
