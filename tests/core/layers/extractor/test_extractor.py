"""What the Extractors promise beyond the battery."""

from __future__ import annotations

import pytest
import torch

from manyheads.core.errors import ArgumentError, StateError
from manyheads.core.functional import segment_cumsum
from manyheads.core.layers.extractor import SuperHighPerformanceExtractor, lag_convolution
from manyheads.core.mask import Mask
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case

from .oracle import extractor_oracle

WEIGHTED = ["extractor-she", "extractor-he", "extractor-we"]
CONFIGS = [(name, {"max_len": 40, "index": index}) for name in WEIGHTED for index in ("absolute", "lag")]
CONFIGS.append(("extractor-me", {}))
every = pytest.mark.parametrize(("name", "config"), CONFIGS, ids=[f"{n}-{c.get('index', '')}" for n, c in CONFIGS])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every
def test_scaling_the_input_scales_the_output_by_the_square(name, config):
    layer, x = create(name, dim=6, **config).double(), normal(2, 20, 6)
    torch.testing.assert_close(layer(3 * x).y, 9 * layer(x).y, rtol=1e-12, atol=1e-12)


@every
def test_without_the_gate_there_is_no_output(name, config):
    layer, x = create(name, dim=6, **config).double(), normal(2, 20, 6)
    torch.nn.init.zeros_(layer.adjust.weight)
    assert not layer(x).y.any()


@every
def test_a_permutation_of_the_past_matters_only_where_positions_are_weighted(name, config):
    """The last output of ME is invariant to the order of the tokens before it."""
    layer, x = create(name, dim=6, **config).double(), normal(1, 20, 6)
    order = torch.cat([torch.arange(19).flip(0), torch.tensor([19])])
    same = torch.allclose(layer(x[:, order]).y[:, -1], layer(x).y[:, -1], atol=1e-10)
    assert same == (name == "extractor-me")


@pytest.mark.parametrize(
    ("name", "positions"), [("extractor-she", 9 * 5 * 3), ("extractor-he", 9 * 3), ("extractor-we", 9)]
)
def test_parameters_are_those_of_the_formula(name, positions):
    """D = 5, F = 3, M = 9: the positions, the gate, the projection back, and but for SHE the shared projection."""
    count = sum(p.numel() for p in create(name, dim=5, max_len=9, width=3).parameters())
    assert count == positions + 5 * 3 + 3 * 5 + (0 if name == "extractor-she" else 5 * 3)


def test_she_of_the_full_width_has_a_matrix_a_position_and_the_gate():
    assert sum(p.numel() for p in create("extractor-she", dim=5, max_len=9).parameters()) == 9 * 25 + 25


def test_me_has_two_projections():
    assert sum(p.numel() for p in create("extractor-me", dim=5).parameters()) == 2 * 25


def test_me_of_a_constant_input_grows_as_the_root():
    """The sum of t equal terms over the root of t."""
    layer = create("extractor-me", dim=4).double()
    y = layer(torch.ones(1, 9, 4, dtype=torch.float64)).y
    root = torch.arange(1, 10, dtype=torch.float64).sqrt()
    torch.testing.assert_close(y, root[None, :, None] * y[:, :1], rtol=1e-12, atol=0)


def test_equal_weights_make_he_and_we_minimalist():
    x = normal(2, 20, 6)
    minimal = create("extractor-me", dim=6).double()
    for name in ("extractor-he", "extractor-we"):
        for index in ("absolute", "lag"):
            layer = create(name, dim=6, max_len=20, index=index).double()
            layer.load_state_dict({**minimal.state_dict(), "weight": torch.ones_like(layer.weight)})
            torch.testing.assert_close(layer(x).y, minimal(x).y, rtol=1e-10, atol=1e-10)


def test_she_with_diagonal_matrices_is_he_without_the_shared_projection():
    x, vectors = normal(2, 20, 6), normal(20, 6, seed=1)
    for index in ("absolute", "lag"):
        she = create("extractor-she", dim=6, max_len=20, index=index).double()
        he = create("extractor-he", dim=6, max_len=20, index=index).double()
        gate = she.adjust.weight.detach()
        she.load_state_dict({"adjust.weight": gate, "weight": torch.diag_embed(vectors)})
        he.load_state_dict({"adjust.weight": gate, "extract.weight": torch.eye(6), "weight": vectors})
        torch.testing.assert_close(she(x).y, he(x).y, rtol=1e-10, atol=1e-10)


def test_by_lag_an_impulse_answers_with_the_weights():
    x = torch.zeros(1, 10, 3, dtype=torch.float64)
    x[0, 4] = torch.tensor([1.0, 2.0, 3.0])
    weight = normal(10, 3, 2)
    y = lag_convolution(x, weight)
    torch.testing.assert_close(y[0, 4:], torch.einsum("d,jdf->jf", x[0, 4], weight[:6]), rtol=1e-12, atol=1e-12)
    assert y[0, :4].abs().max() < 1e-12


@pytest.mark.parametrize("tokens", [5, 63, 64, 65, 200])
def test_running_sums_in_blocks_are_running_sums(tokens):
    x, start, reset = normal(2, tokens, 3), normal(2, 3, seed=1), torch.rand(2, tokens) < 0.05
    carry, expected, apart = start, [], []
    for t in range(tokens):
        carry = carry + x[:, t]
        expected.append(carry)
    torch.testing.assert_close(segment_cumsum(x, None, start), torch.stack(expected, 1), rtol=1e-12, atol=1e-12)
    carry = start
    for t in range(tokens):
        carry = torch.where(reset[:, t, None], 0.0, carry) + x[:, t]
        apart.append(carry)
    torch.testing.assert_close(segment_cumsum(x, reset, start), torch.stack(apart, 1), rtol=1e-11, atol=1e-11)


@every
def test_long_chunks_after_a_state_equal_the_whole(name, config):
    """Longer than the direct sum takes, and longer than a block of the running sum."""
    config = {**config, "max_len": 150} if config else config
    layer, x = create(name, dim=4, **config).double(), normal(2, 150, 4)
    head = layer(x[:, :70])
    tail = layer(x[:, 70:], head.state)
    torch.testing.assert_close(torch.cat([head.y, tail.y], 1), layer(x).y, rtol=1e-10, atol=1e-10)


@every
def test_rows_at_different_places_take_their_own_weights(name, config):
    layer, x = create(name, dim=4, **config).double(), normal(2, 30, 4)
    padding = torch.ones(2, 30, dtype=torch.bool)
    padding[0, 3:12] = False
    y = layer(x, mask=Mask(padding=padding)).y
    expected = layer(x[:1, padding[0]]).y
    torch.testing.assert_close(y[:1, padding[0]], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("index", ["absolute", "lag"])
def test_an_episode_longer_than_max_len_is_refused(name, index):
    layer, x = create(name, dim=4, max_len=5, index=index).double(), normal(1, 6, 4)
    with pytest.raises(StateError, match="6 tokens, expected at most max_len = 5"):
        layer(x)
    with pytest.raises(StateError, match="max_len = 5"):
        layer(x[:, 5:], layer(x[:, :5]).state)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_reset_makes_room(name):
    layer, x = create(name, dim=4, max_len=5).double(), normal(1, 9, 4)
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[0, 4] = True
    y = layer(x, mask=Mask(reset=reset)).y
    torch.testing.assert_close(y[:, 4:], layer(x[:, 4:]).y, rtol=1e-10, atol=1e-10)


def test_the_sum_does_not_drift_over_a_long_stream():
    """100,000 steps in float32 against the same in float64."""
    layer = create("extractor-me", dim=4)
    exact = create("extractor-me", dim=4).double()
    exact.load_state_dict(layer.state_dict())
    x, state, reference = normal(1, 100_000, 4).float(), None, None
    for part in x.split(10_000, 1):
        y, state, _ = layer(part, state)
        expected, reference, _ = exact(part.double(), reference)
    assert (y - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_state_is_float32_at_least():
    layer = create("extractor-he", dim=4, max_len=8).bfloat16()
    assert layer(normal(1, 3, 4).bfloat16()).state.total.dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_len": 0}, "max_len: found 0, expected 1 or more"),
        ({"width": 0}, "width: found 0, expected 1 or more"),
        ({"index": "absolut"}, "index: found 'absolut', expected 'absolute' or 'lag'"),
    ],
)
def test_bad_arguments_are_named(config, message):
    with pytest.raises(ArgumentError, match=message):
        create("extractor-she", dim=4, **config)


class WeightsOneLate(SuperHighPerformanceExtractor):
    def _weighted(self, source, place, real, reset, length):
        return super()._weighted(source, (place + 1).clamp(max=length - 1), real, reset, length)


class RootForgotten(SuperHighPerformanceExtractor):
    def _running_sum(self, source, state, place, *rest, **more):
        total, state = super()._running_sum(source, state, place, *rest, **more)
        return total * (place + 1).sqrt().unsqueeze(-1), state


@pytest.mark.parametrize("broken", [WeightsOneLate, RootForgotten])
def test_battery_fails_on(broken):
    case = Case(broken, {"max_len": 12}, grid=(9,), oracle=extractor_oracle)
    with pytest.raises(AssertionError):
        POINTS["oracle_and_layer_agree"].check(case)
