"""SpectFormer, both forms: weights of the authors' code, other image sizes, the token head."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from manyheads.core.backbones.presets import create_backbone
from manyheads.core.backbones.spectformer import SpectFormer, SpectFormerHierarchical
from manyheads.core.errors import ArgumentError
from manyheads.core.layers.spectral_gate import SpectralGate

SMALL = {"dims": (4, 6, 8, 12), "heads": (1, 1, 2, 3), "depths": (1, 2, 1, 1), "stem": 4, "classes": 5}


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def gates(model):
    return sum(isinstance(module, SpectralGate) for module in model.modules())


@pytest.mark.parametrize(("preset", "spectral", "attention"), [("tiny", 4, 8), ("small", 4, 15)])
def test_the_first_four_blocks_are_spectral(preset, spectral, attention):
    with torch.device("meta"):
        model = create_backbone(f"spectformer-{preset}")
    assert gates(model) == spectral
    assert len(model.blocks) - spectral == attention


def test_the_first_two_stages_are_spectral_and_there_are_four_levels():
    with torch.device("meta"):
        model = create_backbone("spectformer-hierarchical-large")
    assert gates(model) == 3 + 6
    assert [tuple(level) for level in model.levels] == [(4, 96), (8, 192), (16, 384), (32, 512)]
    assert (model.stages[0][0].layer.height, model.stages[1][0].layer.width) == (56, 28)


def test_without_spectral_blocks_images_have_any_size():
    model = SpectFormer(dim=8, depth=2, spectral=0, patch=4, image_size=8, classes=3)
    assert model(normal(1, 3, 12, 8)).shape == (1, 3)
    with pytest.raises(ArgumentError, match="found 12 x 8 pixels, expected 8 x 8"):
        SpectFormer(dim=8, depth=2, spectral=1, patch=4, image_size=8, classes=3)(normal(1, 3, 12, 8))


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (SpectFormer, {"image_size": 30, "patch": 4}, "image_size: found 30 x 30, expected multiples of 4"),
        (SpectFormer, {"depth": 2, "spectral": 3}, "spectral: found 3, expected 0 to depth = 2"),
        (SpectFormerHierarchical, {"image_size": 48}, "image_size: found 48 x 48, expected multiples of 32"),
        (SpectFormerHierarchical, {"depths": (1, 1)}, r"depths: found \(1, 1\), expected one for each of 4 dims"),
        (SpectFormerHierarchical, {"spectral": 5}, "and 5 spectral stages, expected one stage or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind, config, message):
    with pytest.raises(ArgumentError, match=message):
        kind(**config)


@pytest.mark.parametrize("name", ["spectformer-nano", "spectformer-hierarchical-nano"])
def test_a_resized_backbone_takes_another_size_and_comes_back(name):
    model = create_backbone(name, classes=10, channels=1).double().eval()
    wide = model.resized((64, 96))
    assert wide(normal(2, 1, 64, 96).double()).shape == (2, 10)
    assert not wide.training
    images = normal(2, 1, 32, 32).double()
    torch.testing.assert_close(model.resized(32)(images), model(images), rtol=0, atol=1e-12)
    for ours, theirs in zip(wide.modules(), model.modules(), strict=True):
        if isinstance(ours, SpectralGate):
            x = normal(1, theirs.height, theirs.width, theirs.dim).double()
            back = ours.resized(theirs.height, theirs.width)
            torch.testing.assert_close(back(x).y, theirs(x).y, rtol=0, atol=1e-10)


def test_logits_take_in_half_of_the_largest_logit_of_a_token():
    model = SpectFormerHierarchical(image_size=64, **SMALL).eval()
    images = normal(2, 3, 64, 64)
    image, tokens = model.token_logits(images)
    assert tokens.shape == (2, 2, 2, 5)
    torch.testing.assert_close(model(images), image + 0.5 * tokens.flatten(1, 2).max(1).values)
    plain = SpectFormerHierarchical(image_size=64, token_labelling=False, **SMALL).eval()
    plain.load_weights({k: v for k, v in model.state_dict().items() if not k.startswith("token_head.")})
    torch.testing.assert_close(plain(images), image)
    with pytest.raises(ArgumentError, match="token_logits: found no token head"):
        plain.token_logits(images)


def test_takes_the_weights_of_the_authors_vanilla_code():
    model = SpectFormer(dim=12, heads=3, depth=3, spectral=2, patch=4, image_size=20, classes=5).eval()
    reference = _randomised(_Vanilla(12, 3, 3, 2))
    model.load_weights(model.from_reference(reference.state_dict()))
    images = normal(2, 3, 20, 20)
    torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-5)


def test_takes_the_weights_of_the_authors_hierarchical_code():
    model = SpectFormerHierarchical(image_size=64, **SMALL).eval()
    reference = _randomised(_Hierarchical())
    model.load_weights(model.from_reference(reference.state_dict()))
    images = normal(2, 3, 64, 64)
    torch.testing.assert_close(model(images), reference(images), rtol=1e-4, atol=1e-4)


def _randomised(module):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for one in module.parameters():
            one.add_(0.2 * torch.randn(one.shape, generator=generator))
    return module.eval()


# The authors' module trees, stated again for these tests: names and shapes of their state dicts.


def _named(**children):
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def _gate(height, width, dim):
    return _named(complex_weight=nn.Parameter(torch.randn(height, width // 2 + 1, dim, 2) * 0.02))


def _gated(filter, x):
    spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(filter.complex_weight)
    return torch.fft.irfft2(spectrum, s=x.shape[1:3], dim=(1, 2), norm="ortho")


def _attended(q, k, v, heads):
    b, t, d = q.shape
    q, k, v = (part.reshape(b, -1, heads, d // heads).transpose(1, 2) for part in (q, k, v))
    weights = (q @ k.transpose(-2, -1) / (d // heads) ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(b, t, d)


class _Vanilla(nn.Module):
    def __init__(self, dim, heads, depth, alpha):
        super().__init__()
        self.heads = heads
        self.patch_embed = _named(proj=nn.Conv2d(3, dim, 4, stride=4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 25, dim))
        self.blocks = nn.ModuleList()
        for index in range(depth):
            mlp = _named(fc1=nn.Linear(dim, 4 * dim), fc2=nn.Linear(4 * dim, dim))
            norms = {"norm1": nn.LayerNorm(dim, eps=1e-6), "norm2": nn.LayerNorm(dim, eps=1e-6)}
            attention = _named(qkv=nn.Linear(dim, 3 * dim), proj=nn.Linear(dim, dim))
            mixer = {"filter": _gate(5, 5, dim)} if index < alpha else {"attn": attention}
            self.blocks.append(_named(mlp=mlp, **norms, **mixer))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 5)

    def forward(self, images):
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:

            def mlp(y, block=block):
                return block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(y))))

            y = block.norm1(x)
            if hasattr(block, "filter"):
                x = x + mlp(_gated(block.filter, y.view(len(y), 5, 5, -1)).view(y.shape))
            else:
                x = x + block.attn.proj(_attended(*block.attn.qkv(y).chunk(3, -1), self.heads))
                x = x + mlp(x)
        return self.head(self.norm(x).mean(1))


class _Hierarchical(nn.Module):
    def __init__(self):
        super().__init__()
        dims, self.heads, self.depths, stem = SMALL["dims"], SMALL["heads"], SMALL["depths"], SMALL["stem"]
        for stage, dim in enumerate(dims):
            if stage == 0:
                convolutions = []
                for inputs, kernel, stride in ((3, 7, 2), (stem, 3, 1), (stem, 3, 1)):
                    convolutions.append(nn.Conv2d(inputs, stem, kernel, stride, kernel // 2, bias=False))
                    convolutions += [nn.BatchNorm2d(stem), nn.ReLU()]
                embed = _named(conv=nn.Sequential(*convolutions))
            else:
                embed = nn.Module()
            embed.proj = nn.Conv2d(stem if stage == 0 else dims[stage - 1], dim, 3, 2, 1)
            embed.norm = nn.LayerNorm(dim)
            setattr(self, f"patch_embed{stage + 1}", embed)
            hidden = (8, 8, 4, 4)[stage] * dim
            blocks = nn.ModuleList()
            for _ in range(self.depths[stage]):
                if stage < 2:
                    mixer = _gate(16 // 2**stage, 16 // 2**stage, dim)
                else:
                    mixer = _named(q=nn.Linear(dim, dim), kv=nn.Linear(dim, 2 * dim), proj=nn.Linear(dim, dim))
                convolution = _named(dwconv=nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden))
                mlp = _named(fc1=nn.Linear(dim, hidden), dwconv=convolution, fc2=nn.Linear(hidden, dim))
                norms = {"norm1": nn.LayerNorm(dim, eps=1e-6), "norm2": nn.LayerNorm(dim, eps=1e-6)}
                blocks.append(_named(attn=mixer, mlp=mlp, **norms))
            setattr(self, f"block{stage + 1}", blocks)
            setattr(self, f"norm{stage + 1}", nn.LayerNorm(dim, eps=1e-6))
        mixer = _named(q=nn.Linear(dim, dim), kv=nn.Linear(dim, 2 * dim), proj=nn.Linear(dim, dim))
        mlp = _named(fc1=nn.Linear(dim, 4 * dim), fc2=nn.Linear(4 * dim, dim))
        norms = {"norm1": nn.LayerNorm(dim, eps=1e-6), "norm2": nn.LayerNorm(dim, eps=1e-6)}
        self.post_network = nn.ModuleList([_named(attn=mixer, mlp=mlp, **norms)])
        self.head, self.aux_head = nn.Linear(dim, 5), nn.Linear(dim, 5)

    def forward(self, images):
        x = self.patch_embed1.conv(images)
        for stage in range(4):
            embed = getattr(self, f"patch_embed{stage + 1}")
            x = embed.proj(x)
            grid = x.shape[2:]
            x = embed.norm(x.flatten(2).transpose(1, 2))
            for block in getattr(self, f"block{stage + 1}"):
                y = block.norm1(x)
                if stage < 2:
                    x = x + _gated(block.attn, y.view(len(y), *grid, -1)).view(y.shape)
                else:
                    k, v = block.attn.kv(y).chunk(2, -1)
                    x = x + block.attn.proj(_attended(block.attn.q(y), k, v, self.heads[stage]))
                y = block.mlp.fc1(block.norm2(x)).transpose(1, 2)
                y = block.mlp.dwconv.dwconv(y.reshape(*y.shape[:2], *grid)).flatten(2).transpose(1, 2)
                x = x + block.mlp.fc2(functional.gelu(y))
            if stage < 3:
                x = getattr(self, f"norm{stage + 1}")(x)
                x = x.transpose(1, 2).reshape(len(x), -1, *grid)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        (block,) = self.post_network
        y = block.norm1(x)
        k, v = block.attn.kv(y).chunk(2, -1)
        token = x[:, :1] + block.attn.proj(_attended(block.attn.q(y[:, :1]), k, v, self.heads[-1]))
        token = token + block.mlp.fc2(functional.gelu(block.mlp.fc1(block.norm2(token))))
        x = self.norm4(torch.cat([token, x[:, 1:]], 1))
        return self.head(x[:, 0]) + 0.5 * self.aux_head(x[:, 1:]).max(1).values
