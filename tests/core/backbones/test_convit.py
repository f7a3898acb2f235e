"""ConViT: the authors' weights, and its local start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyheads.core.backbones.convit import ConViT
from manyheads.core.errors import ArgumentError


def test_takes_the_weights_of_the_authors_code():
    model = ConViT(dim=18, heads=9, depth=3, local=2, patch=4, image_size=16, classes=5).eval()
    reference = _Reference(18, 9, 3, 2, patch=4, size=4, classes=5).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.load_weights(model.from_reference(reference.state_dict()))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images), reference(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dim", "heads"), [(192, 4), (432, 9), (768, 16)])
def test_has_the_parameters_of_the_authors_code_but_the_biases_that_softmax_does_not_see(dim, heads):
    with torch.device("meta"):
        model, reference = ConViT(dim=dim, heads=heads), _Reference(dim, heads, 12, 10, patch=16, size=14, classes=1000)
    count, expected = (sum(one.numel() for one in part.parameters()) for part in (model, reference))
    assert count == expected - 10 * heads


def test_takes_images_of_another_size_and_shape():
    model = ConViT(dim=8, heads=4, depth=2, local=1, patch=4, image_size=(8, 12), classes=3)
    (features,) = model.forward_features(torch.randn(1, 3, 16, 8))
    assert features.shape == (1, 4, 2, 8)


def test_needs_a_block_for_the_class_token():
    with pytest.raises(ArgumentError, match="local: found 3 of 3 blocks, expected fewer"):
        ConViT(dim=8, heads=4, depth=3, local=3, patch=4, image_size=8)


class _Attention(nn.Module):
    def __init__(self, dim, heads, near):
        super().__init__()
        self.heads, self.near = heads, near
        if near:
            self.qk, self.v = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, dim, bias=False)
            self.pos_proj, self.gating_param = nn.Linear(3, heads), nn.Parameter(torch.ones(heads))
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        joined = torch.cat([self.qk(x), self.v(x)], -1) if self.near else self.qkv(x)
        q, k, v = joined.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        if self.near:
            side = int(tokens**0.5)
            place = torch.cartesian_prod(torch.arange(side), torch.arange(side))
            down, right = (place[None] - place[:, None]).unbind(-1)
            relative = torch.stack([right, down, right**2 + down**2], -1).float()
            gate = self.gating_param.sigmoid()[:, None, None]
            weights = (1 - gate) * weights + gate * self.pos_proj(relative).permute(2, 0, 1).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class _Reference(nn.Module):
    """ConViT with the names of the authors' code, written for this test."""

    def __init__(self, dim, heads, depth, near, *, patch, size, classes):
        super().__init__()
        self.near = near
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, size**2, dim))
        self.blocks = nn.ModuleList(nn.Module() for _ in range(depth))
        for index, block in enumerate(self.blocks):
            block.norm1, block.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            block.attn, block.mlp = _Attention(dim, heads, index < near), nn.Module()
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)

    def forward(self, images):
        x = self.patch_embed.proj(images).flatten(2).mT + self.pos_embed
        for index, block in enumerate(self.blocks):
            if index == self.near:
                x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            x = x + block.attn(block.norm1(x))
            x = x + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(x))))
        return self.head(self.norm(x)[:, 0])
