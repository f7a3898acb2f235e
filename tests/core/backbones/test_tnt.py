"""Transformer in Transformer: the authors' weights, and who sees whom."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyheads.core.backbones.presets import create_backbone
from manyheads.core.backbones.tnt import TNT
from manyheads.core.errors import ArgumentError

SMALL = {"dim": 12, "heads": 3, "word_dim": 8, "word_heads": 2, "depth": 2, "patch": 8, "classes": 5}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TNT(**SMALL, image_size=(16, 24)).double().eval()


def test_takes_the_weights_of_the_authors_code(model):
    reference = _Reference(12, 3, 8, 2, 2, patch=8, sentences=6, classes=5).double().eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.load_weights(model.from_reference(reference.state_dict()))
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(model(images), reference(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("preset", "sizes", "published"), [("small", (384, 6, 24, 4), "23.8"), ("base", (640, 10, 40, 4), "65.6")]
)
def test_the_published_count_holds_zeros_that_nothing_uses(preset, sizes, published):
    with torch.device("meta"):
        reference, model = (
            _Reference(*sizes, 12, patch=16, sentences=196, classes=1000),
            create_backbone(f"tnt-{preset}"),
        )
    count, expected = (sum(one.numel() for one in part.parameters()) for part in (model, reference))
    assert f"{expected / 1e6:.1f}" == published
    assert count == expected - 196 * sizes[0]


def test_words_see_their_own_patch_only(model):
    seen = []
    for block in model.blocks:
        block.inner.register_forward_hook(lambda module, inputs, out: seen.append(out.y))
    images = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    changed = images.clone()
    changed[:, :, 8:, 8:16] += 1
    model(images)
    model(changed)
    for before, after in zip(seen[:2], seen[2:], strict=True):
        moved = (before - after).abs().amax((1, 2)) > 1e-9
        assert moved.tolist() == [False, False, False, False, True, False]


def test_without_words_it_is_a_vision_transformer_over_the_sentences(model):
    for block in model.blocks:
        nn.init.zeros_(block.sentences.after.weight)
        nn.init.zeros_(block.sentences.after.bias)
    entered = []
    model.blocks[0].outer.register_forward_hook(lambda module, inputs, out: entered.append(inputs[0]))
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    found, z = model(images), entered[0]
    for block in model.blocks:
        z = block.outer(z).y
    torch.testing.assert_close(found, model.head(model.norm(z)[:, 0]), rtol=0, atol=1e-12)


def test_patches_exchanged_with_their_positions_exchange_the_features(model):
    images = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    turned = torch.cat([images[:, :, 8:], images[:, :, :8]], 2)
    (expected,), logits = model.forward_features(images), model(images)
    with torch.no_grad():
        model.positions.weight.copy_(model.positions.weight.flip(0))
    torch.testing.assert_close(model.forward_features(turned)[0], expected.flip(1), rtol=0, atol=1e-10)
    torch.testing.assert_close(model(turned), logits, rtol=0, atol=1e-10)


def test_takes_images_of_another_size_and_shape(model):
    (features,) = model.forward_features(torch.randn(1, 3, 8, 32, dtype=torch.float64))
    assert features.shape == (1, 1, 4, 12)


def test_words_that_do_not_fit_into_a_patch_are_refused():
    with pytest.raises(ArgumentError, match="word_stride: found 3, expected a divisor of 8"):
        TNT(**SMALL, image_size=16, word_stride=3)


class _Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qk, self.v = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k = self.qk(x).view(batch, tokens, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        v = self.v(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


def _parts(block, name, dim, heads):
    setattr(block, f"{name}_norm1", nn.LayerNorm(dim))
    setattr(block, f"{name}_norm2", nn.LayerNorm(dim))
    setattr(block, f"{name}_attn", _Attention(dim, heads))
    mlp = nn.Module()
    mlp.fc1, mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
    setattr(block, f"{name}_mlp", mlp)


def _run(block, name, x):
    norm1, norm2, attn, mlp = (getattr(block, f"{name}_{part}") for part in ("norm1", "norm2", "attn", "mlp"))
    x = x + attn(norm1(x))
    return x + mlp.fc2(nn.functional.gelu(mlp.fc1(norm2(x))))


class _Reference(nn.Module):
    """TNT with the names of the authors' code, written for this test."""

    def __init__(self, dim, heads, width, word_heads, depth, *, patch, sentences, classes):
        super().__init__()
        self.patch, joined = patch, (patch // 4) ** 2 * width
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 7, padding=3, stride=4)
        self.proj_norm1, self.proj, self.proj_norm2 = nn.LayerNorm(joined), nn.Linear(joined, dim), nn.LayerNorm(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.outer_tokens = nn.Parameter(torch.zeros(1, sentences, dim), requires_grad=False)
        self.outer_pos = nn.Parameter(torch.zeros(1, sentences + 1, dim))
        self.inner_pos = nn.Parameter(torch.zeros(1, joined // width, width))
        self.blocks = nn.ModuleList(nn.Module() for _ in range(depth))
        for block in self.blocks:
            _parts(block, "inner", width, word_heads)
            _parts(block, "outer", dim, heads)
            block.proj_norm1, block.proj_norm2 = nn.LayerNorm(joined), nn.LayerNorm(dim)
            block.proj = nn.Linear(joined, dim, bias=False)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, images):
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).mT
        batch, count, _ = patches.shape
        words = self.patch_embed.proj(patches.reshape(batch * count, 3, self.patch, self.patch))
        y = words.flatten(2).mT + self.inner_pos
        z = self.proj_norm2(self.proj(self.proj_norm1(y.reshape(batch, count, -1))))
        z = torch.cat([self.cls_token.expand(batch, -1, -1), z], 1) + self.outer_pos
        for block in self.blocks:
            y = _run(block, "inner", y)
            told = block.proj_norm2(block.proj(block.proj_norm1(y.reshape(batch, count, -1))))
            z = _run(block, "outer", torch.cat([z[:, :1], z[:, 1:] + told], 1))
        return self.head(self.norm(z)[:, 0])
