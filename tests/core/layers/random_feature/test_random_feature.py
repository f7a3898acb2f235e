"""What random-feature attention promises beyond the battery."""

from __future__ import annotations

import math

import pytest
import torch

from manyheads.core.errors import ArgumentError, StateError
from manyheads.core.layers.random_feature import RandomFeatureAttention, random_weights
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case

from .oracle import random_feature_oracle


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sphere(*shape, seed=0):
    return torch.nn.functional.normalize(normal(*shape, seed=seed), dim=-1)


@pytest.mark.parametrize("biased", [False, True])
def test_the_order_of_the_keys_does_not_matter(biased):
    layer = create("random-feature", dim=4, heads=6, context_dim=4, biased=biased).double()
    x, keys = sphere(2, 3, 4), sphere(2, 9, 4, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x, context=keys[:, order]).y, layer(x, context=keys).y, rtol=0, atol=1e-12)


def test_the_output_is_linear_in_the_read_out():
    layer, x = create("random-feature", dim=4, heads=6).double(), sphere(2, 5, 4)
    first, second = normal(*layer.output.weight.shape), normal(*layer.output.weight.shape, seed=1)
    outputs = []
    for weight in (first, second, 2 * first - 3 * second):
        layer.output.weight.data = weight
        outputs.append(layer(x).y)
    torch.testing.assert_close(outputs[2], 2 * outputs[0] - 3 * outputs[1], rtol=0, atol=1e-12)


def test_without_its_mean_the_biased_form_is_the_plain_one():
    plain = create("random-feature", dim=4, heads=6, seed=7).double()
    biased = create("random-feature", dim=4, heads=6, seed=7, biased=True).double()
    mean = torch.diag(torch.tensor([1.0, 1, 1, 1, 0])).double()
    biased.weight -= mean
    biased.output.load_state_dict(plain.output.state_dict())
    x = sphere(2, 5, 4)
    torch.testing.assert_close(biased(x).y, plain(x).y, rtol=0, atol=1e-6)


def test_only_the_read_out_is_trained():
    """M (d + 1) features an output."""
    layer = create("random-feature", dim=4, heads=6)
    assert [(name, p.shape) for name, p in layer.named_parameters()] == [("output.weight", (4, 6 * 5))]
    assert layer.weight.shape == (6, 5, 5)
    assert not layer.weight.requires_grad


def test_a_seed_is_a_set_of_weights_whatever_came_before():
    first = create("random-feature", dim=4, heads=6, seed=1).weight
    torch.rand(3)
    assert torch.equal(create("random-feature", dim=4, heads=6, seed=1).weight, first)
    assert not torch.equal(create("random-feature", dim=4, heads=6, seed=2).weight, first)


def test_frozen_weights_are_normal_with_variance_a_quarter():
    weights = random_weights(1000, 9, 9, seed=0)
    count = weights.numel()
    assert weights.mean().abs() < 5 * 0.5 / math.sqrt(count)
    assert (weights.var() - 0.25).abs() < 5 * 0.25 * math.sqrt(2 / count)


def test_features_are_the_regressors_of_the_output():
    layer, x = create("random-feature", dim=4, heads=6).double(), sphere(2, 5, 4)
    features = layer.features(x)
    assert features.shape == (2, 5, 6 * 5)
    torch.testing.assert_close(features @ layer.output.weight.mT, layer(x).y, rtol=1e-12, atol=1e-12)


def test_ridge_on_the_features_fits_a_mean_of_squares():
    """The paper's claim on its simplest target, (1/N) sum_i <b, x_i>^2: few samples suffice."""
    layer = create("random-feature", dim=4, heads=40, context_dim=4).double()
    keys, direction = sphere(800, 6, 4), sphere(4, seed=1)
    target = (keys @ direction).square().mean(1, keepdim=True)
    features = layer.features(sphere(800, 1, 4, seed=2), context=keys).squeeze(1).detach()
    train, test = features[:600], features[600:]
    gram = train.mT @ train + 1e-2 * torch.eye(train.shape[1], dtype=torch.float64)
    found = test @ torch.linalg.solve(gram, train.mT @ target[:600])
    error = (found - target[600:]).square().mean() / target[600:].var()
    assert error < 0.3


def _arc_cosine(a, b, c):
    """E[relu(u) relu(v)] of normals with variances a, b and covariance c."""
    root = math.sqrt(a * b)
    angle = math.acos(max(-1.0, min(1.0, c / root)))
    return root * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)


def _kernel(query, keys, other_query, other_keys):
    one = torch.ones(1, dtype=torch.float64)
    z, w = torch.cat([query, one]), torch.cat([other_query, one])
    total = 0.0
    for key in keys:
        for other in other_keys:
            a, b = torch.cat([key, one]), torch.cat([other, one])
            variances = (z @ z) * (a @ a) / 4, (w @ w) * (b @ b) / 4
            total += _arc_cosine(*(v.item() for v in variances), ((z @ w) * (a @ b) / 4).item()) * (a @ b).item()
    return total / (len(keys) * len(other_keys))


def test_the_kernel_of_the_features_tends_to_the_arc_cosine_kernel_as_the_root_of_the_heads():
    query, keys = sphere(2, 1, 3), sphere(2, 4, 3, seed=1)
    limit = _kernel(query[0, 0], keys[0], query[1, 0], keys[1])
    errors = {}
    for heads in (32, 2048):
        squares = []
        for seed in range(40):
            layer = create("random-feature", dim=3, heads=heads, context_dim=3, seed=seed).double()
            first, second = layer.features(query, context=keys).flatten(1)
            squares.append((float(first @ second) / heads - limit) ** 2)
        errors[heads] = math.sqrt(sum(squares) / len(squares))
    assert errors[2048] < 0.1 * abs(limit)
    rate = math.log(errors[2048] / errors[32]) / math.log(2048 / 32)
    assert rate == pytest.approx(-0.5, abs=0.12)


def test_flops_of_a_token_grow_with_the_keys_and_the_width_squared_apart():
    """M (d^2 + N d) a query, not M N d^2."""
    flops = RandomFeatureAttention.info.flops
    one, many = (flops({"dim": 100, "heads": 1}, (n,)) / n for n in (1, 1001))
    assert many - one == pytest.approx(4 * 1000 * 101)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 0}, "heads: found 0, expected 1 or more"),
        ({"max_len": 5}, "max_len: found 5 with causal=False"),
        ({"causal": True, "max_len": 0}, "max_len: found 0"),
        ({"causal": True, "context_dim": 4}, "context_dim: found 4 with causal=True"),
        ({"biased": True, "context_dim": 3}, "4 where biased"),
    ],
)
def test_bad_arguments_are_named(config, message):
    with pytest.raises(ArgumentError, match=message):
        create("random-feature", dim=4, **config)


def test_a_context_of_another_width_is_refused():
    layer = create("random-feature", dim=4, context_dim=3)
    with pytest.raises(ArgumentError, match="context: found width 2, expected 3"):
        layer(torch.zeros(1, 2, 4), context=torch.zeros(1, 5, 2))


def test_more_tokens_than_the_room_are_refused():
    layer = create("random-feature", dim=4, causal=True, max_len=5)
    with pytest.raises(StateError, match="6 tokens do not fit into max_len = 5"):
        layer(torch.zeros(1, 6, 4))


class SumForMean(RandomFeatureAttention):
    def mix(self, x, state, context, mask):
        out = super().mix(x, state, context, mask)
        return out._replace(y=out.y * x.shape[1])


class NotRectified(RandomFeatureAttention):
    def mix(self, x, state, context, mask):
        out, other = super().mix(x, state, context, mask), super().mix(-x, state, context, mask)
        return out._replace(y=out.y - other.y)


@pytest.mark.parametrize("broken", [SumForMean, NotRectified])
def test_battery_fails_on(broken):
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(Case(broken, {"heads": 4}, oracle=random_feature_oracle))
