"""Every image backbone: published sizes, features, export, bad input."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn

from manyheads.core.backbones.image import ImageBackbone
from manyheads.core.backbones.presets import BACKBONES, create_backbone, find_backbone, preset_names
from manyheads.core.backbones.vit import ViT
from manyheads.core.blocks.drop_path import DropPath, drop_path_rates
from manyheads.core.blocks.image_embeddings import interpolated
from manyheads.core.errors import ArgumentError, CheckpointError, UnknownNameError

PUBLISHED = [(name, preset) for name, kind in BACKBONES.items() for preset in kind.info.parameters]


def nano(name: str, **changes: object) -> ImageBackbone:
    torch.manual_seed(0)
    return create_backbone(f"{name}-nano", classes=10, channels=1, **changes).eval()


def images_for(model: ImageBackbone, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, *size_of(model), generator=torch.Generator().manual_seed(1))


def size_of(model: ImageBackbone) -> tuple[int, int]:
    size = model.config.get("image_size", 32)
    return (size, size) if isinstance(size, int) else tuple(size)


@pytest.mark.parametrize(("name", "preset"), PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name, preset):
    published = BACKBONES[name].info.parameters[preset]
    with torch.device("meta"):
        count = sum(one.numel() for one in create_backbone(f"{name}-{preset}").parameters())
    if isinstance(published, int):
        assert count == published
    else:
        digits = len(published.rstrip("M").partition(".")[2])
        assert f"{count / 1e6:.{digits}f}M" == published


@pytest.mark.parametrize("name", BACKBONES)
def test_features_have_the_strides_and_widths_of_the_levels(name):
    model = nano(name)
    features = model.forward_features(images_for(model))
    height, width = size_of(model)
    expected = [(2, height // level.stride, width // level.stride, level.width) for level in model.levels]
    assert [tuple(one.shape) for one in features] == expected
    assert list(model.levels) == sorted(model.levels, key=lambda level: level.stride)


@pytest.mark.parametrize("name", BACKBONES)
def test_rows_of_a_batch_are_independent(name):
    model = nano(name).double()
    images = images_for(model, 3).double()
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_gets_a_gradient(name):
    model = nano(name)
    model.train()
    model(images_for(model, 4)).square().sum().backward()
    missing = [key for key, one in model.named_parameters() if one.grad is None]
    assert not missing


@pytest.mark.parametrize("name", BACKBONES)
def test_a_copy_and_a_rebuilt_model_compute_the_same(name):
    model = nano(name)
    again = type(model)(**model.config).eval()
    again.load_weights(model.state_dict())
    images = images_for(model)
    for other in (again, copy.deepcopy(model)):
        torch.testing.assert_close(other(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_compiles_unless_the_info_says_why_not(name):
    model = nano(name)
    if model.info.compiles:
        pytest.skip(model.info.compiles)
    images = images_for(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("name", BACKBONES)
def test_exports_with_a_batch_of_any_size_unless_the_info_says_why_not(name):
    model = nano(name)
    if model.info.exports:
        pytest.skip(model.info.exports)
    exported = torch.export.export(model, (images_for(model),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    images = images_for(model, 5)
    torch.testing.assert_close(exported.module()(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_vit_with_a_class_token_exports_with_a_batch_of_any_size():
    model = nano("vit", pool="token")
    exported = torch.export.export(model, (images_for(model),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    images = images_for(model, 5)
    torch.testing.assert_close(exported.module()(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_runs_in_onnx_runtime_unless_the_info_says_why_not(name):
    model = nano(name)
    if model.info.onnx:
        pytest.skip(model.info.onnx)
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None:
        pytest.skip("needs onnxruntime and onnxscript")
    import onnxruntime

    images = images_for(model)
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_bad_images_raise_in_words(name):
    model = nano(name)
    height, width = size_of(model)
    for images, words in (
        (torch.zeros(2, 3, height, width), "3 channels, expected 1"),
        (torch.zeros(2, 1, 1, width), "pixels, expected"),
        (torch.zeros(2, height, width), "expected a floating point tensor"),
        (torch.zeros(2, 1, height, width, dtype=torch.int64), "expected a floating point tensor"),
        (torch.zeros(2, 1, height, width, dtype=torch.float64), "as the weights"),
    ):
        with pytest.raises(ArgumentError, match=words):
            model(images)


def test_weights_without_their_head_start_other_classes():
    model, other = create_backbone("vit-nano", classes=10), create_backbone("vit-nano", classes=3)
    head = other.head.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"head.bias: found shape .* load them with head=False"):
        other.load_weights(model.state_dict())
    other.load_weights(model.state_dict(), head=False)
    assert torch.equal(other.patches.project.weight, model.patches.project.weight)
    assert torch.equal(other.head.weight, head)
    with pytest.raises(ArgumentError, match=r"state: found .*, expected tensors by name"):
        other.load_weights("weights.safetensors")


@pytest.mark.parametrize("layer", ["axial", "hyena-nd", "spectral-gate", "routing"])
def test_a_preset_takes_another_layer(layer):
    with torch.device("meta"):
        model = create_backbone("vit-tiny", layer=layer, classes=5)
    assert (model.config["pool"], model.config["layer"]) == ("mean", layer)


def test_the_name_of_a_backbone_alone_lists_its_presets():
    with pytest.raises(UnknownNameError, match=r"unknown backbone 'vit': .*vit-(tiny|small|base|nano)"):
        create_backbone("vit")


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_of_another_size_name_the_tensor_and_both_shapes(name):
    model = nano(name)
    state = dict(model.state_dict())
    key = next(reversed(state))
    state[key] = state[key].new_zeros(*state[key].shape, 2)
    with pytest.raises(
        CheckpointError, match=f"{key}: found shape .*, expected shape .* (another preset|other classes)"
    ):
        model.load_weights(state)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UnknownNameError, match="vit-small"):
        create_backbone("vit-smal")
    assert find_backbone("vit-tiny")[0] is ViT
    assert set(preset_names()) >= {"vit-tiny", "vit-nano"}


def test_a_vit_takes_the_weights_of_deit():
    model = ViT(dim=12, heads=3, depth=2, patch=4, image_size=8, pool="token", classes=5, options={"bias": True})
    reference = _Deit(12, 3, 2).eval()
    model.load_weights(model.from_reference(reference.state_dict()))
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.eval()(images), reference(images), rtol=1e-5, atol=1e-5)


class _Deit(nn.Module):
    """DeiT with the names of timm, written for this test."""

    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, dim))
        self.blocks = nn.ModuleList(nn.Module() for _ in range(depth))
        self.heads = heads
        for block in self.blocks:
            block.norm1, block.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            block.attn, block.mlp = nn.Module(), nn.Module()
            block.attn.qkv, block.attn.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 5)

    def forward(self, images):
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            n, (b, t, d) = block.norm1(x), x.shape
            q, k, v = block.attn.qkv(n).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5).softmax(-1)
            x = x + block.attn.proj((weights @ v).transpose(1, 2).reshape(b, t, d))
            x = x + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(x))))
        return self.head(self.norm(x)[:, 0])


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    path = DropPath(0.25)
    y = path(torch.ones(4000, 3))
    assert torch.equal(y[:, 0], y[:, 2])
    assert sorted(y.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(path.eval()(y), y)
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])


def test_interpolated_positions_of_the_same_size_are_the_same():
    grid = torch.randn(3, 5, 2)
    assert interpolated(grid, (3, 5)) is grid
    assert interpolated(torch.ones(3, 5, 2), (7, 4)).shape == (7, 4, 2)
    torch.testing.assert_close(interpolated(torch.ones(3, 5, 2), (7, 4)), torch.ones(7, 4, 2))
