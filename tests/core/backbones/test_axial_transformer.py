"""The Axial Transformer: who depends on whom, samples against slow sampling, passes, channels, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from manyheads.core.backbones import axial_transformer
from manyheads.core.backbones.axial_transformer import AxialTransformer
from manyheads.core.errors import ArgumentError
from manyheads.core.functional import shifted


def made(*, height=4, width=3, channels=1, levels=5, outer=4, **config):
    """With large weights, so that mistakes show: as built, branches and logits are 0."""
    torch.manual_seed(0)
    model = AxialTransformer(
        levels=levels,
        height=height,
        width=width,
        channels=channels,
        dim=8,
        heads=2,
        outer=outer,
        expansion=1.0,
        **config,
    )
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(torch.randn(one.shape) * (1.7 / math.sqrt(one.shape[-1]) if one.dim() > 1 else 1))
    return model.double().eval()


def influence(model, rows):
    """``|d logits / d values|`` of every cell of the ``rows x W`` grid on every other."""
    h = torch.randn(1, rows, model.width, 8, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda h: model.decode(h)[0].flatten(0, 1).sum(-1), h)
    return jacobian[:, 0].flatten(1, 2).abs().amax(-1)


def is_strictly_causal_with_the_full_past(reach):
    past = torch.ones_like(reach, dtype=torch.bool).tril(-1)
    return bool((reach[~past] == 0).all() and (reach[past] > 1e-9).all())


@pytest.mark.parametrize("size", [(4, 3), (3, 4), (1, 5), (5, 1)])
def test_a_value_depends_on_every_earlier_one_and_on_no_other(size):
    model = made(height=size[0], width=size[1])
    assert is_strictly_causal_with_the_full_past(influence(model, size[0]))


def test_channels_are_rows_of_their_own():
    assert is_strictly_causal_with_the_full_past(influence(made(height=2, channels=3), 6))


@pytest.mark.parametrize("axis", [0, 1])
def test_without_a_shift_a_value_sees_itself_or_later_ones(axis, monkeypatch):
    def broken(x, along):
        return x if along == axis else shifted(x, along)

    monkeypatch.setattr(axial_transformer, "shifted", broken)
    assert not is_strictly_causal_with_the_full_past(influence(made(), 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_changing_a_value_changes_the_logits_of_later_values_only(channels):
    model = made(height=3, channels=channels)
    shape = (1, 3, 3) if channels == 1 else (1, 3, 3, channels)
    images = torch.randint(5, shape)
    logits = model(images)
    assert logits.shape == (*shape, 5)

    def in_order(x):
        """Row by row, in a row channel by channel."""
        return x[0].flatten(0, 1) if channels == 1 else x[0].transpose(1, 2).flatten(0, 2)

    for place in range(images.numel()):
        changed = images.clone()
        flat = in_order(torch.arange(images.numel()).view(shape))
        changed.view(-1)[flat[place]] = (changed.view(-1)[flat[place]] + 1) % 5
        moved = (in_order(model(changed)) - in_order(logits)).abs().amax(-1) > 1e-12
        assert moved.tolist() == [other > place for other in range(images.numel())]


def slowly(model, batch, seed, temperature):
    """One pass of the whole network for each value, with the same noise."""
    rows = model.height * model.channels
    noise = torch.empty(batch, rows, model.width, model.levels, dtype=torch.float64)
    noise = -noise.exponential_(generator=torch.Generator().manual_seed(seed)).log()
    shape = (batch, model.height, model.width, model.channels)
    images = torch.zeros(shape[:-1] if model.channels == 1 else shape, dtype=torch.int64)
    for row in range(rows):
        for column in range(model.width):
            place = (row // model.channels, column, *([row % model.channels] if model.channels > 1 else []))
            logits = model(images)[(slice(None), *place)]
            images[(slice(None), *place)] = (logits + temperature * noise[:, row, column]).argmax(-1)
    return images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_equal_slow_samples_under_the_same_noise(channels, temperature):
    model = made(height=3, channels=channels, dropout=0.5).train()
    found = model.sample(4, temperature=temperature, generator=torch.Generator().manual_seed(3))
    assert model.training
    assert torch.equal(found, slowly(model.eval(), 4, 3, temperature))
    assert temperature == 0 or len(found.unique()) > 2


def test_a_sample_takes_one_outer_pass_a_row_instead_of_one_a_pixel():
    model, passes = made(height=5, width=4), []
    model.above.register_forward_hook(lambda *_: passes.append(1))
    model.sample(2)
    assert len(passes) == 5 - 1
    passes.clear()
    slowly(model, 2, 0, 1.0)
    assert len(passes) == 5 * 4


def test_samples_follow_the_distribution_of_the_model():
    """All images of two pixels of two levels, against their probabilities."""
    model = made(height=1, width=2, levels=2)
    every = torch.tensor([[[a, b]] for a in (0, 1) for b in (0, 1)])
    log = model(every).log_softmax(-1).gather(-1, every.unsqueeze(-1)).squeeze(-1).sum((1, 2))
    assert log.exp().sum().item() == pytest.approx(1, abs=1e-12)
    drawn = model.sample(4000, generator=torch.Generator().manual_seed(0))[:, 0] @ torch.tensor([2, 1])
    share = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(share.double(), log.exp(), rtol=0, atol=0.03)


def test_a_fresh_model_gives_every_level_the_same_probability_and_learns():
    torch.manual_seed(0)
    model = AxialTransformer(**AxialTransformer.info.presets["nano"])
    images = (torch.arange(64).view(1, 8, 8) % 8).expand(4, -1, -1)
    assert model.loss(images).item() == pytest.approx(math.log(8), abs=1e-6)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(20):
        optimiser.zero_grad()
        model.loss(images).backward()
        optimiser.step()
    assert all(one.grad is not None for one in model.parameters())
    assert model.loss(images).item() < 0.5


def test_compiles_and_exports_with_a_batch_of_any_size():
    model = made(channels=2)
    images = torch.randint(5, (2, 4, 3, 2))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), model(images))
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    images = torch.randint(5, (5, 4, 3, 2))
    torch.testing.assert_close(exported(images), model(images))


def test_a_copy_from_config_and_weights_computes_the_same():
    model, images = made(), torch.randint(5, (2, 4, 3))
    again = AxialTransformer(**model.config).double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images), model(images))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match="outer: found 3, expected an even number"):
        made(outer=3)
    model = made()
    for images, words in (
        (torch.zeros(2, 4, 3), "images: found a tensor of shape .* expected integers"),
        (torch.zeros(2, 3, 3, dtype=torch.int64), r"expected integers \(B, 4, 3\)"),
        (torch.full((2, 4, 3), 5), "found values from 5 to 5, expected 0 to 4"),
    ):
        with pytest.raises(ArgumentError, match=words):
            model(images)
    with pytest.raises(ArgumentError, match="sample: found -1 images"):
        model.sample(-1)
    assert model.sample(0).shape == (0, 4, 3)
    with pytest.raises(ArgumentError, match="shifted: axis: found 2 for a grid of 2 axes"):
        shifted(torch.zeros(1, 2, 3, 4), 2)


def test_shifts_move_a_grid_by_one_place():
    x = torch.arange(6.0).view(1, 2, 3, 1) + 1
    assert shifted(x, 0).flatten().tolist() == [0, 0, 0, 1, 2, 3]
    assert shifted(x, 1).flatten().tolist() == [0, 1, 2, 0, 4, 5]
    assert shifted(x[:, :0], 0).shape == (1, 0, 3, 1)
