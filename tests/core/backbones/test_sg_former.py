"""SG-Former: weights of the authors' code, positions, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from manyheads.core.backbones.presets import create_backbone
from manyheads.core.backbones.sg_former import SGFormer
from manyheads.core.errors import ArgumentError


def test_it_takes_the_weights_of_the_authors_code():
    """With the paper's reductions, windows and groups, for which an image has 224 pixels."""
    torch.manual_seed(0)
    reference = _Reference(8, (2, 4, 4, 8), (2, 2, 4, 2)).double().eval()
    model = SGFormer(dim=8, heads=(2, 4, 4, 8), depths=(2, 2, 4, 2), classes=5).double().eval()
    model.load_weights(model.from_reference(reference.state_dict()))
    images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    torch.testing.assert_close(model(images), reference(images), rtol=1e-9, atol=1e-9)


def test_positions_start_as_sines_of_the_column_and_of_the_row():
    positions = create_backbone("sg-former-nano", dim=8).positions.weight
    for row, column in ((3, 5), (7, 0)):
        expected = [math.sin(column), math.sin(column / 100), math.cos(column), math.cos(column / 100)]
        expected += [math.sin(row), math.sin(row / 100), math.cos(row), math.cos(row / 100)]
        torch.testing.assert_close(positions[row, column], torch.tensor(expected))


def test_images_of_several_sizes_pass_through_one_network():
    model = create_backbone("sg-former-nano", classes=3, channels=1).eval()
    for height, width in ((32, 64), (96, 32)):
        features = model.forward_features(torch.randn(1, 1, height, width))
        assert [one.shape[1:3] for one in features] == [(height // s, width // s) for s, _ in model.levels]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depths": (1, 1, 1)}, "depths: found .*, expected 4 numbers of 1 or more"),
        ({"ratios": (8, 4, 1)}, "ratios: found .*, expected 3 numbers of 2 or more"),
        ({"heads": (2, 4, 8, 7)}, "heads: found 7 in stage 4, expected a divisor of its width 512"),
        ({"image_size": 100}, "image_size: found 100 x 100, expected multiples of 32"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ArgumentError, match=message):
        SGFormer(**config)


# SG-Former with the names of the authors' code, written for this test.

GROUPS = {8: (196, 56, 28), 4: (49, 14, 7), 2: (2, 1)}


def _convolution(*given, **more):
    both = nn.Module()
    both.c, both.bn = nn.Conv2d(*given, bias=False, **more), nn.GroupNorm(1, given[1])
    return both


def _run(one, x):
    return one.bn(one.c(x))


class _Reference(nn.Module):
    def __init__(self, dim, heads, depths):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 56 * 56, dim))
        for stage, (count, depth) in enumerate(zip(heads, depths, strict=True)):
            width, embed = dim * 2**stage, nn.Module()
            if stage == 0:
                first, second = _convolution(3, width, 3, 2, 1), _convolution(width, width, 3, 1, 1)
                third = _convolution(width, width, 3, 2, 1)
                embed.conv = nn.ModuleList([first, nn.GELU(), second, nn.GELU(), third])
                embed.norm = nn.LayerNorm(width)
            else:
                embed.conv1 = _convolution(width // 2, width, 1)
                embed.conv2 = _convolution(width, width, 3, 2, 1, groups=width)
                embed.conv3 = _convolution(width, width, 1)
            setattr(self, f"patch_embed{stage + 1}", embed)
            blocks = [_Block(width, count, (8, 4, 2, 1)[stage], place % 2 == 1 and stage < 3) for place in range(depth)]
            setattr(self, f"block{stage + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{stage + 1}", nn.LayerNorm(width, eps=1e-6))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        for stage in range(1, 5):
            embed = getattr(self, f"patch_embed{stage}")
            for place, name in enumerate(("0", "2", "4") if stage == 1 else ("1", "2", "3")):
                x = _run(embed.conv[int(name)] if stage == 1 else getattr(embed, f"conv{name}"), x)
                x = functional.gelu(x) if place < 2 else x
            side = x.shape[-1]
            x = x.flatten(2).transpose(1, 2)
            if stage == 1:
                x = embed.norm(x) + self.pos_embed
            significance = None
            for block in getattr(self, f"block{stage}"):
                x, significance = block(x, side, significance)
            x = getattr(self, f"norm{stage}")(x)
            tokens = x
            x = x.transpose(1, 2).unflatten(2, (side, side))
        return self.head(tokens.mean(1))


class _Block(nn.Module):
    def __init__(self, dim, heads, ratio, guided):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.heads, self.ratio, self.guided, attn = heads, ratio, guided, self.attn
        attn.lepe_linear, attn.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        attn.lepe_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        if ratio == 1:
            attn.q, attn.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        else:
            attn.kv1, attn.kv2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        if guided:
            attn.q = nn.Linear(dim, dim)
            for place, size in enumerate(GROUPS[ratio]):
                setattr(attn, f"f{place + 1}", nn.Linear(size, 1))
        elif ratio > 1:
            attn.sr, attn.norm = nn.Conv2d(dim, dim, ratio, stride=ratio), nn.LayerNorm(dim)
            attn.q1, attn.q2 = nn.Linear(dim, dim // 2), nn.Linear(dim, dim // 2)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp.dwconv = nn.Module()
        self.mlp.dwconv.dwconv = nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim)

    def forward(self, x, side, significance):
        mixed, significance = self._mixed(self.norm1(x), side, significance)
        x = x + mixed
        h = self.mlp.fc1(self.norm2(x))
        h = functional.gelu(h + _over_grid(self.mlp.dwconv.dwconv, h, side))
        return x + self.mlp.fc2(h), significance

    def _split(self, x, heads):
        return x.unflatten(-1, (heads, -1)).transpose(-2, -3)

    def _weights(self, q, k):
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)

    def _mixed(self, x, side, significance):
        attn, half, found = self.attn, self.heads // 2, None
        lepe = _over_grid(attn.lepe_conv, attn.lepe_linear(x), side)
        if self.ratio == 1:
            q, (k, v) = (
                self._split(attn.q(x), self.heads),
                (self._split(p, self.heads) for p in attn.kv(x).chunk(2, -1)),
            )
            out = (self._weights(q, k) @ v).transpose(1, 2).flatten(2)
        elif self.guided:
            keys, values = [], []
            for order, kv in zip((False, True), (attn.kv1, attn.kv2), strict=True):
                k, v = kv(self._merged(x, side, significance, by_column=order)).chunk(2, -1)
                keys.append(self._split(k, half))
                values.append(self._split(v, half))
            weights = self._weights(self._split(attn.q(x), self.heads), torch.cat(keys, 1))
            out = (weights @ torch.cat(values, 1)).transpose(1, 2).flatten(2)
        else:
            image = x.transpose(1, 2).unflatten(2, (side, side))
            tokens = functional.gelu(attn.norm(attn.sr(image).flatten(2).transpose(1, 2)))
            k, v = (self._split(part, half) for part in attn.kv1(tokens).chunk(2, -1))
            far = self._weights(self._split(attn.q1(x), half), k)
            coarse = (far @ v).transpose(1, 2).flatten(2)
            q, k, v = (_windows(part, side) for part in (attn.q2(x), *attn.kv2(x).chunk(2, -1)))
            near = self._weights(self._split(q, half), self._split(k, half))
            fine = (near @ self._split(v, half)).transpose(-2, -3).flatten(-2)
            out = torch.cat([coarse, _unwindowed(fine, side)], -1)
            few = side // self.ratio
            spread = functional.interpolate(far.mean((1, 2)).view(-1, 1, few, few), (side, side))[:, 0]
            found = spread + _unwindowed(near.mean((-3, -2)).unsqueeze(-1), side).view_as(spread)
        return attn.proj(out + lepe), found

    def _merged(self, x, side, significance, *, by_column):
        if by_column:
            x = x.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
            significance = significance.transpose(1, 2)
        order = significance.flatten(1).sort(1).indices
        ranked = torch.stack([row[index] for row, index in zip(x, order, strict=True)])
        sizes = GROUPS[self.ratio]
        parts = ranked.split([side**2 // 4, side**2 // 2, side**2 // 4] if len(sizes) == 3 else side**2 // 2, 1)
        merged = []
        for place, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            merge = getattr(self.attn, f"f{place + 1}")
            merged.append(merge(part.unflatten(1, (-1, size)).transpose(2, 3)).squeeze(-1))
        return torch.cat(merged, 1)


def _over_grid(convolution, x, side):
    return convolution(x.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)


def _windows(x, side, window=7):
    count = side // window
    return x.view(len(x), count, window, count, window, -1).transpose(2, 3).reshape(len(x), count**2, window**2, -1)


def _unwindowed(x, side, window=7):
    count = side // window
    return x.view(len(x), count, count, window, window, -1).transpose(2, 3).reshape(len(x), side**2, -1)
