"""FFNet: published sizes, the authors' weights, folding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyheads.core.backbones.ffnet import FFNet
from manyheads.core.backbones.presets import find_backbone
from manyheads.core.errors import ArgumentError

SMALL = {"widths": (4, 8, 8), "depths": (1, 2, 1), "token_kernels": (3, 7, 7), "stem": 6, "classes": 5}


def spread(model):
    """Random weights and statistics, in evaluation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                value.copy_(noise.abs() + 0.5 if "var" in name else noise * 0.3 + (value.dim() == 1))
    return model.eval()


@pytest.mark.parametrize(("preset", "published"), [("1", "13.7"), ("2", "26.9"), ("3", "48.3"), ("4", "79.2")])
def test_the_published_counts_are_those_of_the_folded_network(preset, published):
    kind, arguments = find_backbone(f"ffnet-{preset}")
    with torch.device("meta"):
        count = sum(one.numel() for one in kind(**arguments, folded=True).parameters())
    assert f"{count / 1e6:.1f}" == published


@pytest.mark.parametrize(("channel_kernel", "layer_scale"), [(3, None), (7, 1.0)])
def test_takes_the_weights_of_the_authors_code(channel_kernel, layer_scale):
    model = FFNet(**SMALL, channel_kernel=channel_kernel, layer_scale=layer_scale).double().eval()
    reference = spread(_Reference(SMALL, channel_kernel, scaled=layer_scale is not None).double())
    model.load_weights(model.from_reference(reference.state_dict()))
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    torch.testing.assert_close(model(images), reference(images), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("channel_kernel", [3, 7])
def test_the_folded_network_computes_the_same(channel_kernel):
    model = spread(FFNet(**SMALL, channel_kernel=channel_kernel, layer_scale=0.5).double())
    folded, images = model.fuse(), torch.randn(2, 3, 16, 32, dtype=torch.float64)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-8, atol=1e-8)
    for own, other in zip(folded.forward_features(images), model.forward_features(images), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-8)
    assert sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in folded.modules()) == 1
    again = FFNet(**folded.config).double().eval()
    again.load_weights(folded.state_dict())
    assert torch.equal(again(images), folded(images))
    assert torch.equal(folded.fuse()(images), folded(images))
    assert not model.folded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (1, 2)}, "depths: found \\(1, 2\\), expected 3 numbers"),
        ({"widths": (4, 6, 8)}, "widths: found \\(4, 6, 8\\), expected multiples"),
        ({"channel_kernel": 4}, "expected odd sides"),
        ({"token_kernels": (3, 3, 6)}, "kernel: found 6, expected an odd number"),
    ],
)
def test_levels_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ArgumentError, match=message):
        FFNet(**{**SMALL, **change})


class _Normed(nn.Module):
    def __init__(self, inputs, outputs, side=1, stride=1, groups=1):
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn(self.c(x))


class _Pair(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv = _Normed(inputs, outputs, 7, stride, inputs)
        self.conv1 = _Normed(inputs, outputs, 3, stride, inputs)

    def forward(self, x):
        return self.conv(x) + self.conv1(x)


class _Tokens(nn.Module):
    def __init__(self, dim, side):
        super().__init__()
        self.fc = _Normed(dim, dim)
        self.conv1, self.conv2 = (
            _Pair(dim, dim) if side == 7 else nn.Conv2d(dim, dim, side, 1, side // 2, groups=dim) for _ in range(2)
        )

    def forward(self, x):
        return self.conv2(nn.functional.gelu(self.conv1(self.fc(x))))


class _Channels(nn.Module):
    def __init__(self, dim, side):
        super().__init__()
        self.conv = _Pair(dim, dim) if side == 7 else _Normed(dim, dim, side, 1, dim)
        self.fc1, self.fc2 = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(3 * dim, dim, 1)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(self.conv(x))))


class _Residual(nn.Module):
    def __init__(self, main, dim, scaled):
        super().__init__()
        self.main = main
        if scaled:
            self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x):
        y = self.main(x)
        return x + (y * self.layer_scale if hasattr(self, "layer_scale") else y)


class _Join(nn.Module):
    def __init__(self, dim, outputs):
        super().__init__()
        mix = nn.Module()
        mix.conv = nn.Sequential()
        mix.conv.add_module("bn", nn.BatchNorm2d(outputs))
        mix.conv.add_module("c", nn.Conv2d(outputs, outputs, 1, bias=False))
        self.proj = nn.ModuleList([_Pair(dim, outputs, 2), mix])

    def forward(self, x):
        d = self.proj[0](x)
        return d + self.proj[1].conv(d)


class _Block(nn.Module):
    def __init__(self, dim, side, channel_side, scaled):
        super().__init__()
        self.token_mixer = nn.Sequential(_Residual(_Tokens(dim, side), dim, scaled))
        self.channel_mixer = _Residual(_Channels(dim, channel_side), dim, scaled)

    def forward(self, x):
        return self.channel_mixer(self.token_mixer(x))


class _Reference(nn.Module):
    """FFNet with the names of the authors' code, written for this test."""

    def __init__(self, sizes, channel_side, *, scaled):
        super().__init__()
        widths = sizes["widths"]
        self.patch_embed = nn.Sequential(
            _Normed(3, sizes["stem"], 3, 2), nn.GELU(), _Normed(sizes["stem"], widths[0], 3, 2)
        )
        self.stages = nn.ModuleList()
        for level, (dim, depth, side) in enumerate(zip(widths, sizes["depths"], sizes["token_kernels"], strict=True)):
            join = [_Join(widths[level - 1], dim)] if level else []
            self.stages.append(nn.Sequential(*join, *(_Block(dim, side, channel_side, scaled) for _ in range(depth))))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], sizes["classes"])

    def forward(self, images):
        x = self.patch_embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean((2, 3)))
