"""The gates of GTrXL, the gated residual, and the layer."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from manyheads.core.blocks.gated_residual import GatedResidual
from manyheads.core.blocks.gates import GATES, create_gate
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.layers.gtrxl import Gate, GTrXL
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case
from tests.core.layers.transformer_xl.oracle import gate_oracle, gtrxl_oracle

BIASED = ("output", "highway", "sigmoid-tanh", "gru")


def count(module):
    return sum(p.numel() for p in module.parameters())


def streams(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 5, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("name", GATES)
def test_gate_and_its_gradients_equal_the_oracle(name):
    torch.manual_seed(0)
    gate, (x, y) = create_gate(name, 5).double(), streams()
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    parameters = {f"g.{key}": value for key, value in gate.named_parameters()}
    expected = torch.stack(
        [
            torch.stack([gate_oracle(name, parameters, "g.", *pair) for pair in zip(a, b, strict=True)])
            for a, b in zip(x, y, strict=True)
        ]
    )
    found = gate(x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    wanted = [x, y, *gate.parameters()]
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = [torch.autograd.grad((out * weights).sum(), wanted) for out in (found, expected)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "matrices"), [("input", 1), ("output", 1), ("highway", 1), ("sigmoid-tanh", 2), ("gru", 6)]
)
def test_gate_has_its_matrices_and_one_bias(name, matrices):
    assert count(create_gate(name, 7)) == matrices * 49 + (7 if name in BIASED else 0)


@pytest.mark.parametrize(("name", "bias"), [("gru", 2.0), ("output", 1.0), ("highway", 1.0), ("sigmoid-tanh", 1.0)])
def test_bias_starts_where_the_paper_says(name, bias):
    gate = create_gate(name, 4)
    assert gate.bias.tolist() == [bias] * 4
    assert gate.bias.requires_grad


def test_a_new_gru_gate_lets_12_percent_of_the_candidate_pass():
    """With matrices of 0 but W_g = 1: (1 - s(-2)) x + s(-2) tanh(y), s(-2) = .119."""
    gate, (x, y) = create_gate("gru", 5).double(), streams()
    with torch.no_grad():
        for name, parameter in gate.named_parameters():
            if name != "bias":
                parameter.zero_()
        gate.from_output.weight[10:] = torch.eye(5)
    share = 1 / (1 + math.exp(2))
    assert abs(share - 0.119) < 5e-4
    torch.testing.assert_close(gate(x, y), (1 - share) * x + share * y.tanh(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", BIASED)
def test_a_large_bias_makes_the_layer_the_identity(name):
    layer = create("gtrxl", 6, heads=2, memory=3, gate=name, gate_bias=60.0).double()
    x = streams()[0].new_zeros(2, 5, 6).normal_(generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(layer(x).y, x, rtol=0, atol=1e-12)


def test_unknown_gate_names_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown gate 'highwy': did you mean 'highway'"):
        create_gate("highwy", 4)
    with pytest.raises(ArgumentError, match=r"gtrxl: gate: found 'GRU', expected .* or 'gru'"):
        GTrXL(6, heads=2, gate="GRU")


def test_the_layer_takes_every_gate():
    assert get_args(Gate) == tuple(GATES)


@pytest.mark.parametrize("name", ["residual", "input"])
def test_gate_without_a_bias_refuses_one(name):
    with pytest.raises(ArgumentError, match=f"bias: found 1.0 with gate '{name}', expected None"):
        create_gate(name, 4, bias=1.0)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"heads": 4}, "gtrxl: heads: found 4, expected a divisor of dim = 6"),
        ({"heads": 2, "memory": 0}, "gtrxl: memory: found 0, expected 1 or more"),
        ({"heads": 2, "hidden": 0}, "gtrxl: hidden: found 0, expected 1 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments, part):
    with pytest.raises(ArgumentError, match=part):
        GTrXL(6, **arguments)


def test_both_submodules_add_nothing_negative():
    """With the plain sum, each output is the input plus two ReLUs."""
    case = Case(GTrXL, {"heads": 2, "memory": 3, "gate": "residual"})
    x = case.x()
    more = case.layer()(x).y - x
    assert (more >= 0).all()
    assert (more > 0).any()


def test_a_gated_residual_streams_any_layer():
    torch.manual_seed(0)
    block = GatedResidual(6, SoftmaxAttention(6, heads=2, causal=True, window=3)).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    head = block(x[:, :4])
    tail = block(x[:, 4:], head.state)
    torch.testing.assert_close(torch.cat([head.y, tail.y], 1), block(x).y, rtol=0, atol=1e-12)


PUBLISHED = {"residual": 28.6, "output": 34.9, "gru": 66.4}  # million parameters, 12 layers, encoder and all


@pytest.mark.parametrize("gate", ["output", "gru"])
def test_published_counts_differ_by_gates_of_width_512(gate):
    """Two gates a layer, 12 layers. The 256 of the paper's text cannot be the gates' width."""
    with torch.device("meta"):
        added = {dim: 24 * count(create_gate(gate, dim)) / 1e6 for dim in (256, 512)}
    difference = PUBLISHED[gate] - PUBLISHED["residual"]
    assert abs(added[512] - difference) < 0.1
    assert added[256] < difference / 3


@pytest.mark.parametrize("gate", PUBLISHED)
def test_published_totals_leave_the_same_room_for_encoder_and_heads(gate):
    """D = 512 as the gates tell; F = 1024 is inferred from the first total, and fits the other two."""
    with torch.device("meta"):
        layers = 12 * count(GTrXL(512, heads=8, head_width=64, hidden=1024, gate=gate)) / 1e6
    assert 0.15 < PUBLISHED[gate] - layers < 0.3


def test_count_of_a_layer():
    """D = 256, H = 8, E = 64, F = 1024 as the equations have it."""
    with torch.device("meta"):
        layer = GTrXL(256, heads=8, head_width=64, hidden=1024)
    attention = 5 * 256 * 512 + 2 * 512
    mlp = 2 * 256 * 1024 + 1024 + 256
    gates = 2 * (6 * 256**2 + 256)
    assert count(layer) == attention + mlp + gates + 2 * 2 * 256


class QueriesNotNormed(GTrXL):
    """As one public code has it."""

    def __init__(self, dim, **config):
        super().__init__(dim, **config)
        inner = self.attention.inner
        raw = []
        inner.norm.register_forward_pre_hook(lambda module, inputs: raw.append(inputs[0]))
        inner.query.register_forward_pre_hook(lambda module, inputs: (raw.pop()[:, inner.memory :],))


class MemoryNotNormed(GTrXL):
    """As another has it."""

    def __init__(self, dim, **config):
        super().__init__(dim, **config)
        inner = self.attention.inner
        inner.norm.register_forward_hook(
            lambda module, inputs, y: torch.cat([inputs[0][:, : inner.memory], y[:, inner.memory :]], 1)
        )


@pytest.mark.parametrize(
    ("broken", "point"),
    [(QueriesNotNormed, "oracle_and_layer_agree"), (MemoryNotNormed, "chunks_equal_the_whole")],
)
def test_battery_fails_on(broken, point):
    case = Case(broken, {"heads": 2, "memory": 3}, oracle=gtrxl_oracle)
    POINTS[point].check(Case(GTrXL, case.config, oracle=gtrxl_oracle))
    with pytest.raises(AssertionError):
        POINTS[point].check(case)
