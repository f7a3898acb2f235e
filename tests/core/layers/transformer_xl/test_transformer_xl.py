"""Relative attention over a window, and its layer: what a token sees, rollout and segment, gradients, long streams."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError
from manyheads.core.functional import relative_attention, sinusoids
from manyheads.core.layers.transformer_xl import TransformerXL
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import influence, mixing_matrix
from manyheads.core.registry import LAYERS, create
from manyheads.core.testing import POINTS, Case
from tests.core.layers import EXAMPLES

from .oracle import transformer_xl_oracle

MODULE = importlib.import_module("manyheads.core.functional.relative_attention")
BOTH = ("transformer-xl", "gtrxl")
CONFIGURATIONS = [
    pytest.param(name, config, id=f"{name}-{label}") for name in BOTH for label, config in EXAMPLES[name].items()
]


def parts(tokens, memory, batch=2, heads=2, width=3, value_width=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    seen = memory + tokens
    shapes = [
        (batch, heads, tokens, width),
        (batch, heads, seen, width),
        (batch, heads, seen, value_width),
        (memory + 1, heads, width),
        (heads, width),
        (heads, width),
    ]
    made = [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]
    first = torch.randint(0, memory + 1, (batch, tokens), generator=g) + torch.arange(tokens)
    return made, first


def explicit(q, k, v, r, u, w, first):
    """Scores of all pairs, masked."""
    tokens, memory = q.shape[2], r.shape[0] - 1
    distance = torch.arange(tokens)[:, None] + memory - torch.arange(memory + tokens)
    inside = (distance >= 0) & (distance <= memory)
    place = r[distance.clamp(0, memory)]
    scores = torch.einsum("bhte,bhse->bhts", q + u[:, None], k)
    scores = (scores + torch.einsum("bhte,tshe->bhts", q + w[:, None], place)) / math.sqrt(q.shape[3])
    seen = inside & (torch.arange(memory + tokens) >= first[..., None])
    return scores.masked_fill(~seen[:, None], -math.inf).softmax(-1) @ v


@pytest.mark.parametrize("few", [False, True], ids=["whole", "a few blocks at a time, nothing kept"])
@pytest.mark.parametrize(
    ("tokens", "memory", "block", "value_width"),
    [(1, 3, None, 3), (5, 1, 2, 3), (7, 20, None, 3), (11, 5, 4, 2), (12, 6, 3, 5), (9, 2, 1, 3), (75, 4, None, 3)],
)
def test_relative_attention_and_its_gradients_equal_the_explicit_sum(
    monkeypatch, tokens, memory, block, value_width, few
):
    if few:
        monkeypatch.setattr(MODULE, "_CACHED", 40)
        monkeypatch.setattr(MODULE, "_KEPT", 100 if tokens == 11 else 0)
    made, first = parts(tokens, memory, value_width=value_width)
    found, expected = relative_attention(*made, first=first, block=block), explicit(*made, first)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = [torch.autograd.grad((y * weights).sum(), made) for y in (found, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_relative_attention_without_first_sees_the_whole_window():
    made, first = parts(6, 4)
    expected = explicit(*made, torch.zeros_like(first))
    torch.testing.assert_close(relative_attention(*made, block=3), expected, rtol=0, atol=1e-12)


def test_long_inputs_save_no_scores(monkeypatch):
    """Bytes that autograd saves grow with the tokens, not with tokens times window, once enough weights are kept."""
    monkeypatch.setattr(MODULE, "_KEPT", 1 << 14)
    saved = {}

    def count(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    made, _ = parts(512, 256, batch=1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        relative_attention(*made).sum()
    assert sum(saved.values()) < 8 * (6 * 800 * 2 * 3 + (1 << 14) + 257 * 6 * 2)


def test_products_of_sinusoids_depend_on_the_difference_of_distances():
    table = sinusoids(torch.arange(9, dtype=torch.float64), 6)
    product = table @ table.T
    for shift in range(9):
        diagonal = product.diagonal(shift)
        expected = sum(math.cos(shift * 10000 ** (-2 * i / 6)) for i in range(3))
        torch.testing.assert_close(diagonal, torch.full_like(diagonal, expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BOTH)
def test_nothing_older_than_the_memory_has_an_influence(name):
    case = Case(LAYERS[name], {"heads": 2, "memory": 3}, grid=(9,))
    jacobian = influence(case.layer(), case.x()[:1])[0]
    for t in range(9):
        for s in range(9):
            if t - 3 <= s <= t:
                assert jacobian[t, s] > 1e-9
            else:
                assert jacobian[t, s] == 0


@pytest.mark.parametrize("layers", [2, 3])
def test_a_stack_reaches_layers_times_memory(layers):
    case = Case(TransformerXL, {"heads": 1, "memory": 2}, grid=(10,))
    stack = [case.layer() for _ in range(layers)]
    x = case.x()[:1].requires_grad_()
    y = x
    for layer in stack:
        y = layer(y).y
    (grad,) = torch.autograd.grad(y[:, -1].sum(), x)
    reached = grad.abs().sum(-1)[0] > 0
    assert reached.tolist() == [t >= 9 - layers * 2 for t in range(10)]


def warmed(layer, case):
    """A state whose rows are at different times: 0, 1, 2, … steps, and one row longer than the memory."""
    states = [layer(case.x(batch=1, grid=(n,), offset=30 + n)).state for n in (0, 2, 9)]
    return trees.concat(states)


@pytest.mark.parametrize(("name", "config"), CONFIGURATIONS)
def test_rollout_equals_segment_with_resets_in_the_middle(name, config):
    case = Case(LAYERS[name], config, grid=(12,))
    layer, x = case.layer(), case.x()
    reset = torch.zeros(3, 12, dtype=torch.bool)
    reset[0, 5] = reset[1, 3] = reset[1, 4] = reset[2, 0] = reset[2, 11] = True
    segment = layer(x, warmed(layer, case), mask=Mask(reset=reset))
    state, steps = warmed(layer, case), []
    for t in range(12):
        y, state, _ = layer(x[:, t : t + 1], state, mask=Mask(reset=reset[:, t : t + 1]))
        steps.append(y)
    torch.testing.assert_close(torch.cat(steps, 1), segment.y, rtol=0, atol=1e-10)
    for found, expected in zip(state, segment.state, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", BOTH)
def test_an_earlier_episode_changes_no_bit(name):
    case = Case(LAYERS[name], {"heads": 2, "memory": 4})
    layer, x = case.layer(), case.x()
    reset = torch.zeros(3, 7, dtype=torch.bool)
    reset[:, 3] = True
    other = torch.cat([x[:, :3] * 7 + 1, x[:, 3:]], 1)
    found, expected = (layer(z, mask=Mask(reset=reset)) for z in (other, x))
    assert torch.equal(found.y[:, 3:], expected.y[:, 3:])
    assert torch.equal(found.state.inputs, expected.state.inputs)


def test_the_first_token_attends_to_itself_only():
    case = Case(TransformerXL, {"heads": 2, "memory": 5})
    layer, x = case.layer(), case.x(grid=(1,))
    assert torch.allclose(layer(x).y, layer.output(layer.value(x)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("tokens", [1, 2])
def test_hooks_on_the_projections_are_called_at_any_length(tokens):
    """One token is mixed without projecting the memory, unless somebody listens or has replaced a projection."""
    case = Case(TransformerXL, {"heads": 2, "memory": 5})
    layer, x = case.layer(), case.x(grid=(tokens,))
    expected = layer(x).y
    assert mixing_matrix(layer, x).shape == (3, 2, tokens, 5 + tokens)
    layer.value = nn.Sequential(layer.value)
    torch.testing.assert_close(layer(x).y, expected, rtol=0, atol=1e-12)


def test_weights_of_empty_slots_are_zero():
    case = Case(TransformerXL, {"heads": 2, "memory": 5})
    matrix = mixing_matrix(case.layer(), case.x())
    assert (matrix[..., :5] == 0).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones_like(matrix[..., 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BOTH)
def test_the_memory_holds_the_inputs_as_they_came(name):
    case = Case(LAYERS[name], {"heads": 2, "memory": 4})
    layer, x = case.layer(), case.x()
    state = layer(x).state
    assert torch.equal(state.inputs, x[:, -4:])
    assert state.used.tolist() == [4, 4, 4]
    assert torch.equal(layer(x[:, :3]).state.inputs, torch.cat([torch.zeros(3, 1, 6), x[:, :3]], 1).double())


@pytest.mark.parametrize("name", BOTH)
def test_the_gradient_stops_at_the_memory_but_weights_learn_from_it(name):
    """The same gradients as of the whole in which the past is a constant: keys and values of memory count."""
    case = Case(LAYERS[name], {"heads": 2, "memory": 4})
    layer, x = case.layer(), case.x().requires_grad_()
    head = layer(x[:, :3])
    assert not head.state.inputs.requires_grad
    y = layer(x[:, 3:], head.state).y
    free = type(layer)(**{**layer.config, "memory_gradient": True}).double()
    free.load_state_dict(layer.state_dict())
    constant = free(torch.cat([x[:, :3].detach(), x[:, 3:]], 1)).y[:, 3:]
    weights = torch.randn(y.shape, generator=case.generator(8), dtype=torch.float64)
    found = torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad((constant * weights).sum(), [x, *free.parameters()])
    assert (found[0][:, :3] == 0).all()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", BOTH)
def test_gradients_of_single_tokens_are_those_of_the_whole(name):
    config = {"heads": 2, "head_width": 5, "memory": 4, "memory_gradient": True}
    case = Case(LAYERS[name], config)
    layer, x = case.layer(), case.x().requires_grad_()
    state, steps = None, []
    for t in range(7):
        y, state, _ = layer(x[:, t : t + 1], state)
        steps.append(y)
    weights = torch.randn(x.shape, generator=case.generator(8), dtype=torch.float64)
    wanted = [x, *layer.parameters()]
    grads = [torch.autograd.grad((y * weights).sum(), wanted) for y in (torch.cat(steps, 1), layer(x).y)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", BOTH)
def test_flops_of_a_token_are_counted_as_run(name):
    layer = create(name, 16, heads=2, head_width=24, memory=8)
    state, x = layer.init_state(1), torch.randn(1, 1, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x, state)
    assert counter.get_total_flops() == layer.info.flops(layer.config, (1,))


@pytest.mark.parametrize("name", BOTH)
def test_not_a_number_in_the_padding_does_not_spread(name):
    case = Case(LAYERS[name], {"heads": 2, "memory": 4})
    layer, x = case.layer(), case.x()
    padding = torch.arange(7).expand(3, -1) % 3 != 1
    out = layer(torch.where(padding.unsqueeze(-1), x, math.nan), mask=Mask(padding=padding))
    assert torch.equal(out.y, layer(x, mask=Mask(padding=padding)).y)
    assert out.state.inputs.isfinite().all()


@pytest.mark.parametrize("name", BOTH)
def test_autocast_is_close(name):
    case = Case(LAYERS[name], {"heads": 2, "memory": 4}, dim=16, grid=(40,))
    layer, x = case.layer(torch.float32), case.x().float().requires_grad_()
    expected = layer(x).y
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x).y
        y.float().sum().backward()
    error = ((y - expected).square().mean() / expected.square().mean()).sqrt()
    assert error < 3e-2
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"heads": 4}, "transformer-xl: heads: found 4, expected a divisor of dim = 6"),
        ({"heads": 0}, "transformer-xl: heads: found 0, expected a divisor of dim = 6"),
        ({"heads": 2, "memory": 0}, "transformer-xl: memory: found 0, expected 1 or more"),
        ({"heads": 2, "head_width": -1}, "transformer-xl: head_width: found -1, expected 1 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments, part):
    with pytest.raises(ArgumentError, match=part):
        TransformerXL(6, **arguments)


class EmptySlotsAttended(TransformerXL):
    def _first(self, used, episode):
        return torch.zeros_like(episode)


class WindowDropped(TransformerXL):
    """As public code has it: a token of a segment sees the whole memory and all of the segment before it."""

    def _attend(self, known, first):
        more = first.shape[1] - 1
        self.memory += more
        try:
            return super()._attend(pad(known, (0, 0, more, 0)), first + more)
        finally:
            self.memory -= more


class EpisodesMixed(TransformerXL):
    def _first(self, used, episode):
        return super()._first(used, torch.zeros_like(episode))


@pytest.mark.parametrize(
    ("broken", "point"),
    [
        (EmptySlotsAttended, "oracle_and_layer_agree"),
        (WindowDropped, "chunks_equal_the_whole"),
        (WindowDropped, "oracle_and_layer_agree"),
        (EpisodesMixed, "reset_equals_separate_sequences"),
    ],
)
def test_battery_fails_on(broken, point):
    case = Case(broken, {"heads": 2, "memory": 3}, oracle=transformer_xl_oracle)
    with pytest.raises(AssertionError):
        POINTS[point].check(case)


def test_a_stream_of_100000_steps_does_not_drift():
    """Two layers of GTrXL in float32: the tail of the stream against the same tokens as one segment."""
    torch.manual_seed(0)
    stack = nn.ModuleList([create("gtrxl", 16, heads=2, memory=32, gate="gru") for _ in range(2)]).eval()
    generator = torch.Generator().manual_seed(1)

    def run(x, states):
        made = []
        for layer, state in zip(stack, states, strict=True):
            x, state, _ = layer(x, state)
            made.append(state)
        return x, made

    states, tail, streamed, sizes = [None, None], [], [], set()
    with torch.no_grad():
        for _ in range(200):
            x = torch.randn(1, 500, 16, generator=generator)
            y, states = run(x, states)
            sizes.add(trees.nbytes(tuple(states)))
            tail, streamed = [*tail, x][-2:], [*streamed, y][-1:]
        whole, _ = run(torch.cat(tail, 1), [None, None])
    assert len(sizes) == 1
    assert (whole[:, 500:] - streamed[0]).abs().max() < 1e-5
