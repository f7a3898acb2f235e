"""The Legendre memory: its constants, what it remembers, and the forms that must be equal."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError
from manyheads.core.functional import (
    discretise,
    fft_convolution,
    impulse_response,
    legendre_matrices,
    legendre_memory,
    legendre_polynomials,
    legendre_system,
)
from manyheads.core.layer import LayerOutput
from manyheads.core.layers.lmu import LegendreMemoryUnit, LMUState
from manyheads.core.mask import Mask
from manyheads.core.methods.mixing_matrix import influence
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case
from tests.core.layers import CASES, EXAMPLES

from .oracle import lmu_oracle

SIZES = [(1, 1), (6, 9), (32, 128), (64, 64), (128, 128), (256, 128), (256, 1000)]
LONG = 1300  # 21 blocks of 64 for small orders, 41 of 32, 163 of 8: enough for the tree over the blocks


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def constants(order, window):
    return discretise(*legendre_matrices(order, window))


def walked(u, order, window, memory, reset=None):
    """The recurrence, step by step."""
    a, b = constants(order, window)
    found = []
    for t in range(u.shape[1]):
        if reset is not None:
            memory = torch.where(reset[:, t, None], 0.0, memory)
        memory = memory @ a.T + u[:, t, None] * b
        found.append(memory)
    return torch.stack(found, 1)


@pytest.mark.parametrize(("order", "window"), SIZES)
def test_memory_forgets(order, window):
    assert torch.linalg.eigvals(constants(order, window)[0]).abs().max() < 1


@pytest.mark.parametrize(("order", "window"), SIZES)
def test_impulse_response_equals_that_of_scipy(order, window):
    signal, np = pytest.importorskip("scipy.signal"), pytest.importorskip("numpy")
    a, b = (part.numpy() for part in legendre_matrices(order, window))
    system = (a, b[:, None], np.eye(order), np.zeros((order, 1)))
    transition, drive, *_ = signal.cont2discrete(system, 1.0, method="zoh")
    column, expected = drive, []
    for _ in range(100):
        expected.append(column[:, 0])
        column = transition @ column
    found = impulse_response(*constants(order, window), 100)
    torch.testing.assert_close(found, torch.tensor(np.stack(expected)), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("order", "window", "periods"), [(8, 200, 1), (16, 200, 2), (32, 200, 4)])
@pytest.mark.parametrize("delay", [0.25, 0.5, 0.75, 1.0])
def test_sine_is_read_out_of_the_memory_at_any_delay(order, window, periods, delay):
    """A held input is half a step early. 2e-3 of an amplitude of 1: what ``order`` polynomials and the hold leave."""
    t = torch.arange(3 * window, dtype=torch.float64)
    rate = 2 * math.pi * periods / window
    memory = legendre_memory(torch.sin(rate * t)[None], legendre_system(order, window), torch.zeros(1, order).double())
    found = memory[0] @ legendre_polynomials(order, torch.tensor(delay, dtype=torch.float64))
    expected = torch.sin(rate * (t - delay * window + 0.5))
    assert (found - expected)[2 * window :].abs().max() < 2e-3


def test_polynomials_are_orthogonal_and_one_at_the_end():
    order, points = 7, (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    values = legendre_polynomials(order, points)
    expected = torch.diag(1 / (2 * torch.arange(order, dtype=torch.float64) + 1))
    torch.testing.assert_close(values.T @ values / 20000, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(legendre_polynomials(order, torch.ones(1).double()), torch.ones(1, order).double())


@pytest.mark.parametrize(("order", "window", "rank"), [(8, 128, 8), (32, 128, 32), (256, 128, 128), (512, 128, 128)])
def test_orders_above_the_window_add_no_information_about_it(order, window, rank):
    response = impulse_response(*constants(order, window), window)
    assert torch.linalg.matrix_rank(response) == rank == min(order, window)


@pytest.mark.parametrize("order", [1, 5, 64, 300])
def test_parallel_form_equals_the_recurrence_from_any_state(order):
    u, initial = normal(2, LONG), normal(2, order, seed=1)
    found = legendre_memory(u, legendre_system(order, 400), initial)
    torch.testing.assert_close(found, walked(u, order, 400, initial), rtol=0, atol=1e-10)


def test_parallel_form_equals_the_convolution_by_fft():
    u, order = normal(2, LONG), 16
    kernel = impulse_response(*constants(order, 40), LONG).T
    expected = fft_convolution(u[:, None], kernel).mT
    found = legendre_memory(u, legendre_system(order, 40), torch.zeros(2, order).double())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_without_input_the_initial_state_fades_as_the_powers_of_the_transition():
    order, initial = 6, normal(1, 6)
    found = legendre_memory(torch.zeros(1, 100).double(), legendre_system(order, 9), initial)[0, 99]
    expected = torch.linalg.matrix_power(constants(order, 9)[0], 100) @ initial[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert legendre_memory(torch.zeros(1, 1).double(), legendre_system(order, 9), initial).abs().max() > 0.1


@pytest.mark.parametrize("share", [0.01, 0.3])
@pytest.mark.parametrize("order", [5, 130])
def test_resets_in_any_place_of_any_block_cut_exactly(order, share):
    u, initial = normal(3, LONG), normal(3, order, seed=1)
    reset = torch.rand(3, LONG, generator=torch.Generator().manual_seed(2)) < share
    found = legendre_memory(u, legendre_system(order, 150), initial, reset.long().cumsum(1))
    torch.testing.assert_close(found, walked(u, order, 150, initial, reset), rtol=0, atol=1e-10)


def test_gradients_of_long_inputs_equal_those_of_the_recurrence():
    order, weights = 5, normal(2, LONG, 5, seed=3)
    u, initial = normal(2, LONG).requires_grad_(), normal(2, order, seed=1).requires_grad_()
    reset = torch.rand(2, LONG, generator=torch.Generator().manual_seed(2)) < 0.01
    blocked = legendre_memory(u, legendre_system(order, 40), initial, reset.long().cumsum(1))
    found = torch.autograd.grad((blocked * weights).sum(), [u, initial])
    expected = torch.autograd.grad((walked(u, order, 40, initial, reset) * weights).sum(), [u, initial])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_long_inputs_with_padding_and_resets_equal_the_oracle():
    layer = Case(LegendreMemoryUnit, {"order": 5, "window": 30, "channels": 2, "activation": "tanh"}).layer()
    x, generator = normal(2, 150, 6), torch.Generator().manual_seed(1)
    padding = torch.rand(2, 150, generator=generator) < 0.8
    mask = Mask(padding=padding, reset=torch.rand(2, 150, generator=generator) < 0.02)
    expected = lmu_oracle(dict(layer.named_parameters()), layer.config, x, None, mask)
    torch.testing.assert_close(layer(x, mask=mask).y, expected, rtol=0, atol=1e-10)


def test_chunks_of_all_lengths_equal_the_whole():
    layer = Case(LegendreMemoryUnit, {"order": 30, "window": 100}).layer()
    x, state, found = normal(2, LONG, 6), None, []
    for part in x.split([1, 64, 0, 63, 700, 2, 470], 1):
        y, state, _ = layer(part, state)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), layer(x).y, rtol=0, atol=1e-10)


def test_linear_unit_superposes_and_sees_all_that_came_before():
    layer = Case(LegendreMemoryUnit, {"order": 4, "window": 5, "activation": "identity"}).layer()
    x, z, nothing = normal(1, 80, 6), normal(1, 80, 6, seed=1), torch.zeros(1, 80, 6).double()
    torch.testing.assert_close(layer(x + z).y, layer(x).y + layer(z).y - layer(nothing).y, rtol=0, atol=1e-10)
    seen = influence(layer, x[:, :7])[0]
    assert (seen[torch.ones(7, 7).tril().bool()] > 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_casting_does_not_round_the_constants(dtype):
    layer = LegendreMemoryUnit(4, order=6, window=9).to(torch.bfloat16).to(dtype)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(layer.memory.transition, constants(6, 9)[0].to(kept))
    assert layer.init_state(1, dtype=dtype).memory.dtype == kept
    assert layer(torch.ones(1, 70, 4, dtype=dtype)).state.memory.dtype == kept


def test_constants_are_no_part_of_the_state_dict():
    assert set(LegendreMemoryUnit(4).state_dict()) == {
        "encoder.weight",
        "encoder.bias",
        "readout.weight",
        "skip.weight",
        "skip.bias",
    }


def test_parameters_complete_the_published_count():
    """The published model of 1,621,796 without its cell, layer by layer: five convolutions of width 3 and four
    normalisations, a convolution of width 1 and its normalisation, the channel mixer, the head."""
    d = 256
    stem = 3 * 128 * d + 3 * 3 * d * d + 4 * 2 * d + 3 * d * d
    mixer = d * d + d + 2 * d
    channels = (d * 4 * d + 4 * d + 2 * 4 * d) + (4 * d * d + d + 2 * d)
    head = d * 35 + 35
    cell = sum(p.numel() for p in create("lmu", d, window=d).parameters())
    assert stem + mixer + channels + head + cell == 1_621_796


def test_order_above_the_window_warns():
    with pytest.warns(UserWarning, match=r"lmu: order: found 9 with window 8: orders above the window add no linear"):
        LegendreMemoryUnit(4, order=9, window=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LegendreMemoryUnit(4, order=8, window=8)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"order": 0}, ArgumentError, "lmu: order: found 0, expected 1 or more"),
        ({"window": 0}, ArgumentError, "lmu: window: found 0, expected 1 or more"),
        ({"channels": 0}, ArgumentError, "lmu: channels: found 0, expected 1 or more"),
        ({"activation": "rely"}, ArgumentError, "activation: found 'rely', expected 'relu', 'tanh' or 'identity'"),
    ],
)
def test_bad_arguments_are_refused(config, kind, message):
    with pytest.raises(kind, match=message):
        LegendreMemoryUnit(4, **config)


@pytest.mark.parametrize("label", EXAMPLES["lmu"])
def test_memory_is_not_empty_where_the_battery_runs(label):
    case = Case(LegendreMemoryUnit, EXAMPLES["lmu"][label], **CASES["lmu"])
    assert (case.layer()(case.x()).state.memory.abs().amax((1, 2)) > 0.01).all()


class InitialStateForgotten(LegendreMemoryUnit):
    """As a convolution alone does: the parallel form starts from nothing; steps are right."""

    def mix(self, x, state, context, mask):
        if x.shape[1] > 1:
            state = LMUState(torch.zeros_like(state.memory))
        return super().mix(x, state, context, mask)


class ResetsOfTheFirstRow(LegendreMemoryUnit):
    def mix(self, x, state, context, mask):
        reset = None if mask.reset is None else mask.reset[:1].expand_as(mask.reset)
        return LayerOutput(*super().mix(x, state, context, Mask(padding=mask.padding, reset=reset)))


@pytest.mark.parametrize(
    ("broken", "point"),
    [
        (InitialStateForgotten, "chunks_equal_the_whole"),
        (InitialStateForgotten, "gradient_flows_through_the_state"),
        (ResetsOfTheFirstRow, "oracle_and_layer_agree"),
    ],
)
def test_battery_fails_on(broken, point):
    case = Case(broken, {"order": 4, "window": 5}, oracle=lmu_oracle, **CASES["lmu"])
    with pytest.raises(AssertionError):
        POINTS[point].check(case)


@pytest.mark.slow
def test_stream_of_100_000_steps_drifts_less_than_1e_4_and_does_not_grow():
    torch.manual_seed(0)
    narrow = LegendreMemoryUnit(8, order=32, window=128)
    wide = LegendreMemoryUnit(8, order=32, window=128).double()
    wide.load_state_dict({name: value.double() for name, value in narrow.state_dict().items()})
    x = torch.randn(1, 100_000, 8)
    with torch.no_grad():
        expected = wide(x.double()).y
        state, found = narrow.init_state(1, dtype=torch.float32), []
        size = trees.nbytes(state)
        for x_t in x.unbind(1):
            y, state = narrow.step(x_t, state)
            found.append(y)
    assert trees.nbytes(state) == size
    assert (torch.stack(found, 1).double() - expected).abs().max() < 1e-4
