"""The networks of pretraining: terms, views that are encoded once, moving averages, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyheads.core.errors import ArgumentError, CheckpointError
from manyheads.rl.encoders.frames import FrameEncoder
from manyheads.rl.pretraining.experiments import PretrainingModel, experiments
from manyheads.rl.pretraining.methods import Contrast, Distillation, JointEmbedding, OrderHead, mlp
from manyheads.rl.pretraining.objective import PretrainingLoss


def encoder(size=14, patch=7, pool="mean"):
    torch.manual_seed(0)
    return FrameEncoder(size, {"channels": 3, "dim": 16, "depth": 2, "heads": 2, "patch": patch, "pool": pool})


def views(rows=6, *, shared=True):
    triples = (torch.rand(rows, 3, 3, 14, 14) * 255).byte()
    return PretrainingLoss(views="mild" if shared else "published").make_views(triples)


def counted(module):
    """Count the images that go through an encoder."""
    seen = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize(
    ("arguments", "terms", "passes"),
    [
        ({"projector": (8, 8)}, {"invariance", "variance", "covariance"}, 2),
        ({"head": "mlp"}, {"order"}, 3),
        ({"projector": (8, 8), "head": "mlp"}, {"invariance", "variance", "covariance", "order"}, 4),
        ({"head": "linear", "shortcut": True}, {"order"}, 3),
    ],
)
def test_each_view_is_encoded_once(arguments, terms, passes):
    model = JointEmbedding(encoder(), **arguments)
    seen = counted(model.encoder)
    assert set(model(views(6))) == terms
    assert sum(seen) == 6 * passes


def test_published_views_of_the_full_method_take_four_passes():
    model = JointEmbedding(encoder(), projector=(8,), head="linear", shortcut=True)
    seen = counted(model.encoder)
    model(views(6, shared=False))
    assert sum(seen) == 6 * 4


def test_the_linear_head_scores_a_sum_over_places():
    head = OrderHead(5, "linear").eval()
    a, b = torch.randn(2, 4, 3, 5)
    mixed = a.clone()
    mixed[:, 0] = b[:, 0]
    other = b.clone()
    other[:, 0] = a[:, 0]
    torch.testing.assert_close(head(a) + head(b), head(mixed) + head(other))


def test_equal_vectors_in_every_place_score_alike_under_the_norm():
    head = OrderHead(4, "mlp")
    triples = torch.randn(8, 3, 4)
    torch.testing.assert_close(head.norm(triples.flatten(0, 1)).mean(0), torch.zeros(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["tov-vicreg", "vicreg", "order", "moco", "dino"])
def test_a_step_of_every_method_lowers_its_loss_on_a_batch(method):
    class Splits:
        facts = {"size": 14, "stack": 3}

    torch.manual_seed(1)
    model = PretrainingModel(method, dim=16, heads=2, patch=7, projector=16).build(Splits())
    # without training mode the teacher of DINO and its centre stand still
    model.train(method != "dino")
    batch, optimiser = views(16), torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.02)

    def loss():
        torch.manual_seed(2)
        return torch.stack(list(model(batch).values())).sum()

    before = loss()
    for _ in range(8):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert float(loss().detach()) < float(before.detach())


def test_the_momentum_encoder_follows_and_has_no_gradient():
    model = Contrast(encoder(), projector=(8, 8), hidden=8, momentum=0.9)
    before = [p.clone() for p in model.keys.parameters()]
    with torch.no_grad():
        for p in model.encoder.parameters():
            p += 1.0
    model(views())["contrast"].backward()
    leader = [*model.encoder.parameters(), *model.projector.parameters()]
    for own, old, new in zip(model.keys.parameters(), before, leader, strict=True):
        torch.testing.assert_close(own, 0.9 * old + 0.1 * new)
        assert own.grad is None


def test_frozen_patches_get_no_gradient():
    for freeze in (True, False):
        model = Contrast(encoder(), projector=(8, 8), hidden=8, freeze_patches=freeze)
        model(views())["contrast"].backward()
        assert (model.encoder.network.patches.project.weight.grad is None) == freeze


def test_the_centre_moves_in_training_only_and_sharpening_lowers_the_entropy_of_the_teacher():
    model = Distillation(encoder(), hidden=8, prototypes=5, centre_momentum=0.8)
    batch = views()
    teacher = torch.stack([model.teacher(view) for view in batch.pair])
    model(batch)
    torch.testing.assert_close(model.centre, 0.2 * teacher.mean((0, 1)))
    before = model.centre.clone()
    model.eval()(batch)
    assert torch.equal(model.centre, before)


def test_mlp_has_norms_between_its_maps_and_a_last_map_without_bias():
    kinds = [type(one) for one in mlp((4, 5, 6))]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert mlp((4, 5, 6))[-1].bias is None


def test_an_encoder_file_gives_the_same_features_and_reads_bytes_and_pixels(tmp_path):
    made = encoder(size=15, pool="token").eval()
    frames = (torch.rand(2, 3, 15, 15) * 255).byte()
    made.save(tmp_path / "x.safetensors", {"game": "pong"})
    again = FrameEncoder.load(tmp_path / "x.safetensors")
    assert torch.equal(again(frames), made(frames))
    torch.testing.assert_close(made(frames.float() / 255), made(frames))
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="manyheads rl train"):
        FrameEncoder.load(tmp_path / "x.safetensors")
    with pytest.raises(ArgumentError, match="expected 15 pixels"):
        made(frames[..., :14, :14])
    with pytest.raises(ArgumentError, match="patch: found 16"):
        FrameEncoder(14, {"channels": 3, "dim": 8})


def test_the_file_holds_the_tensors_of_the_backbone_by_their_names(tmp_path):
    from safetensors.torch import load_file

    made = encoder()
    made.save(tmp_path / "x.safetensors")
    assert set(load_file(tmp_path / "x.safetensors")) == set(made.network.state_dict())


def test_the_published_encoder_is_vit_tiny():
    published = next(e for e in experiments() if e.name == "tov-vicreg-published")
    made = published.model.encoder(84, 3)
    assert made.seen == 80
    assert len(made.network.stack.blocks) == 12
    # 100 patches of 8 x 8 x 3 pixels instead of the 196 of 16 x 16 x 3, no head
    patches = 192 * (8 * 8 - 16 * 16) * 3
    assert sum(p.numel() for p in made.parameters()) == 5_717_416 - 193_000 + patches + 192 * (100 - 196)


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_attention_over_patches_is_what_the_last_block_reads(pool):
    made = encoder(pool=pool).eval()
    seen = made.attention(torch.rand(2, 3, 14, 14))
    assert seen.shape == (2, 2, 2, 2)
    total = seen.sum((2, 3))
    assert bool((total <= 1 + 1e-5).all() if pool == "token" else torch.allclose(total, torch.ones(2, 2)))


def test_a_loss_without_a_weight_is_refused():
    model = JointEmbedding(encoder(), head="mlp")
    with pytest.raises(ArgumentError, match="found weight 0 for order"):
        PretrainingLoss(order=0).loss(model, torch.zeros(4, 3, 3, 14, 14, dtype=torch.uint8))
