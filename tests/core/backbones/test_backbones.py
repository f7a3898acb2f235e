"""Residual blocks, stacks, the sequence encoder and the language model around any registered layer."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from manyheads.core.backbones.language_model import LanguageModel
from manyheads.core.backbones.sequence_encoder import SequenceEncoder
from manyheads.core.backbones.stack import build_stack
from manyheads.core.blocks.batch_norm import SequenceBatchNorm
from manyheads.core.blocks.decomposition import DecompositionBlock, SeasonalNorm, SeriesDecomposition
from manyheads.core.blocks.distilling import Distilling
from manyheads.core.blocks.embeddings import (
    LearnedPositions,
    PatchEmbedding,
    SinusoidalPositions,
    ValueEmbedding,
    sinusoidal_positions,
)
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layers.auto_correlation import AutoCorrelation
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.mask import Mask
from manyheads.core.registry import LAYERS
from manyheads.core.testing import Case
from tests.core.layers import CASES, EXAMPLES

STREAMING = {
    f"{name}, {label}": (name, dict(config), CASES[name].get("dim", 12))
    for name, kind in LAYERS.items()
    for label, config in EXAMPLES[name].items()
    if (layer := kind(12, **config)).is_causal and layer.state_kind != "none"
}


def normed(x, norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("place", ["pre", "post"])
def test_a_residual_block_is_its_equations(place):
    torch.manual_seed(0)
    attention, reading = SoftmaxAttention(6, heads=2), SoftmaxAttention(6, heads=2, context_dim=4)
    block = ResidualBlock(attention, FeedForward(6, 11), cross=reading, norm=place).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x, context = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 7, 4, dtype=torch.float64)
    norms = (block.layer_norm, block.cross_norm, block.feed_forward_norm)
    parts = (lambda z: attention(z).y, lambda z: reading(z, context=context).y, block.feed_forward)
    y = x
    for norm, part in zip(norms, parts, strict=True):
        y = y + part(normed(y, norm)) if place == "pre" else normed(y + part(y), norm)
    torch.testing.assert_close(block(x, context=context).y, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_the_last_tokens_alone_are_those_of_the_whole_block(place):
    torch.manual_seed(0)
    whole = ResidualBlock(SoftmaxAttention(6, heads=2), FeedForward(6, 11), norm=place).double()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter)
    block = ResidualBlock(SoftmaxAttention(6, heads=2, context_dim=6), FeedForward(6, 11), norm=place).double()
    block.load_state_dict(whole.state_dict())
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    for count in (1, 2, 5):
        torch.testing.assert_close(block.last(x, count), whole(x).y[:, -count:], rtol=1e-12, atol=1e-12)
    reading = ResidualBlock(block.layer, None, cross=SoftmaxAttention(6, context_dim=4)).double()
    with pytest.raises(ArgumentError, match="last: found a cross layer"):
        reading.last(x, 1)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_batch_norms_of_a_block_read_real_tokens_only(place):
    torch.manual_seed(0)
    norms = {"norm": place, "make_norm": SequenceBatchNorm}
    block = ResidualBlock(SoftmaxAttention(6, heads=2, causal=True), FeedForward(6, 11), **norms).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    real = torch.arange(7) < torch.tensor([[7], [4]])
    other = torch.where(real.unsqueeze(2), x, 1e3 * torch.randn_like(x))
    runs = []
    for given in (x, other):
        one = copy.deepcopy(block)
        y = one(given.requires_grad_(), mask=Mask(padding=real)).y[real]
        y.square().sum().backward()
        runs.append((y, one.layer_norm.running_mean, one.feed_forward_norm.running_var, given.grad[real]))
        assert (given.grad[~real] == 0).all()
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_a_stack_goes_around_every_registered_layer(name):
    config = dict(next(c for c in EXAMPLES[name].values()))
    context_dim = config.get("context_dim")
    dim, grid = CASES[name].get("dim", 12), Case(LAYERS[name], config, **CASES[name]).grid
    stack = build_stack(name, dim, depth=2, options=config, expansion=2.0)
    x = torch.randn(2, *grid, dim, requires_grad=True)
    context = None if context_dim is None else torch.randn(2, 5, context_dim)
    if config.get("queries"):
        return
    y = stack(x, context=context).y
    assert y.shape == x.shape
    y.sum().backward()
    assert all(p.grad is not None for p in stack.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", STREAMING)
def test_a_stack_streams_as_its_layers_do(name):
    torch.manual_seed(1)
    layer, options, dim = STREAMING[name]
    stack = build_stack(layer, dim, depth=2, options=options).double().eval()
    assert stack.streaming
    x = torch.randn(2, 9, dim, dtype=torch.float64)
    whole = stack(x).y
    first, state, _ = stack(x[:, :4])
    second, _, _ = stack(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*STREAMING, "without a state"])
def test_generation_goes_on_from_each_prompt_as_if_it_were_alone(name):
    torch.manual_seed(2)
    layer, options, dim = STREAMING.get(name, ("softmax", {"causal": True}, 12))
    model = LanguageModel(build_stack(layer, dim, depth=2, options=options), vocabulary=9).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    prompts = [[3], [1, 2, 8, 4, 0], [7, 7]]
    together = model.generate(prompts, 6, temperature=0)
    for prompt, found in zip(prompts, together, strict=True):
        assert model.generate([prompt], 6, temperature=0) == [found]
        # by hand: the most probable next token of the whole sequence, again and again
        ids = list(prompt)
        model.eval()
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids])).y[0, -1].argmax()))
        assert ids[len(prompt) :] == found


def test_the_drawn_tokens_have_the_probabilities_of_the_softmax():
    torch.manual_seed(3)
    model = LanguageModel(build_stack("softmax", 8, depth=1, options={"causal": True}), vocabulary=5)
    torch.nn.init.normal_(model.embed.weight, std=1.0)
    model.eval()
    logits = model(torch.tensor([[2]])).y[0, -1] / 0.7
    count = 4000
    drawn = model.generate([[2]] * count, 1, temperature=0.7, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(torch.tensor(drawn).flatten(), minlength=5) / count
    sd = (logits.softmax(-1) * (1 - logits.softmax(-1)) / count).sqrt()
    assert ((share - logits.softmax(-1)).abs() < 4 * sd + 1e-9).all()
    ordered = logits.softmax(-1).sort(descending=True)
    drawn = model.generate([[2]] * 500, 1, temperature=0.7, top_k=2)
    assert set(torch.tensor(drawn).flatten().tolist()) <= set(ordered.indices[:2].tolist())
    p = float(ordered.values[0]) + 1e-4  # the first alone is not enough, the first two are
    drawn = model.generate([[2]] * 500, 1, temperature=0.7, top_p=p)
    assert set(torch.tensor(drawn).flatten().tolist()) == set(ordered.indices[:2].tolist())


def test_a_row_ends_with_the_stop_token_and_the_others_go_on():
    torch.manual_seed(4)
    model = LanguageModel(build_stack("lmu", 8, depth=1), vocabulary=6)
    torch.nn.init.normal_(model.embed.weight, std=1.0)
    free = model.generate([[1], [2, 3]], 8, temperature=0)
    stop = free[0][2]
    found = model.generate([[1], [2, 3]], 8, temperature=0, stop=stop)
    for row, all_tokens in zip(found, free, strict=True):
        end = all_tokens.index(stop) + 1 if stop in all_tokens else 8
        assert row == all_tokens[:end]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": [[]]}, "found no token"),
        ({"prompts": [[9]]}, "the id 9, expected 0 to 5"),
        ({"temperature": -1.0}, "temperature: found -1.0"),
        ({"top_k": 0}, "top_k: found 0"),
        ({"top_p": 1.5}, "top_p: found 1.5"),
        ({"new_tokens": -1}, "new_tokens: found -1"),
    ],
)
def test_generation_refuses_what_it_cannot_do(changes, said):
    model = LanguageModel(build_stack("lmu", 8, depth=1), vocabulary=6)
    with pytest.raises(ArgumentError, match=said):
        model.generate(**{"prompts": [[1]], "new_tokens": 2, **changes})


def test_a_language_model_refuses_a_layer_that_sees_the_future():
    with pytest.raises(ArgumentError, match="softmax with causality 'no', expected strictly causal"):
        LanguageModel(build_stack("softmax", 8, depth=1), vocabulary=6)


def test_a_stack_refuses_what_is_no_stack():
    with pytest.raises(UnknownNameError, match="did you mean 'softmax'"):
        build_stack("softmx", 8)
    with pytest.raises(ArgumentError, match="depth: found 0"):
        build_stack("softmax", 8, depth=0)
    with pytest.raises(ArgumentError, match="options: found some beside a function"):
        build_stack(lambda dim: SoftmaxAttention(dim), 8, options={"heads": 2})
    with pytest.raises(ArgumentError, match="found width 6, expected 8"):
        build_stack(lambda dim: SoftmaxAttention(6), 8)


def test_the_encoder_does_not_read_padding():
    torch.manual_seed(5)
    encoder = SequenceEncoder(build_stack("softmax", 8, depth=2), inputs=3, outputs=4).double().eval()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    real = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    found = encoder(x, mask=Mask(padding=real))
    torch.testing.assert_close(found[:1], encoder(x[:1, :4]), rtol=1e-12, atol=1e-12)
    x[0, 4:] = float("nan")
    # a padded vector passes the embedding, which is no layer: it is blanked before the blocks
    torch.testing.assert_close(encoder(x, mask=Mask(padding=real)), found, rtol=1e-12, atol=1e-12)


def test_the_encoder_reads_token_ids_and_gives_one_output_a_token():
    encoder = SequenceEncoder(build_stack("softmax", 8), vocabulary=10, outputs=3, pool="tokens", positions="none")
    ids = torch.randint(10, (2, 7))
    order = torch.randperm(7)
    encoder.eval()
    torch.testing.assert_close(encoder(ids)[:, order], encoder(ids[:, order]))
    with pytest.raises(ArgumentError, match="found None and None, expected one of them"):
        SequenceEncoder(build_stack("softmax", 8), outputs=3)
    with pytest.raises(ArgumentError, match="max_len: found none"):
        SequenceEncoder(build_stack("softmax", 8), outputs=3, inputs=2, positions="learned")


def test_positions_are_the_published_sines():
    table = sinusoidal_positions(7, 6, first=3)
    for t in range(7):
        for i in range(3):
            angle = (t + 3) / 10000 ** (2 * i / 6)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    x = torch.zeros(2, 4, 6)
    moved = SinusoidalPositions(6)(x, first=torch.tensor([0, 3]))
    torch.testing.assert_close(moved[1], sinusoidal_positions(4, 6, first=3))
    learned = LearnedPositions(8, 6)
    torch.testing.assert_close(learned(x, first=torch.tensor([0, 3]))[1], learned.weight[3:7])
    with pytest.raises(ArgumentError, match="found 9 tokens, expected 8 at most"):
        learned(x, first=5)


def test_embeddings_of_a_series_by_their_sums():
    torch.manual_seed(6)
    x = torch.randn(2, 5, 3)
    value = ValueEmbedding(3, 4)
    weight = value.weight.weight  # (D, C, 3)
    for t in range(5):
        expected = sum(weight[:, :, j] @ x[0, (t + j - 1) % 5] for j in range(3))
        torch.testing.assert_close(value(x)[0, t], expected)
    patches = PatchEmbedding(4, 2, 6)
    series = torch.randn(2, 9)
    padded = torch.cat([series, series[:, -1:], series[:, -1:]], 1)
    found = patches(series)
    assert found.shape[1] == patches.count(9) == 4
    for p in range(4):
        torch.testing.assert_close(found[1, p], patches.project(padded[1, 2 * p : 2 * p + 4]))


@pytest.mark.parametrize("window", [1, 4, 25])
def test_the_trend_is_the_mean_over_the_window(window):
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    seasonal, trend = SeriesDecomposition(window)(x)
    for t in range(9):
        reach = range(t - window // 2, t - window // 2 + window)
        expected = sum(x[:, min(max(s, 0), 8)] for s in reach) / window
        torch.testing.assert_close(trend[:, t], expected)
    torch.testing.assert_close(seasonal + trend, x)


def test_a_decomposition_block_is_its_equations():
    torch.manual_seed(7)
    layer, cross = AutoCorrelation(6, heads=2), AutoCorrelation(6, heads=2, context_dim=6)
    block = DecompositionBlock(layer, FeedForward(6, 9), (3,), cross=cross).double().eval()
    x, context = torch.randn(2, 8, 6, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    split = SeriesDecomposition(3)
    y, t0 = split(x + layer(x).y)
    y, t1 = split(y + cross(y, context=context).y)
    y, t2 = split(y + block.feed_forward(y))
    seasonal, trend = block(x, context)
    torch.testing.assert_close(seasonal, y)
    torch.testing.assert_close(trend, t0 + t1 + t2)
    assert SeasonalNorm(6).double()(x).mean(1).abs().max() < 1e-12


def test_distilling_halves_the_tokens():
    for tokens in (1, 2, 7, 96):
        assert Distilling(4).eval()(torch.randn(2, tokens, 4)).shape == (2, (tokens + 1) // 2, 4)
