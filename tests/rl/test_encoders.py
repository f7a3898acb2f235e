"""Encoders: every observation space, images in both layouts, pretrained weights; action spaces and distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import save_file

from manyheads.core.backbones.vit import ViT
from manyheads.core.errors import ArgumentError, CheckpointError, DataError, UnknownNameError
from manyheads.lab.data.fields import plain
from manyheads.lab.data.storage import save_tensors
from manyheads.rl import Agent
from manyheads.rl.encoders import build_encoder, to_tensors
from manyheads.rl.encoders.images import small
from manyheads.rl.encoders.observations import image_shape, is_single, leaves, single
from manyheads.rl.encoders.vectors import RunningNorm
from manyheads.rl.policies import ActionHead
from manyheads.rl.policies.distributions import Categorical, Gaussian
from tests.rl.toys import Anything

BYTES = {"dtype": np.uint8}
IMAGE, CHW = spaces.Box(0, 255, (42, 42, 3), **BYTES), spaces.Box(0, 255, (4, 42, 42), **BYTES)
SPACES: dict[str, spaces.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (5,), np.float32),
    "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "number": spaces.Box(-1, 1, (), np.float32),
    "discrete": spaces.Discrete(7, start=-2),
    "multi-discrete": spaces.MultiDiscrete([3, 4], start=[1, -1]),
    "grid of choices": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "multi-binary": spaces.MultiBinary(6),
    "image": IMAGE,
    "channels first": CHW,
    "grey": spaces.Box(0, 255, (42, 42), **BYTES),
    "dict": spaces.Dict({"camera": IMAGE, "body.speed": spaces.Box(-1, 1, (2,)), "mode": spaces.Discrete(3)}),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Dict({"a": spaces.MultiBinary(2), "b": CHW})]),
}


def _batch(space: spaces.Space[Any], count: int) -> Any:
    from gymnasium.vector.utils import concatenate, create_empty_array

    space.seed(0)
    return concatenate(space, [space.sample() for _ in range(count)], create_empty_array(space, count))


@pytest.mark.parametrize("label", SPACES)
def test_every_space_is_encoded_row_by_row(label: str):
    space = SPACES[label]
    name = (
        "small-cnn"
        if any(len(one.shape or ()) > 1 and one.dtype == np.uint8 for one in leaves(space).values())
        else "auto"
    )
    encoder = build_encoder(name, space, 24)
    tensors = to_tensors(space, _batch(space, 5))
    y = encoder(tensors)
    assert y.shape == (5, 24)
    last = encoder({key: one[4:] for key, one in tensors.items()})
    torch.testing.assert_close(last, y[4:], rtol=1e-5, atol=1e-5)
    assert (y - y[:1]).abs().max() > 0
    y.sum().backward()
    assert all(one.grad is not None for one in encoder.parameters())


@pytest.mark.parametrize("label", SPACES)
def test_single_observations_are_told_from_batches(label: str):
    space = SPACES[label]
    space.seed(1)
    one = space.sample()
    assert is_single(space, one)
    assert not is_single(space, _batch(space, 3))
    assert all(len(tensor) == 1 for tensor in to_tensors(space, single(space, one)).values())


def test_both_layouts_of_an_image_give_the_same_bytes():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 42, 42, 4), dtype=np.uint8)
    last = to_tensors(spaces.Box(0, 255, (42, 42, 4), **BYTES), pixels)["observation"]
    first = to_tensors(CHW, pixels.transpose(0, 3, 1, 2))["observation"]
    assert torch.equal(last, first)
    assert first.dtype == torch.uint8
    assert first.is_contiguous()
    assert image_shape(CHW) == (42, 42, 4)


def test_discrete_values_are_counted_from_zero():
    assert to_tensors(SPACES["discrete"], np.array([-2, 4]))["observation"].tolist() == [0, 6]
    encoder = build_encoder("auto", SPACES["discrete"], 8)
    with torch.no_grad():
        encoder.vectors.maps[0].weight.copy_(torch.eye(8)[:, :7])  # ty: ignore
        encoder.vectors.maps[0].bias.zero_()  # ty: ignore
    assert encoder(torch.tensor([6])).argmax().item() == 6


@pytest.mark.parametrize("name", ["nature-cnn", "small-cnn", "impala-resnet", "vit-nano", "halonet-nano"])
def test_image_encoders_by_name(name: str):
    space = spaces.Box(0, 255, (84, 84, 2), **BYTES)
    encoder = build_encoder(name, space, 16)
    y = encoder(to_tensors(space, _batch(space, 2)))
    assert y.shape == (2, 16)
    y.sum().backward()
    assert all(one.grad is not None for one in encoder.parameters() if one.requires_grad)


def test_nature_cnn_has_the_published_number_of_parameters():
    encoder = build_encoder("nature-cnn", spaces.Box(0, 255, (4, 84, 84), **BYTES), 512)
    # 8x8x4x32 + 32, 4x4x32x64 + 64, 3x3x64x64 + 64, 3136x512 + 512
    assert sum(one.numel() for one in encoder.parameters()) == 8224 + 32832 + 36928 + 1606144


def test_running_normalisation_equals_that_of_all_values():
    norm, values = RunningNorm(3), torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    before = norm(values)
    for part in values.split([1, 99, 400, 500]):
        norm.update(part)
    torch.testing.assert_close(norm.mean, values.double().mean(0))
    torch.testing.assert_close(norm.variance, values.double().var(0, unbiased=False))
    assert norm(values).std().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(before, values.clamp(-10, 10))


def test_pretrained_weights_are_loaded_and_frozen(tmp_path: Path):
    torch.manual_seed(5)
    network = small(3)
    path = tmp_path / "encoder.safetensors"
    save_file({name: one.contiguous() for name, one in network.state_dict().items()}, path)
    encoder = build_encoder("small-cnn", IMAGE, 16, weights=path, frozen=True)
    own = encoder.pictures[0].network.state_dict()  # ty: ignore
    for name, one in network.state_dict().items():
        assert torch.equal(own[name], one)
    encoder(to_tensors(IMAGE, _batch(IMAGE, 2))).sum().backward()
    assert all(one.grad is None for one in encoder.pictures[0].network.parameters())  # ty: ignore
    assert all(one.grad is not None for one in encoder.pictures[0].output.parameters())  # ty: ignore


def test_a_file_of_pretraining_brings_its_own_backbone(tmp_path: Path):
    arguments = {"channels": 2, "dim": 16, "depth": 1, "heads": 2, "patch": 8, "classes": None, "image_size": 40}
    torch.manual_seed(5)
    network, path = ViT(**arguments), tmp_path / "encoder.safetensors"
    header = {"backbone": "vit", "arguments": plain(network.config), "size": 42, "facts": {}}
    save_tensors(path, network.state_dict(), header, kind="encoder of frames")
    space = spaces.Box(0, 255, (2, 42, 42), **BYTES)
    encoder = build_encoder("auto", space, 16, weights=path, frozen=True)
    frames = _batch(space, 3)
    picture = encoder.pictures[0]
    # rows and columns beyond the last whole patch are cut, as in pretraining
    pixels = torch.from_numpy(frames[..., :40, :40]).float() / 255
    expected = torch.relu(picture.output(network.eval()(pixels)))  # ty: ignore
    torch.testing.assert_close(encoder.eval()(to_tensors(space, frames)), expected)
    with pytest.raises(ArgumentError, match=r"found images of shape \(42, 42, 3\), expected \(42, 42, 2\)"):
        build_encoder("auto", IMAGE, 16, weights=path)
    environments = Anything(2, space, spaces.Discrete(2))
    small = {"width": 16, "depth": 1, "segment": 4, "minibatches": 1, "epochs": 1}
    agent = Agent("gru", environments, encoder_weights=str(path), frozen=True, **small).learn(8, progress=False)
    agent.save(tmp_path / "agent.safetensors")
    path.unlink()
    again = Agent.load(tmp_path / "agent.safetensors").policy.state_dict()
    assert all(torch.equal(one, again[name]) for name, one in agent.policy.state_dict().items())
    for name, one in network.state_dict().items():
        assert torch.equal(again[f"encoder.pictures.0.network.{name}"], one)


def test_weights_of_another_network_are_refused_by_name_and_shape(tmp_path: Path):
    path = tmp_path / "encoder.safetensors"
    save_file({name: one.contiguous() for name, one in small(4).state_dict().items()}, path)
    with pytest.raises(CheckpointError, match=r"0\.weight: found shape \(32, 4, 4, 4\), expected \(32, 3, 4, 4\)"):
        build_encoder("small-cnn", IMAGE, 16, weights=path)
    with pytest.raises(CheckpointError, match=r"patches\.project\.weight: found nothing"):
        build_encoder("vit-nano", spaces.Box(0, 255, (64, 64, 3), **BYTES), 16, weights=path)
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        build_encoder("small-cnn", IMAGE, 16, weights=path)


def test_encoders_that_do_not_fit_are_refused_in_words():
    with pytest.raises(UnknownNameError, match="did you mean 'nature-cnn'"):
        build_encoder("natur-cnn", IMAGE, 16)
    with pytest.raises(ArgumentError, match="'small-cnn' for a space without images"):
        build_encoder("small-cnn", SPACES["vector"], 16)
    with pytest.raises(ArgumentError, match="'mlp' for images"):
        build_encoder("mlp", IMAGE, 16)
    with pytest.raises(ArgumentError, match="images of 10 x 10 pixels"):
        build_encoder("nature-cnn", spaces.Box(0, 255, (10, 10, 3), **BYTES), 16)
    with pytest.raises(ArgumentError, match="found Text"):
        build_encoder("auto", spaces.Text(5), 16)
    with pytest.raises(ArgumentError, match="expected images"):
        build_encoder("auto", SPACES["vector"], 16, frozen=True)
    with pytest.raises(DataError, match=r"observation: found shape \(2, 4\), expected \(B, 5\)"):
        to_tensors(SPACES["vector"], np.zeros((2, 4), np.float32))
    with pytest.raises(DataError, match="found no part 'mode'"):
        to_tensors(SPACES["dict"], {"camera": np.zeros((1, 42, 42, 3), np.uint8), "body.speed": np.zeros((1, 2))})


def test_categorical_distributions_agree_with_torch():
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    own, theirs = Categorical(logits, [5], True), torch.distributions.Categorical(logits=logits)
    action = torch.tensor([0, 4, 2, 1])
    torch.testing.assert_close(own.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(own.entropy(), theirs.entropy())
    expected = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=other), theirs)
    torch.testing.assert_close(own.divergences(other)[0], expected)
    drawn = Categorical(logits[:1].expand(40_000, 5), [5], True).sample(generator)
    shares = torch.bincount(drawn, minlength=5) / 40_000
    torch.testing.assert_close(shares.double(), theirs.probs[0], rtol=0, atol=0.01)


def test_several_categorical_distributions_are_independent():
    logits = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = Categorical(logits, [2, 4], False)
    parts = [torch.distributions.Categorical(logits=part) for part in logits.split([2, 4], -1)]
    action = torch.tensor([[0, 3], [1, 1], [1, 2]])
    expected = sum(part.log_prob(action[:, at]) for at, part in enumerate(parts))
    torch.testing.assert_close(own.log_prob(action), expected)
    torch.testing.assert_close(own.entropy(), sum(part.entropy() for part in parts))
    assert own.sample().shape == own.mode().shape == (3, 2)


def test_gaussian_distributions_agree_with_torch():
    generator = torch.Generator().manual_seed(0)
    own_numbers, other = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    own = Gaussian(own_numbers)
    theirs = torch.distributions.Normal(own_numbers[:, :3], own_numbers[:, 3:].exp())
    action = own.sample(generator)
    torch.testing.assert_close(own.log_prob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(own.entropy(), theirs.entropy().sum(-1))
    # the two divergences of V-MPO: at the old deviation, and at the old mean
    old = torch.distributions.Normal(other[:, :3], other[:, 3:].exp())
    means = torch.distributions.kl_divergence(old, torch.distributions.Normal(theirs.mean, old.stddev)).sum(-1)
    deviations = torch.distributions.kl_divergence(old, torch.distributions.Normal(old.mean, theirs.stddev)).sum(-1)
    torch.testing.assert_close(own.divergences(other)[0], means)
    torch.testing.assert_close(own.divergences(other)[1], deviations)


def test_continuous_actions_are_clipped_for_the_environment_only():
    space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float64)
    head = ActionHead(space, 8)
    action = torch.tensor([[-3.0, 5.0], [0.5, 1.0]])
    given = head.to_environment(action)
    assert given.dtype == np.float64
    assert given.tolist() == [[-1.0, 2.0], [0.5, 1.0]]
    assert head.codes(action).tolist() == given.tolist()
    distribution = head(torch.zeros(2, 8))
    at_bound = distribution.log_prob(torch.tensor([[-1.0, 2.0], [0.5, 1.0]]))
    assert distribution.log_prob(action)[0] < at_bound[0]


def test_discrete_actions_start_where_the_space_does():
    head = ActionHead(spaces.Discrete(3, start=5), 8)
    given = head.to_environment(torch.tensor([0, 2]))
    assert given.tolist() == [5, 7]
    assert head.from_environment(given).tolist() == [0, 2]
    assert head.codes(torch.tensor([2])).tolist() == [[0.0, 0.0, 1.0]]
    several = ActionHead(spaces.MultiDiscrete([2, 3], start=[1, -1]), 8)
    assert several.to_environment(torch.tensor([[1, 0]])).tolist() == [[2, -1]]
    assert several.codes(torch.tensor([[1, 0]])).tolist() == [[0.0, 1.0, 1.0, 0.0, 0.0]]


def test_action_spaces_without_a_distribution_are_refused():
    with pytest.raises(ArgumentError, match="action space: found Dict"):
        ActionHead(spaces.Dict({"a": spaces.Discrete(2)}), 8)
