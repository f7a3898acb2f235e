"""Attention trained on a part of its sources: what is drawn, what comes out, what it costs, what comes after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyheads.core.errors import ArgumentError
from manyheads.core.functional import attention, kept_sources, local_sources, sampled_attention, uniform_sources
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.layers.ssa import SubsampledAttention
from manyheads.core.mask import Mask
from manyheads.core.methods import subsampling
from manyheads.core.testing import POINTS, Case, points_of

from .oracle import ssa_oracle


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def layer_of(dim=6, **config):
    torch.manual_seed(0)
    layer = SubsampledAttention(dim, **{"heads": 2, "ratio": 0.4, **config}).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def drawn(layer, usable, offset=0):
    """What the layer will draw next, by row and query, in positions of the sources."""
    with torch.random.fork_rng(devices=[]):
        sources, kept = layer.draw(usable, offset=offset)
    tokens = usable.shape[1] - offset
    size = -(-tokens // sources.shape[1])
    return [
        [set(row[t // size][keep[t // size]].tolist()) for t in range(tokens)]
        for row, keep in zip(sources, kept, strict=True)
    ]


CONFIGS = {
    "unbiased": {},
    "causal": {"causal": True, "bias": True},
    "local": {"spread": 0.5},
    "local causal": {"spread": 0.5, "causal": True},
}
MASKS = {
    "none": Mask(),
    "padding": Mask(padding=torch.rand(3, 11, generator=generator(4)) < 0.7),
    "reset": Mask(reset=torch.rand(3, 11, generator=generator(5)) < 0.3),
    "blocks": Mask(blocks=torch.randint(0, 2, (3, 11), generator=generator(6))),
    "window": Mask(window=4),
}


@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("config", list(CONFIGS))
def test_training_is_dense_attention_masked_to_what_was_drawn(config, mask):
    layer, x, mask = layer_of(**CONFIGS[config]), draw(3, 11, 6).requires_grad_(), MASKS[mask]
    sources = drawn(layer, torch.ones(1, 11, dtype=torch.bool) if mask.padding is None else mask.padding)
    parameters, weights = dict(layer.named_parameters()), draw(3, 11, 6, seed=9)
    y = layer(x, mask=mask).y
    expected = ssa_oracle(parameters, layer.config, x, None, mask, sources * 3 if len(sources) == 1 else sources)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    wanted = [x, *parameters.values()]
    for found, reference in zip(
        torch.autograd.grad((y * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spread", [None, 0.5])
def test_training_on_a_stream_draws_from_the_state_too(spread):
    layer, x = layer_of(causal=True, max_len=12, spread=spread), draw(2, 9, 6)
    state = layer.eval()(x[:, :4]).state
    layer.train()
    usable = torch.tensor([True] * 4 + [False] * 8 + [True] * 5).expand(2, -1)
    place = [*range(4), *[None] * 8, *range(4, 9)]
    sources = [[{place[s] for s in one} for one in row] for row in drawn(layer, usable, offset=12)]
    everything = [[set()] * 4 + row for row in sources]
    y, after, _ = layer(x[:, 4:], state)
    expected = ssa_oracle(dict(layer.named_parameters()), layer.config, x, None, Mask(), everything)[:, 4:]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    for found, reference in zip(after, layer.eval()(x).state, strict=True):
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-12)


def test_evaluation_and_ratio_one_are_softmax_attention():
    layer, x = layer_of(causal=True, max_len=16), draw(2, 9, 6)
    softmax = SoftmaxAttention(6, heads=2, causal=True, max_len=16).double()
    softmax.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x).y, softmax(x).y)
    assert not torch.allclose(layer.train()(x).y, softmax(x).y)
    layer.set_ratio(1.0)
    assert torch.equal(layer(x).y, softmax(x).y)


@pytest.mark.parametrize("blocks", [1, 3])
def test_all_sources_drawn_in_any_order_are_full_attention(blocks):
    q, k, v = draw(2, 3, 10, 4), draw(2, 3, 10, 4, seed=2), draw(2, 3, 10, 4, seed=3)
    order = torch.stack([torch.randperm(10, generator=generator(i)) for i in range(blocks)])[None]
    found = sampled_attention(q, k, v, order, torch.ones_like(order, dtype=torch.bool))
    torch.testing.assert_close(found, attention(q, k, v), rtol=0, atol=1e-12)


def test_own_token_with_an_extreme_score_is_exact():
    """The extra source carries its score through the queries: large and tiny scores must survive."""
    for scale in (1e-3, 30.0):
        q, k, v = scale * draw(1, 1, 8, 4), draw(1, 1, 8, 4, seed=2), draw(1, 1, 8, 4, seed=3)
        sources = torch.tensor([[[1, 5]]])
        inside = torch.eye(8, dtype=torch.bool)
        inside[:, [1, 5]] = True
        found = sampled_attention(q, k, v, sources, torch.ones_like(sources, dtype=torch.bool))
        torch.testing.assert_close(found, attention(q, k, v, allowed=inside[None, None]), rtol=0, atol=1e-12)


# What is drawn


def test_draws_follow_torchs_generator():
    layer, x = layer_of(), draw(1, 20, 6)
    torch.manual_seed(3)
    y = layer(x).y
    assert not torch.equal(layer(x).y, y)
    torch.manual_seed(3)
    assert torch.equal(layer(x).y, y)


def test_every_source_is_drawn_equally_often():
    usable, trials = torch.ones(1, 12, dtype=torch.bool), 4000
    seen = torch.zeros(12)
    for _ in range(trials):
        sources, kept = uniform_sources(usable, 0.25)
        assert len(set(sources[kept].tolist())) == 3
        seen[sources[kept]] += 1
    deviation = (trials * 0.25 * 0.75) ** 0.5
    assert ((seen - trials / 4).abs() < 4.5 * deviation).all()


def test_padding_is_never_drawn_and_each_row_keeps_its_part():
    usable = torch.rand(5, 30, generator=generator(2)) < torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])[:, None]
    real = usable.sum(1)
    rank = (usable.cumsum(1) - 1).clamp(min=0)
    for sources, kept in (
        uniform_sources(usable, 0.3),
        local_sources(usable, rank[:, ::15], rank[:, 14::15], 0.3, 0.4, causal=False),
    ):
        for b in range(5):
            assert (kept[b].sum(-1) == kept_sources(int(real[b]), 0.3)).all()
            for block, keep in zip(sources[b], kept[b], strict=True):
                chosen = block[keep].tolist()
                assert usable[b, chosen].all()
                assert len(set(chosen)) == len(chosen)


def test_kept_counts_round_up_but_not_for_rounding():
    assert [kept_sources(n, 0.1) for n in (1, 10, 11, 30, 31, 70)] == [1, 1, 2, 3, 4, 7]


@pytest.mark.parametrize("causal", [False, True])
def test_without_noise_a_block_takes_its_neighbourhood(causal):
    usable, edge = torch.ones(1, 40, dtype=torch.bool), torch.arange(0, 40, 5)[None]
    sources, _ = local_sources(usable, edge, edge + 4, 0.25, 0.0, causal=causal)
    for g in range(8):
        start = 5 * g + 5 - 10 if causal else (10 * g + 5 - 10) // 2
        start = min(max(start, 0), 30)
        assert sources[0, g].tolist() == list(range(start, start + 10))


def test_with_noise_near_sources_are_likely_and_far_ones_possible():
    usable, edge = torch.ones(1, 64, dtype=torch.bool), torch.tensor([[32]])
    seen = torch.zeros(64)
    for _ in range(600):
        sources, _ = local_sources(usable, edge, edge + 3, 0.125, 1.0, causal=False)
        seen[sources.flatten()] += 1
    assert seen[28:40].sum() > 3 * seen[8:20].sum()
    assert seen[10:20].sum() > 0


def test_future_does_not_change_the_past_in_training():
    for spread in (None, 0.5):
        layer, x, other = layer_of(causal=True, spread=spread), draw(2, 12, 6), draw(2, 12, 6, seed=2)
        torch.manual_seed(3)
        y = layer(x).y
        for t in range(11):
            torch.manual_seed(3)
            changed = layer(torch.cat([x[:, : t + 1], other[:, t + 1 :]], 1)).y
            torch.testing.assert_close(changed[:, : t + 1], y[:, : t + 1], rtol=0, atol=1e-12)


# Cost and error


def saved_bytes(layer, x):
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x).y
    del y
    return sum(found.values())


@pytest.mark.parametrize("causal", [False, True])
def test_bytes_saved_for_the_sources_are_proportional_to_the_ratio(causal):
    x = torch.randn(1, 256, 32, requires_grad=True)
    found = {ratio: saved_bytes(layer_of(32, causal=causal, ratio=ratio).float(), x) for ratio in (0.125, 0.25, 0.5)}
    step = found[0.25] - found[0.125]
    assert found[0.5] - found[0.25] == 2 * step
    assert step >= 2 * 32 * 32 * 4  # keys and values of 32 more sources, at least
    if not causal:
        assert step < 256 * 32 * 4  # and less than one stored matrix of scores


def test_error_falls_with_the_number_of_sources():
    """Mean over draws (the bias of a softmax over a part) and spread of single draws, both 0 with all 64."""
    q, k, v = draw(1, 1, 64, 8), draw(1, 1, 64, 8, seed=2), draw(1, 1, 64, 8, seed=3)
    full, usable = attention(q, k, v), torch.ones(1, 64, dtype=torch.bool)
    means, singles = [], []
    for count in (8, 16, 32, 64):
        torch.manual_seed(7)
        draws = torch.stack([sampled_attention(q, k, v, *uniform_sources(usable, count / 64)) for _ in range(200)])
        means.append((draws.mean(0) - full).square().mean().sqrt().item())
        singles.append((draws - full).square().mean().sqrt().item())
    assert means == sorted(means, reverse=True)
    assert singles == sorted(singles, reverse=True)
    assert singles[-1] < 1e-12
    assert means[0] > 0.01, "a softmax over a part is biased"


class DrawsInEval(SubsampledAttention):
    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize("point", ["evaluation_is_deterministic", "oracle_and_layer_agree"])
def test_battery_fails_on_a_layer_that_draws_in_eval(point):
    case = Case(DrawsInEval, {"heads": 2, "ratio": 0.5}, oracle=ssa_oracle)
    assert point in points_of(case)
    with pytest.raises(AssertionError):
        POINTS[point].check(case)


# Methods


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = SubsampledAttention(6, heads=2, ratio=0.25)
        self.second = SubsampledAttention(6, heads=2, ratio=0.25)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.second(self.drop(x + self.first(x).y)).y.softmax(-1)


def test_layers_of_a_model_draw_independently():
    model, usable = Model(), torch.ones(1, 100, dtype=torch.bool)
    assert not torch.equal(model.first.draw(usable)[0], model.second.draw(usable)[0])


def test_ratio_of_a_model_is_set_and_kept_in_the_configuration():
    model = Model()
    subsampling.set_ratio(model, 1.0)
    assert model.second.ratio == 1.0
    assert SubsampledAttention(**model.second.config).ratio == 1.0


def test_schedule_is_dense_at_the_end():
    assert [subsampling.ratio_at(s, 10, ratio=0.25, dense=0.2) for s in range(10)] == [0.25] * 8 + [1.0] * 2
    assert subsampling.ratio_at(9, 10, ratio=0.25, dense=0.0) == 0.25
    assert subsampling.ratio_at(0, 10, ratio=0.25, dense=1.0) == 1.0


def test_ensemble_is_the_mean_of_its_passes_and_leaves_the_model_as_it_was():
    model, x = Model().eval(), torch.randn(2, 20, 6)
    before = torch.get_rng_state()
    found = subsampling.ensemble(model, lambda: model(x), passes=3, seed=4)
    assert [model.training, model.first.training] == [False, False]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    for layer in (model.first, model.second):
        layer.train()
    torch.testing.assert_close(found, torch.stack([model(x) for _ in range(3)]).mean(0))


def test_ensemble_leaves_the_model_as_it_was_when_a_pass_fails():
    model = Model().eval()
    with pytest.raises(ArgumentError, match="found width 5"):
        subsampling.ensemble(model, lambda: model(torch.randn(1, 4, 5)), passes=2)
    assert not model.first.training


def test_larger_ensembles_are_nearer_to_their_limit():
    model, x = Model().eval(), torch.randn(2, 40, 6)
    with torch.no_grad():
        limit = subsampling.ensemble(model, lambda: model(x), passes=400, seed=99)
        errors = [
            torch.stack(
                [
                    (subsampling.ensemble(model, lambda: model(x), passes=passes, seed=seed) - limit).square().mean()
                    for seed in range(5)
                ]
            ).mean()
            for passes in (1, 4, 16)
        ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 4}, "ssa: heads: found 4, expected a divisor of dim = 6"),
        ({"ratio": 0.0}, "ssa: ratio: found 0.0, expected above 0 and at most 1"),
        ({"ratio": 1.5}, "ssa: ratio: found 1.5"),
        ({"ratio": float("nan")}, "ssa: ratio: found nan"),
        ({"spread": -0.5}, "ssa: spread: found -0.5, expected None or a number of 0 or more"),
        ({"spread": float("nan")}, "ssa: spread: found nan"),
        ({"max_len": 8}, "ssa: max_len: found 8 with causal=False"),
    ],
)
def test_bad_arguments_are_named(config, message):
    with pytest.raises(ArgumentError) as caught:
        layer_of(**config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: subsampling.set_ratio(nn.Linear(2, 2), 0.5), "model: found Linear without an ssa layer"),
        (lambda: subsampling.set_ratio(Model(), 0.0), "ratio: found 0.0"),
        (lambda: subsampling.ensemble(Model(), lambda: torch.zeros(1), passes=0), "passes: found 0"),
        (lambda: subsampling.ratio_at(10, 10, ratio=0.5), "step: found 10, expected 0 to 9"),
        (lambda: subsampling.ratio_at(0, 10, ratio=0.5, dense=1.5), "dense: found 1.5"),
        (lambda: subsampling.ratio_at(0, 10, ratio=2.0), "ratio: found 2.0"),
    ],
)
def test_bad_input_to_the_methods_is_named(call, message):
    with pytest.raises(ArgumentError, match=r"^(subsampling|ssa): ") as caught:
        call()
    assert message in str(caught.value)
