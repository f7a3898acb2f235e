"""What LAMA and the recurrent scan under it promise beyond the battery."""

from __future__ import annotations

import math

import pytest
import torch

from manyheads.core.errors import ArgumentError, MaskError, StateError
from manyheads.core.functional import gru_scan
from manyheads.core.layers.lama import (
    LowRankAttentionPooling,
    lama_scores,
    lama_weights,
    orthogonality_penalty,
)
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case

from .oracle import lama_oracle


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_weights(tokens=9, heads=4, dim=6):
    h, p, q = normal(2, tokens, dim), 3 * normal(dim, heads, seed=1), 3 * normal(dim, heads, seed=2)
    return lama_weights(lama_scores(h, h.mean(1, keepdim=True), p, q)).squeeze(2)


def test_weights_are_an_average():
    weights = random_weights()
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, dtype=torch.float64), rtol=1e-12, atol=0)


def test_scores_have_unit_length_over_the_heads():
    h, p, q = normal(2, 9, 6), normal(6, 4, seed=1), normal(6, 4, seed=2)
    length = lama_scores(h, h.mean(1, keepdim=True), p, q).square().sum(1)
    torch.testing.assert_close(length, torch.ones_like(length), rtol=1e-8, atol=0)


@pytest.mark.parametrize("tokens", [2, 9, 100])
def test_no_weight_is_sharper_than_the_norm_allows(tokens):
    """At most e^2 / (T - 1 + e^2), and no two weights further apart than e^2."""
    weights = random_weights(tokens)
    bound = math.e**2
    assert (weights <= bound / (tokens - 1 + bound) + 1e-12).all()
    assert (weights.amax(-1) / weights.amin(-1) <= bound + 1e-9).all()


def test_the_sharpest_attention_meets_the_bound():
    """One head, one state along q and the others against it: scores 1 and -1."""
    h = -torch.ones(1, 10, 1, dtype=torch.float64)
    h[0, 3] = 1
    one = torch.ones(1, 1, dtype=torch.float64)
    weights = lama_weights(lama_scores(h, torch.ones(1, 1, 1, dtype=torch.float64), one, one))
    assert weights.max().item() == pytest.approx(math.e**2 / (9 + math.e**2), rel=1e-9)


def test_a_temperature_lifts_the_bound():
    h = -torch.ones(1, 10, 1, dtype=torch.float64)
    h[0, 3] = 1
    one = torch.ones(1, 1, dtype=torch.float64)
    scores = lama_scores(h, torch.ones(1, 1, 1, dtype=torch.float64), one, one)
    assert lama_weights(scores, sharpness=torch.full((1,), 10.0, dtype=torch.float64)).max() > 0.999


def test_a_temperature_is_one_at_first():
    x = normal(2, 7, 6)
    layer = create("lama", dim=6, temperature=True).double()
    plain = create("lama", dim=6).double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "log_sharpness"})
    torch.testing.assert_close(layer(x).y, plain(x).y, rtol=1e-12, atol=1e-12)


def test_the_affinity_of_all_heads_has_rank_m_at_most():
    layer = create("lama", dim=8, heads=3)
    assert torch.linalg.matrix_rank(layer.q @ layer.p.mT) == 3


def test_the_factors_have_two_d_m_parameters():
    """12,288 at width 768 with eight heads, against 2,359,296 of self-attention: the published comparison."""
    layer = create("lama", dim=768, heads=8)
    assert layer.p.numel() + layer.q.numel() == 12_288


def test_pooling_ignores_the_order_of_the_states():
    h, p, q = normal(2, 9, 6), normal(6, 4, seed=1), normal(6, 4, seed=2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))

    def pooled(h):
        return lama_weights(lama_scores(h, h.mean(1, keepdim=True), p, q)).squeeze(2) @ h

    torch.testing.assert_close(pooled(h[:, order]), pooled(h), rtol=1e-12, atol=1e-12)


def test_states_without_a_score_give_no_nan():
    """tanh(0) for every head: the norm divides 0 by its epsilon."""
    h = torch.zeros(1, 5, 3, dtype=torch.float64, requires_grad=True)
    p = normal(3, 2)
    weights = lama_weights(lama_scores(h, torch.ones(1, 1, 3, dtype=torch.float64), p, p))
    torch.testing.assert_close(weights, torch.full_like(weights, 0.2))
    (grad,) = torch.autograd.grad(weights.square().sum(), h)
    assert grad.isfinite().all()


def test_penalty_is_zero_for_disjoint_one_hots_only():
    assert orthogonality_penalty(torch.eye(3, 5)) == 0
    assert orthogonality_penalty(torch.full((3, 5), 0.2)).item() == pytest.approx(3 * 0.8**2 + 6 * 0.2**2)


def test_penalty_of_the_layer_is_that_of_its_weights():
    layer, x = create("lama", dim=6).double(), normal(2, 7, 6)
    weights = layer.weights(x)
    expected = sum((a @ a.mT - torch.eye(4, dtype=a.dtype)).square().sum() for a in weights) / 2
    torch.testing.assert_close(layer(x).aux["penalty"], expected, rtol=1e-12, atol=0)


def test_every_token_gets_the_pooled_summary():
    layer, x = create("lama", dim=6).double(), normal(3, 7, 6)
    padding = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    mask = Mask(padding=padding)
    pooled, y = layer.pool(x, mask), layer(x, mask=mask).y
    assert pooled.shape == (3, 4 * 6)
    torch.testing.assert_close(layer.pool(x, mask, project=True), layer.output(pooled), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y, layer.output(pooled).unsqueeze(1) * padding.unsqueeze(-1), rtol=1e-12, atol=1e-12)


def test_masked_steps_have_no_weight():
    layer, x = create("lama", dim=6).double(), normal(1, 7, 6)
    padding = torch.tensor([[True, True, False, True, False, True, True]])
    assert torch.equal(layer.weights(x, Mask(padding=padding))[0] == 0, ~padding.expand(4, -1))


@pytest.mark.parametrize("config", [{}, {"context": "learned"}, {"max_len": 9}])
def test_the_last_causal_output_is_the_pooled_summary(config):
    layer, x = create("lama", dim=6, causal=True, **config).double(), normal(2, 7, 6)
    torch.testing.assert_close(layer(x).y[:, -1], layer.pool(x, project=True), rtol=1e-10, atol=1e-10)


def test_the_mixing_matrix_is_the_pooling_weights():
    layer, x = create("lama", dim=6).double(), normal(2, 7, 6)
    padding = torch.tensor([[True] * 7, [False, True, True, False, True, True, False]])
    mask = Mask(padding=padding)
    found = mixing_matrix(layer, x, mask=mask).squeeze(2)
    torch.testing.assert_close(found, layer.weights(x, mask), rtol=1e-12, atol=1e-12)


def test_running_sums_equal_the_softmax_over_stored_states():
    """A window that never fills sees the whole prefix."""
    running = create("lama", dim=6, causal=True, context="learned").double()
    stored = create("lama", dim=6, causal=True, context="learned", window=200).double()
    stored.load_state_dict(running.state_dict())
    x = normal(2, 150, 6)
    torch.testing.assert_close(running(x).y, stored(x).y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [1, 5, 70])
def test_windows_in_several_blocks_equal_the_oracle(window):
    layer, x = create("lama", dim=4, heads=2, causal=True, window=window).double(), normal(2, 150, 4)
    generator = torch.Generator().manual_seed(0)
    mask = Mask(
        padding=torch.rand(2, 150, generator=generator) < 0.9, reset=torch.rand(2, 150, generator=generator) < 0.02
    )
    expected = lama_oracle(dict(layer.named_parameters()), layer.config, x, None, mask)
    torch.testing.assert_close(layer(x, mask=mask).y, expected, rtol=1e-9, atol=1e-9)


def test_running_state_has_one_size():
    layer = create("lama", dim=6, causal=True, context="learned").double()
    sizes = {tuple(leaf.shape for leaf in layer(normal(2, n, 6)).state) for n in (1, 10, 100)}
    assert sizes == {((2, 6), (2, 4, 6), (2, 4))}


def _gates(unit, x):
    units = unit.hidden_size
    hidden = torch.cat([unit.bias_hh_l0[: 2 * units], torch.zeros(units, dtype=x.dtype)])
    given = (x @ unit.weight_ih_l0.mT + unit.bias_ih_l0 + hidden).transpose(0, 1).unsqueeze(1)
    return given, unit.weight_hh_l0.mT.unsqueeze(0), unit.bias_hh_l0[2 * units :].unsqueeze(0)


@pytest.mark.parametrize(("batch", "tokens"), [(2, 8), (2, 1), (600, 41)], ids=["short", "one", "several blocks"])
def test_scan_and_its_gradients_are_those_of_the_recurrent_unit_of_torch(batch, tokens):
    unit = torch.nn.GRU(3, 4, batch_first=True).double()
    x, start = normal(batch, tokens, 3).requires_grad_(), normal(1, batch, 4, seed=1).requires_grad_()
    given, weight, bias = _gates(unit, x)
    states = gru_scan(given, start, weight, bias).squeeze(1).transpose(0, 1)
    expected, _ = unit(x, start)
    wanted, towards = [x, start, *unit.parameters()], normal(batch, tokens, 4, seed=2)
    torch.testing.assert_close(states, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((states * towards).sum(), wanted),
        torch.autograd.grad((expected * towards).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_scan_with_fresh_starts_has_the_right_gradient():
    fresh = torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.4
    inputs = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, 2, 2, 6), (2, 2, 2), (2, 2, 6)])]
    bias = normal(2, 2, seed=5).requires_grad_()
    assert fresh.any()
    assert torch.autograd.gradcheck(lambda *parts: gru_scan(*parts, fresh), (*inputs, bias))


def test_gradients_with_fresh_starts_in_several_blocks_are_those_of_the_parts():
    """4,096 numbers a state: blocks of 16 tokens; a fresh start at 21."""
    gates, weight = normal(50, 1, 512, 24).requires_grad_(), normal(1, 8, 24, seed=1).requires_grad_()
    bias, start = normal(1, 8, seed=2).requires_grad_(), normal(1, 512, 8, seed=3).requires_grad_()
    fresh = torch.zeros(50, 1, 512, dtype=torch.bool)
    fresh[21] = True
    towards, wanted = normal(50, 1, 512, 8, seed=4), (gates, start, weight, bias)
    whole = (gru_scan(gates, start, weight, bias, fresh) * towards).sum()
    first = (gru_scan(gates[:21], start, weight, bias) * towards[:21]).sum()
    second = (gru_scan(gates[21:], torch.zeros_like(start), weight, bias) * towards[21:]).sum()
    for a, b in zip(torch.autograd.grad(whole, wanted), torch.autograd.grad(first + second, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_fresh_start_forgets_what_came_before():
    gates, weight, bias = normal(6, 1, 2, 6), normal(1, 2, 6, seed=1), normal(1, 2, seed=2)
    fresh = torch.zeros(6, 1, 2, dtype=torch.bool)
    fresh[3] = True
    states = gru_scan(gates, normal(1, 2, 2, seed=3), weight, bias, fresh)
    apart = gru_scan(gates[3:], torch.zeros(1, 2, 2, dtype=torch.float64), weight, bias)
    torch.testing.assert_close(states[3:], apart, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"heads": 0}, ArgumentError, "heads: found 0, expected 1 or more"),
        ({"dim": 5}, ArgumentError, "dim: found 5, expected an even width"),
        ({"context": "mena"}, ArgumentError, "context: found 'mena', expected 'mean' or 'learned'"),
        ({"window": 3}, ArgumentError, "window: found 3 with causal=False"),
        ({"causal": True, "window": 0}, ArgumentError, "window: found 0 with causal=True, expected 1 or more"),
        ({"causal": True, "max_len": 0}, ArgumentError, "max_len: found 0"),
        ({"causal": True, "max_len": 3, "window": 3}, ArgumentError, "max_len: found 3 with window=3"),
        ({"causal": True, "max_len": 3, "context": "learned"}, ArgumentError, "context='learned', expected None"),
    ],
)
def test_bad_arguments_are_named(config, error, message):
    with pytest.raises(error, match=message):
        create("lama", **{"dim": 4, **config})


def test_more_tokens_than_the_room_are_refused():
    layer = create("lama", dim=4, causal=True, max_len=5)
    with pytest.raises(StateError, match="6 tokens do not fit into max_len = 5"):
        layer(normal(1, 6, 4).float())


def test_pooling_over_episodes_is_refused():
    layer = create("lama", dim=4, causal=True)
    with pytest.raises(MaskError, match=r"mask\.reset: found one, but a summary is of one episode"):
        layer.pool(normal(1, 6, 4).float(), Mask(reset=torch.zeros(1, 6, dtype=torch.bool)))


class PaddingEncoded(LowRankAttentionPooling):
    """The padding is masked in the pooling, but the encoder still reads it."""

    def __init__(self, dim, **config):
        super().__init__(dim, **config)
        encode = self.encoder.forward

        def reads_all(x, start, mask):
            h, hidden, real, segment = encode(x, start, Mask(reset=mask.reset))
            return h, hidden, real if mask.padding is None else mask.padding, segment

        self.encoder.forward = reads_all


class HiddenForgotten(LowRankAttentionPooling):
    """The pooled states are carried over, the encoder's own is not."""

    def mix(self, x, state, context, mask):
        return super().mix(x, state._replace(hidden=torch.zeros_like(state.hidden)), context, mask)


@pytest.mark.parametrize(
    ("broken", "config", "point"),
    [
        (PaddingEncoded, {}, "oracle_and_layer_agree"),
        (PaddingEncoded, {}, "padded_tokens_equal_absent_tokens"),
        (HiddenForgotten, {"causal": True, "max_len": 14}, "chunks_equal_the_whole"),
        (HiddenForgotten, {"causal": True, "context": "learned"}, "chunks_equal_the_whole"),
    ],
)
def test_battery_fails_on(broken, config, point):
    with pytest.raises(AssertionError):
        POINTS[point].check(Case(broken, config, oracle=lama_oracle))
