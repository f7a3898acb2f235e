"""Every memory core: a rollout equals its training segment, episodes do not leak, the memory takes no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.registry import LAYERS
from manyheads.rl.cores import Core, build_core, core_names
from manyheads.rl.cores.core import LayerCore

BATCH, STEPS, WIDTH = 3, 24, 16
SMALL = {"memory": 5, "heads": 2}
CORES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "lstm": ("lstm", {}),
    "gru": ("gru", {}),
    "gtrxl": ("gtrxl", SMALL),
    "trxl-i": ("gtrxl", {**SMALL, "gate": "residual"}),
    **{f"gtrxl, {gate}": ("gtrxl", {**SMALL, "gate": gate}) for gate in ("input", "output", "highway", "sigmoid-tanh")},
    "transformer-xl": ("transformer-xl", SMALL),
    "lmu": ("lmu", {"order": 4, "window": 8}),
    "spiking-lmu": ("spiking-lmu", {"order": 4, "window": 8}),
    "lif": ("lif", {}),
    "softmax": ("softmax", {"window": 5}),
    "lama": ("lama", {"window": 5}),
    "ponet": ("ponet", {"global_pooling": "running"}),
    "ffnified-sequence": ("ffnified-sequence", {}),
    "routing": (
        "routing",
        {"heads": 2, "local_heads": 1, "clusters": 2, "window": 2, "block": 2, "shared_qk": True}
        | {"assignment": "latest-w"},
    ),
    **{name: (name, {"max_len": 64}) for name in ("extractor-she", "extractor-he", "extractor-we")},
    "extractor-me": ("extractor-me", {}),
}
# Their state grows with every step, so that they cannot be a core.
GROWING = {"combiner-fixed", "combiner-logsparse", "random-feature", "ssa"}
# They sum over a whole row and subtract what came before an episode: equal to rounding only.
TO_ROUNDING = ("extractor-she", "extractor-he", "extractor-we", "extractor-me")
EXACT = ("none", "lstm", "gru", "gtrxl", "trxl-i")
every = pytest.mark.parametrize("label", CORES)


def _core(label: str, dtype: torch.dtype = torch.float32) -> Core:
    torch.manual_seed(1)
    name, options = CORES[label]
    return build_core(name, WIDTH, depth=1 if name == "none" else 2, **options).to(dtype).eval()


def _batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(BATCH, STEPS, WIDTH, generator=generator).to(dtype)
    first = torch.zeros(BATCH, STEPS, dtype=torch.bool)
    # one row in one episode, one with two resets, one that resets at the start and at two steps in a row
    first[1, [4, 17]] = first[2, [0, 9, 10]] = True
    return x, first


def _by_steps(core: Core, x: Tensor, state: trees.State, first: Tensor) -> tuple[Tensor, trees.State]:
    found = []
    for step in range(x.shape[1]):
        y, state = core(x[:, step : step + 1], state, first[:, step : step + 1])
        found.append(y)
    return torch.cat(found, 1), state


def _warm(core: Core, dtype: torch.dtype = torch.float32) -> trees.State:
    """A state in the middle of an episode."""
    x = torch.randn(BATCH, 7, WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)
    first = torch.zeros(BATCH, 7, dtype=torch.bool)
    return trees.detach(core(x, core.init_state(BATCH, dtype=dtype), first)[1])


def test_every_streaming_layer_is_tried_here():
    assert {name for name, _ in CORES.values()} | GROWING == set(core_names())


@every
def test_steps_equal_the_segment_with_resets_in_the_middle(label: str):
    core, (x, first) = _core(label), _batch()
    start = _warm(core)
    whole, after = core(x, start, first)
    single, last = _by_steps(core, x, start, first)
    tolerance = 1e-6 if label in EXACT or label.startswith("gtrxl") else 1e-5
    torch.testing.assert_close(single, whole, rtol=0, atol=tolerance * max(1.0, whole.abs().max().item()))
    for a, b in zip(trees.leaves(last), trees.leaves(after), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@every
def test_segments_of_any_length_equal_the_whole(label: str):
    core, (x, first) = _core(label, torch.float64), _batch(torch.float64)
    state, parts = _warm(core, torch.float64), []
    whole, _ = core(x, state, first)
    for start, stop in ((0, 9), (9, 10), (10, 24)):
        y, state = core(x[:, start:stop], state, first[:, start:stop])
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-9)


@every
def test_an_earlier_episode_does_not_change_a_later_one_bit_for_bit(label: str):
    core, (x, first) = _core(label), _batch()
    start = _warm(core)
    y, after = core(x, start, first)
    changed = x.clone()
    # row 1 begins its last episode at step 17, row 2 at step 10
    changed[1, :17] += 3.0
    changed[2, :10] -= 5.0
    # no constant, which a layer norm would take away
    shaken = trees.tree_map(lambda one: one + torch.randn(one.shape) if one.is_floating_point() else one, start)
    again, later = core(changed, shaken, first)
    tolerance = 1e-5 if label in TO_ROUNDING else 0.0
    for a, b in ((y[1, 17:], again[1, 17:]), (y[2, 10:], again[2, 10:])):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    if label != "none":
        assert (y[0] - again[0]).abs().max() > 1e-3
    for a, b in zip(trees.leaves(after), trees.leaves(later), strict=True):
        torch.testing.assert_close(a[1:], b[1:], rtol=0, atol=tolerance)


@every
def test_no_gradient_flows_into_the_memory(label: str):
    core, (x, first) = _core(label), _batch()
    given = trees.tree_map(lambda one: one.requires_grad_() if one.is_floating_point() else one, _warm(core))
    y, after = core(x.requires_grad_(), given, first)
    y.sum().backward()
    assert x.grad is not None
    assert all(one.grad is None for one in trees.leaves(given))
    # a second segment must not reach back into the first
    x.grad = None
    again, _ = core(x.detach(), after, first)
    if label != "none":
        again.sum().backward()
        assert x.grad is None


@every
def test_rows_do_not_see_each_other(label: str):
    core, (x, first) = _core(label), _batch()
    start, order = _warm(core), torch.tensor([2, 0, 1])
    y, _ = core(x, start, first)
    moved, _ = core(x[order], trees.select(start, order), first[order])
    torch.testing.assert_close(moved, y[order], rtol=1e-5, atol=1e-5)
    alone, _ = core(x[:1], trees.select(start, torch.tensor([0])), first[:1])
    torch.testing.assert_close(alone, y[:1], rtol=1e-5, atol=1e-5)


def _without_resets(core: Core) -> Core:
    """A broken core: it never starts a new episode."""
    forward = core.forward
    core.forward = lambda x, state, first: forward(x, state, torch.zeros_like(first))  # ty: ignore
    return core


def test_the_leak_test_fails_for_a_core_that_ignores_resets(monkeypatch):
    monkeypatch.setattr("tests.rl.test_cores._core", lambda label: _without_resets(build_core("lstm", WIDTH).eval()))
    with pytest.raises(AssertionError):
        test_an_earlier_episode_does_not_change_a_later_one_bit_for_bit("lstm")


class _LateReset(LayerCore):
    """A broken core, as in several public codes: resets count at the start of a segment only."""

    def forward(self, x: Tensor, state: trees.State, is_first: Tensor) -> tuple[Tensor, trees.State]:
        only = torch.zeros_like(is_first)
        only[:, 0] = is_first[:, 0]
        return super().forward(x, state, only)


def test_the_step_test_fails_for_a_core_that_resets_at_the_start_of_a_segment_only(monkeypatch):
    torch.manual_seed(0)
    layers = list(build_core("gtrxl", WIDTH, depth=2, **SMALL).blocks)  # ty: ignore
    monkeypatch.setattr("tests.rl.test_cores._core", lambda label: _LateReset(WIDTH, layers).eval())
    with pytest.raises(AssertionError):
        test_steps_equal_the_segment_with_resets_in_the_middle("gtrxl")


def test_the_step_test_fails_for_a_memory_without_a_window(monkeypatch):
    """A query of a segment then sees more steps than the rollout did, as in DI-engine and RLlib."""
    core = build_core("gtrxl", WIDTH, depth=2, **SMALL).eval()
    wide = build_core("gtrxl", WIDTH, depth=2, **{**SMALL, "memory": 5 + STEPS}).eval()
    wide.load_state_dict(core.state_dict())
    x, first = _batch()
    whole, _ = wide(x, wide.init_state(BATCH), first)
    single, _ = _by_steps(core, x, core.init_state(BATCH), first)
    assert (whole - single).abs().max() > 1e-3


def test_memory_reaches_back_as_far_as_it_says():
    core = build_core("gtrxl", WIDTH, depth=1, **SMALL).double().eval()
    x, first = _batch(torch.float64)
    x.requires_grad_()
    y, _ = core(x, core.init_state(BATCH, dtype=torch.float64), torch.zeros_like(first))
    (gradient,) = torch.autograd.grad(y[0, 20].sum(), x)
    seen = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
    assert seen == list(range(15, 21))


def test_lstm_runs_one_kernel_for_each_stretch_without_resets(monkeypatch):
    core, (x, first) = build_core("lstm", WIDTH), _batch()
    calls = []
    forward = core.unit.forward
    monkeypatch.setattr(core.unit, "forward", lambda *given: calls.append(given[0].shape[1]) or forward(*given))
    core(x, core.init_state(BATCH), first)
    assert calls == [4, 5, 1, 7, 7]


def test_lstm_equals_the_cell_stepped_with_zeroed_states():
    core, (x, first) = build_core("lstm", WIDTH).double(), _batch(torch.float64)
    cell = torch.nn.LSTMCell(WIDTH, WIDTH).double()
    weights = {name.removesuffix("_l0"): one for name, one in core.unit.state_dict().items()}
    cell.load_state_dict(weights)
    h = c = torch.zeros(BATCH, WIDTH, dtype=torch.float64)
    expected = []
    for step in range(STEPS):
        kept = (~first[:, step]).double().unsqueeze(1)
        h, c = cell(x[:, step], (h * kept, c * kept))
        expected.append(h)
    y, _ = core(x, core.init_state(BATCH, dtype=torch.float64), first)
    torch.testing.assert_close(y, torch.stack(expected, 1), rtol=1e-12, atol=1e-12)


def test_layers_that_are_no_core_are_refused_in_words():
    with pytest.raises(UnknownNameError, match="did you mean 'gtrxl'"):
        build_core("gtrlx", 16)
    with pytest.raises(ArgumentError, match="'softmax', which keeps no state"):
        build_core("softmax", 16)
    with pytest.raises(ArgumentError, match="'ssa', whose state grows"):
        build_core("ssa", 16, max_len=64)
    with pytest.raises(ArgumentError, match="'axial', which"):
        build_core("axial", 16)
    with pytest.raises(ArgumentError, match="core 'lstm': memory"):
        build_core("lstm", 16, memory=3)
    with pytest.raises(ArgumentError, match="depth 0"):
        build_core("gru", 16, depth=0)
    assert "hyena-nd" in LAYERS
