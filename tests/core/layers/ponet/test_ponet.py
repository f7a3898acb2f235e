"""PoNet: its three poolings one by one, its two causal forms, and a leak that the battery must find."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import ArgumentError, StateError
from manyheads.core.functional import prefix_softmax
from manyheads.core.layers import ponet
from manyheads.core.layers.ponet import PoNet
from manyheads.core.mask import Mask
from manyheads.core.testing import POINTS, Case
from tests.core.largest import largest_tensor

from .oracle import ponet_oracle


def built(config, tokens, *, batch=2):
    case = Case(PoNet, {"heads": 2, **config}, batch=batch, grid=(tokens,))
    return case.layer(), case.x()


def silence(layer, *names):
    for name in names:
        for parameter in getattr(layer, name).parameters():
            torch.nn.init.zeros_(parameter)


def test_parameters_are_six_projections_with_biases():
    assert sum(parameter.numel() for parameter in PoNet(16).parameters()) == 6 * 16 * 16 + 6 * 16


@pytest.mark.parametrize("config", [{}, {"causal": True}, {"causal": True, "global_pooling": "running"}])
def test_equal_tokens_pool_to_themselves(config):
    layer, x = built({"segment": 4, **config}, 9)
    x = x[:, :1].expand_as(x)
    expected = layer.output((layer.key(x) + layer.far(x)) * layer.gate(x) + layer.near(x))
    torch.testing.assert_close(layer(x).y, expected, rtol=0, atol=1e-12)


def test_a_closed_gate_leaves_the_local_pooling():
    layer, x = built({"segment": 4}, 9)
    silence(layer, "gate")
    near = layer.near(x)
    local = torch.stack([near[:, max(t - 1, 0) : t + 2].amax(1) for t in range(9)], 1)
    torch.testing.assert_close(layer(x).y, layer.output(local), rtol=0, atol=1e-12)


def test_global_pooling_is_attention_of_the_mean_query():
    layer, x = built({"segment": 4}, 9)
    silence(layer, "far", "near", "gate")
    torch.nn.init.ones_(layer.gate.bias)
    q, k = (part(x).unflatten(-1, (2, 3)) for part in (layer.query, layer.key))
    weights = torch.einsum("bhe,bthe->bth", q.mean(1), k).div(3**0.5).softmax(1)
    pooled = torch.einsum("bth,bthe->bhe", weights, k).flatten(1)
    torch.testing.assert_close(layer(x).y, layer.output(pooled).unsqueeze(1).expand_as(x), rtol=0, atol=1e-12)


def test_without_local_pooling_the_order_inside_a_segment_does_not_matter():
    layer, x = built({"segment": 4}, 12)
    silence(layer, "near")
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7, 9, 8, 11, 10])
    torch.testing.assert_close(layer(x[:, order]).y, layer(x).y[:, order], rtol=0, atol=1e-12)
    across = torch.tensor([4, 1, 2, 3, 0, 5, 6, 7, 8, 9, 10, 11])
    assert (layer(x[:, across]).y - layer(x).y[:, across]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["far", "near"])
def test_a_maximum_sends_its_gradient_to_one_token(name):
    """All tokens tie, and every output asks for a gradient of 1: what arrives is whole numbers."""
    layer, x = built({"segment": 4}, 10)
    silence(layer, "gate")
    torch.nn.init.ones_(layer.gate.bias)
    layer.output.weight.data = torch.eye(6, dtype=x.dtype)
    seen = []
    handle = getattr(layer, name).register_forward_hook(
        lambda module, inputs, out: out.retain_grad() or seen.append(out)
    )
    layer(x[:, :1].expand_as(x)).y.sum().backward()
    handle.remove()
    grad = seen[0].grad
    assert torch.equal(grad, grad.round())
    assert torch.equal(grad.sum(1), torch.full((2, 6), 10.0, dtype=x.dtype))
    if name == "far":
        assert [int((grad[:, part] != 0).sum(1).max()) for part in (slice(4), slice(4, 8), slice(8, 10))] == [1, 1, 1]


def test_masks_do_not_change_what_the_caller_holds():
    layer, x = built({"segment": 4}, 9)
    held = {}
    handles = [
        getattr(layer, name).register_forward_hook(lambda m, i, out, name=name: held.update({name: (out, out.clone())}))
        for name in ("key", "far", "near")
    ]
    padding = torch.tensor([[True] * 5 + [False] * 4, [False] * 3 + [True] * 6])
    before, kept = x.clone(), padding.clone()
    layer(x, mask=Mask(padding=padding))
    for handle in handles:
        handle.remove()
    assert torch.equal(x, before)
    assert torch.equal(padding, kept)
    assert all(torch.equal(after, copy) for after, copy in held.values())


def test_exact_pooling_of_the_last_token_is_that_of_the_whole():
    causal, x = built({"segment": 20, "causal": True}, 13)
    whole = PoNet(6, heads=2, segment=20).double()
    whole.load_state_dict(causal.state_dict())
    for layer in (causal, whole):
        silence(layer, "near")
    torch.testing.assert_close(causal(x).y[:, -1], whole(x).y[:, -1], rtol=0, atol=1e-12)


def test_running_pooling_is_exact_where_the_mean_query_stays_the_same():
    exact, x = built({"segment": 7, "causal": True}, 150)
    running = PoNet(6, heads=2, segment=7, causal=True, global_pooling="running").double()
    torch.nn.init.zeros_(exact.query.weight)
    running.load_state_dict(exact.state_dict())
    torch.testing.assert_close(running(x).y, exact(x).y, rtol=0, atol=1e-11)
    torch.nn.init.normal_(exact.query.weight)
    running.load_state_dict(exact.state_dict())
    assert (running(x).y - exact(x).y).abs().max() > 1e-3


@pytest.mark.parametrize("config", [{"max_len": 160}, {"global_pooling": "running"}])
def test_long_streams_in_chunks_agree_with_the_oracle(config):
    layer, x = built({"segment": 7, "causal": True, **config}, 150, batch=1)
    outputs, state = [], None
    for part in x.split([1, 70, 3, 76], 1):
        y, state, _ = layer(part, state)
        outputs.append(y)
    expected = ponet_oracle(dict(layer.named_parameters()), layer.config, x[:, :72], None, Mask())
    torch.testing.assert_close(torch.cat(outputs, 1)[:, :72], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(torch.cat(outputs, 1), layer(x).y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 300])
def test_prefix_softmax_is_the_softmax_of_every_prefix(tokens):
    scores = 200 * torch.randn(2, tokens, dtype=torch.float64)
    values = torch.randn(2, tokens, 3, dtype=torch.float64)
    means, lse = prefix_softmax(scores, values)
    for t in range(tokens):
        weights = scores[:, : t + 1].softmax(-1)
        torch.testing.assert_close(means[:, t], (weights.unsqueeze(-1) * values[:, : t + 1]).sum(1), rtol=0, atol=1e-12)
        torch.testing.assert_close(lse[:, t], scores[:, : t + 1].logsumexp(-1), rtol=0, atol=1e-11)


@pytest.mark.parametrize("config", [{}, {"causal": True, "global_pooling": "running"}])
def test_no_tensor_is_as_large_as_an_attention_matrix(config):
    tokens = 2048
    layer, x = PoNet(8, heads=1, **config), torch.randn(1, tokens, 8, requires_grad=True)
    assert largest_tensor(lambda: layer(x).y.sum().backward()) < tokens**2 / 8


def test_battery_finds_a_local_window_that_looks_ahead(monkeypatch):
    right = ponet._window_max
    monkeypatch.setattr(ponet, "_window_max", lambda x: right(x.roll(-1, 1)))
    with pytest.raises(AssertionError, match="token 1 changes output 0"):
        POINTS["future_does_not_change_the_past"].check(Case(PoNet, {"heads": 2, "segment": 3, "causal": True}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PoNet(6, heads=4), r"ponet: heads: found 4, expected a divisor of dim = 6"),
        (lambda: PoNet(6, heads=2, segment=0), r"ponet: segment: found 0, expected 1 or more"),
        (lambda: PoNet(6, heads=2, global_pooling="mean"), r"global_pooling: found 'mean', expected 'exact' or 'run"),
        (lambda: PoNet(6, heads=2, global_pooling="running"), r"found 'running' with causal=False, expected 'exact'"),
        (lambda: PoNet(6, heads=2, max_len=8), r"max_len: found 8 with causal=False"),
        (lambda: PoNet(6, heads=2, causal=True, max_len=0), r"max_len: found 0 with causal=True"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_room_counts_from_the_last_reset():
    layer, x = PoNet(4, heads=2, causal=True, max_len=10), torch.randn(1, 16, 4)
    with pytest.raises(StateError, match="16 tokens do not fit into max_len = 10"):
        layer(x)
    reset = torch.zeros(1, 16, dtype=torch.bool)
    reset[0, 6] = True
    assert layer(x, mask=Mask(reset=reset)).state.position.tolist() == [10]
