"""Spiking neurons: closed forms, gradients, masks, memory."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.functional import Neuron, lif
from manyheads.core.functional.lif import SURROGATES
from manyheads.core.layers.lif import LIF, LIFState
from manyheads.core.mask import Mask
from manyheads.core.testing import POINTS, Case
from tests.core.layers import CASES, EXAMPLES

from .oracle import lif_oracle, neuron_step

VARIANTS = [
    Neuron(2.5, 0.8, reset, decay, detach, surrogate)
    for reset, decay, detach, surrogate in itertools.product(
        ("hard", "soft"), (True, False), (True, False), sorted(SURROGATES)
    )
]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def walked(x, v, neuron, starts=None):
    """The oracle's step, along the tokens; spikes and all membranes."""
    spikes, membranes = [], []
    for t in range(x.shape[1]):
        if starts is not None:
            v = torch.where(starts[:, t, None], 0.0, v)
        s, v = neuron_step(x[:, t], v, neuron._asdict())
        spikes.append(s)
        membranes.append(v)
    return torch.stack(spikes, 1), torch.stack(membranes, 1)


@pytest.mark.parametrize("neuron", VARIANTS, ids=lambda n: f"{n.reset}-{n.decay_input}-{n.detach_reset}-{n.surrogate}")
@pytest.mark.parametrize("masked", [False, True])
def test_spikes_membranes_and_all_gradients_equal_those_of_the_loop(neuron, masked):
    x, v = (normal(3, 25, 4) + 0.4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    starts = torch.rand(3, 25, generator=torch.Generator().manual_seed(2)) < 0.15
    starts[0, 0] = True  # this row never sees the membrane that it is given
    starts = starts if masked else None
    on_spikes, on_membranes = normal(3, 25, 4, seed=3), normal(3, 25, 4, seed=4)

    def gradients(spikes, membranes):
        return torch.autograd.grad((spikes * on_spikes).sum() + (membranes * on_membranes).sum(), [x, v])

    found, expected = lif(x, v, neuron, starts=starts, trace=True), walked(x, v, neuron, starts)
    assert expected[0].mean() > 0.05
    assert torch.equal(found[0], expected[0].round())
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-12)
    for a, b in zip(gradients(*found), gradients(*expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("neuron", [Neuron(), Neuron(reset="soft", detach_reset=False)])
@pytest.mark.parametrize("which", ["spikes", "membrane"])
def test_gradient_of_one_output_alone(neuron, which):
    x, v = normal(2, 9, 3).requires_grad_(), normal(2, 3, seed=1).requires_grad_()
    spikes, last = lif(x, v, neuron)
    expected_spikes, membranes = walked(x, v, neuron)
    torch.testing.assert_close(last, membranes[:, -1], rtol=0, atol=1e-12)
    pair = (spikes, expected_spikes) if which == "spikes" else (last, membranes[:, -1])
    found, expected = (torch.autograd.grad(y.square().sum(), [x, v]) for y in pair)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("level", [1.2, 1.7, 3.1])
def test_constant_input_fires_with_the_period_of_the_closed_form(level):
    """From rest h after k steps is x (1 - a^k), a = 1 - 1 / tau; a hard reset makes every period the same."""
    tau, threshold, tokens = 4.0, 1.0, 60
    period = math.ceil(math.log(1 - threshold / level) / math.log(1 - 1 / tau))
    spikes, _ = lif(torch.full((1, tokens, 1), level), torch.zeros(1, 1), Neuron(tau, threshold))
    assert spikes.flatten().nonzero().flatten().tolist() == list(range(period - 1, tokens, period))


def test_input_below_threshold_stays_silent_and_settles():
    spikes, last = lif(torch.full((1, 200, 1), 0.9), torch.zeros(1, 1), Neuron(4.0))
    assert spikes.sum() == 0
    assert last.item() == pytest.approx(0.9, abs=1e-6)


def test_soft_reset_loses_no_charge():
    """v[T] = sum_t a^(T - t) (x[t] / tau - threshold s[t])."""
    tau, threshold, x = 3.0, 0.5, normal(2, 40, 5) + 1
    spikes, last = lif(x, torch.zeros(2, 5).double(), Neuron(tau, threshold, "soft"))
    fade = (1 - 1 / tau) ** torch.arange(39, -1, -1, dtype=torch.float64)[:, None]
    torch.testing.assert_close(last, ((x / tau - threshold * spikes) * fade).sum(1), rtol=0, atol=1e-12)


def test_membrane_at_the_threshold_fires():
    spikes, last = lif(torch.full((1, 1, 1), 2.0), torch.zeros(1, 1), Neuron(2.0, 1.0))
    assert spikes.item() == 1
    assert last.item() == 0


@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_surrogate_is_even_has_its_top_at_the_threshold_and_area_one(name):
    x = torch.linspace(-400, 402, 802_001, dtype=torch.float64).view(1, 1, -1).requires_grad_()
    spikes, _ = lif(x, torch.zeros(1, 802_001).double(), Neuron(2.0, 1.0, decay_input=False, surrogate=name))
    (curve,) = torch.autograd.grad(spikes.sum(), x)
    curve = curve.flatten()
    assert curve.sum().item() * 1e-3 == pytest.approx(1, abs=2e-3)  # the tails of the arcus tangens are long
    assert curve.argmax() in range(401_000 - 501, 401_000 + 501)
    torch.testing.assert_close(curve, curve.flip(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("neuron", [Neuron(), Neuron(reset="soft"), Neuron(3.0, 0.7, decay_input=False)])
def test_one_step_without_gradients_equals_the_loop(neuron):
    x, v = normal(50, 1, 20) * 2, normal(50, 20, seed=1)
    with torch.no_grad():
        quick = lif(x, v, neuron)
    slow = lif(x.clone().requires_grad_(), v, neuron)
    for a, b in zip(quick, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_backward_keeps_one_membrane_a_step_and_neuron():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        lif(torch.ones(3, 50, 7, requires_grad=True), torch.zeros(3, 7), Neuron())
    assert sum(kept) == 3 * 50 * 7


def test_gradient_of_a_gradient_is_refused():
    x = normal(1, 5, 2).requires_grad_()
    (first,) = torch.autograd.grad(lif(x, torch.zeros(1, 2).double(), Neuron())[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


def test_rate_counts_real_tokens_only_and_learns():
    layer, x = LIF(4), (normal(2, 12, 4) + 1).requires_grad_()
    padding = torch.arange(12).expand(2, -1) < torch.tensor([[12], [5]])
    y, _, aux = layer(x, mask=Mask(padding=padding))
    assert aux["spike_rate"].item() == pytest.approx(y.sum().item() / (17 * 4))
    assert torch.autograd.grad(aux["spike_rate"], x)[0].abs().sum() > 0
    assert layer(x).aux["spike_rate"].item() == pytest.approx(layer(x).y.mean().item())


def test_membrane_stays_float32_beside_lower_precision():
    out = LIF(4)(torch.ones(1, 3, 4, dtype=torch.bfloat16))
    assert (out.y.dtype, out.state.membrane.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"tau": 1.0}, ArgumentError, "lif: tau: found 1.0, expected a finite number above 1"),
        ({"tau": math.inf}, ArgumentError, "lif: tau: found inf"),
        ({"tau": math.nan}, ArgumentError, "lif: tau: found nan"),
        ({"threshold": 0.0}, ArgumentError, "lif: threshold: found 0.0, expected a finite number above 0"),
        ({"threshold": math.nan}, ArgumentError, "lif: threshold: found nan"),
        ({"alpha": -1.0}, ArgumentError, "lif: alpha: found -1.0"),
        ({"reset": "zero"}, ArgumentError, "lif: reset: found 'zero', expected 'hard' or 'soft'"),
        ({"surrogate": "sigmoids"}, ArgumentError, "surrogate: found 'sigmoids', expected 'sigmoid', 'atan'"),
    ],
)
def test_bad_arguments_are_refused(config, kind, message):
    with pytest.raises(kind, match=message):
        LIF(4, **config)


@pytest.mark.parametrize("label", EXAMPLES["lif"])
def test_neurons_fire_where_the_battery_runs(label):
    case = Case(LIF, EXAMPLES["lif"][label], **CASES["lif"])
    assert case.layer()(case.x()).aux["spike_rate"] > 0.01


class Silent(LIF):
    """Hears nothing, and so trivially is causal and streams."""

    def mix(self, x, state, context, mask):
        return super().mix(x * 0.0 - 1.0, state, context, mask)


class MembraneForgotten(LIF):
    def mix(self, x, state, context, mask):
        return super().mix(x, LIFState(torch.zeros_like(state.membrane)), context, mask)


@pytest.mark.parametrize(
    ("broken", "point"), [(Silent, "oracle_and_layer_agree"), (MembraneForgotten, "chunks_equal_the_whole")]
)
def test_battery_fails_on(broken, point):
    with pytest.raises(AssertionError):
        POINTS[point].check(Case(broken, {}, oracle=lif_oracle, **CASES["lif"]))


@pytest.mark.slow
def test_100_000_steps_fire_as_often_as_in_double_precision():
    """A membrane within rounding of the threshold may fire or not, after which the hard reset makes both alike."""
    x = torch.randn(1, 100_000, 8, generator=torch.Generator().manual_seed(0)) * 1.5
    narrow, wide = LIF(8)(x), LIF(8)(x.double())
    assert wide.aux["spike_rate"] > 0.05
    assert (narrow.y != wide.y).double().mean() < 1e-5
    assert (narrow.state.membrane - wide.state.membrane).abs().max() < 1e-4
