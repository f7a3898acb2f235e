"""Properties of every keyword network: chunks equal the whole, causality, and folding changes nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.blocks.batch_norm import SequenceBatchNorm
from manyheads.core.errors import StateError
from manyheads.kws.models import Network
from manyheads.kws.models.sites import SpikeSite
from tests.kws.networks import BINS, CONFIGS, LABELS, SPIKING, awake, frames

FRAMES = 121  # odd: with a stride of 2 the last frame waits
NAMES = list(CONFIGS)


def chunks(kind: int | str) -> list[int]:
    if kind == "random":
        draw = random.Random(3)
        sizes: list[int] = []
        while sum(sizes) < FRAMES:
            sizes.append(min(draw.choice([0, 1, 2, 3, 5, 11, 40]), FRAMES - sum(sizes)))
        return sizes
    assert isinstance(kind, int)
    return [min(kind, FRAMES - at) for at in range(0, FRAMES, kind)]


def stream(network: Network, x: Tensor, sizes: list[int]) -> tuple[Tensor, trees.State]:
    parts, state, at = [], None, 0
    for size in sizes:
        out = network(x[:, at : at + size], state)
        parts.append(out.logits)
        state, at = out.state, at + size
    return torch.cat(parts, 1), state


def spikes_of(network: Network, run) -> dict[str, Tensor]:
    """Return the spikes of each site, concatenated over the steps."""
    seen: dict[str, list[Tensor]] = {}
    sites = [module for module in network.modules() if isinstance(module, SpikeSite)]
    hooks = [
        site.register_forward_hook(lambda m, _, out: seen.setdefault(m.name, []).append(out[0].flatten(2)))
        for site in sites
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts, 1) for name, parts in seen.items()}


@pytest.mark.parametrize("kind", [1, 7, 100, "random"])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_chunks_equal_the_whole(name: str, kind: int | str) -> None:
    network, _ = awake(name)
    x = frames(3, FRAMES)
    whole = network(x)
    logits, state = stream(network, x, chunks(kind))
    assert whole.logits.std() > 0.1, "logits that do not vary show nothing"
    torch.testing.assert_close(logits, whole.logits, atol=1e-10, rtol=0)
    for a, b in zip(trees.leaves(state), trees.leaves(whole.state), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", SPIKING)
@torch.no_grad()
def test_stream_and_whole_have_the_same_spikes(name: str) -> None:
    network, rates = awake(name)
    x = frames(3, FRAMES)
    whole = spikes_of(network, lambda: network(x))
    assert rates.keys() == whole.keys()
    for site, rate in rates.items():
        assert rate > 0.01, f"{site} is silent"
        assert whole[site].unique().tolist() == [0.0, 1.0]
    for kind in (1, 7, 100, "random"):
        parts = spikes_of(network, lambda kind=kind: stream(network, x, chunks(kind)))
        for site, spikes in whole.items():
            assert torch.equal(parts[site], spikes), f"{site} in chunks {kind}"


@pytest.mark.parametrize("name", SPIKING)
@torch.no_grad()
def test_few_spikes_differ_in_float32(name: str, record_property) -> None:
    network, _ = awake(name, torch.float32)
    x = frames(3, FRAMES, torch.float32)
    whole = spikes_of(network, lambda: network(x))
    parts = spikes_of(network, lambda: stream(network, x, [1] * FRAMES))
    rate = max((parts[site] != whole[site]).double().mean().item() for site in whole)
    record_property("spike_mismatch_rate", rate)
    print(f"{name}: spike mismatch rate in float32 {rate:.2e}")
    assert rate < 0.02


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("transformer-xl", "gtrxl")])  # theirs stops it
def test_gradients_of_chunks_equal_gradients_of_the_whole(name: str) -> None:
    """Gradients through chunks equal those of the whole in evaluation mode, where batch norm is an affine map."""
    network, _ = awake(name)
    x = frames(2, 40).requires_grad_()
    parameters = [x, *network.parameters()]
    whole = torch.autograd.grad(network(x).logits.square().sum(), parameters, allow_unused=True)
    logits, _ = stream(network, x, [7, 0, 20, 13])
    parts = torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True)
    for a, b in zip(parts, whole, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)
    assert whole[0].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_frames_beyond_the_look_ahead_do_not_change_the_output(name: str) -> None:
    """Frames from 60 on are perturbed. Logits of steps that end before frame 60 minus the look-ahead stay the same;
    the next logits change."""
    network, _ = awake(name)
    x, first = frames(48, 80), 60  # many rows: not every change of a frame moves a spike
    y = x.clone()
    y[:, first:] += 3 * frames(48, 20, seed=9)
    changed = (network.whole(x) - network.whole(y)).abs().amax((0, 2)) > 1e-9
    step = changed.nonzero()[0].item()
    assert step == (first - network.lookahead) // network.stride
    late = (network(x).logits - network(y).logits).abs().amax((0, 2)) > 1e-9
    assert late.nonzero()[0].item() == first // network.stride, "a stream sees no frame before it comes"


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_ended_stream_equals_the_whole(name: str) -> None:
    network, _ = awake(name)
    x = frames(2, 60)
    logits, state = stream(network, x, [13, 0, 47])
    owed = network.lookahead // network.stride
    joined = torch.cat([logits, network.finish(state)], 1)
    assert (joined[:, :owed] == 0).all(), "before the start nothing is said"
    torch.testing.assert_close(joined[:, owed:], network.whole(x), atol=1e-10, rtol=0)


def padded(rows: list[Tensor], beyond: float, more: int) -> tuple[Tensor, Tensor]:
    """Pad clips of unequal lengths with ``beyond`` to one batch, and add ``more`` frames of it after the longest."""
    together = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=beyond)
    return torch.nn.functional.pad(together, (0, 0, 0, more), value=beyond), torch.tensor([len(row) for row in rows])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_clip_in_a_batch_equals_the_clip_alone(name: str) -> None:
    network, _ = awake(name)
    rows = [frames(1, count, seed=count)[0] for count in (60, 33, 8)]
    together, ends = padded(rows, torch.nan, network.lookahead)
    logits = network(together, ends=ends).logits[:, network.lookahead // network.stride :]
    for row, clip in zip(logits, rows, strict=True):
        alone = network.whole(clip[None])[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_training_never_reads_padding(name: str) -> None:
    """Logits, gradients and running statistics of clips of unequal lengths do not depend on the value or the length of
    the padding."""
    found = []
    for beyond, more in ((torch.nan, 0), (1e3, 6)):
        network, _ = awake(name)
        network.train()
        rows = [frames(1, count, seed=count)[0] for count in (60, 34, 8)]
        together, ends = padded(rows, beyond, network.lookahead + more)
        out = network(together.requires_grad_(), ends=ends)
        late = network.lookahead // network.stride
        said = [row[late : late + len(clip) // network.stride] for row, clip in zip(out.logits, rows, strict=True)]
        torch.cat(said).square().sum().backward()
        for row, clip in zip(together.grad, rows, strict=True):
            assert (row[len(clip) :] == 0).all()
        gradients = [torch.zeros(()) if p.grad is None else p.grad for p in network.parameters()]
        found.append([*said, together.grad[:, :60], *gradients, *network.buffers(), *out.aux.values()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_folding_changes_nothing_and_leaves_no_batch_norm(name: str) -> None:
    network, _ = awake(name)
    folded = network.fold()
    left = [m for m in folded.modules() if isinstance(m, SequenceBatchNorm)]
    assert not left or name == "spiking-lmu", "the core's own layer keeps its norms"
    x = frames(3, FRAMES)
    torch.testing.assert_close(folded(x).logits, network(x).logits, atol=1e-10, rtol=0)
    torch.testing.assert_close(stream(folded, x, chunks(7))[0], network(x).logits, atol=1e-10, rtol=0)
    torch.testing.assert_close(folded.whole(x), network.whole(x), atol=1e-10, rtol=0)
    assert not network.folded, "the network itself is as it was"


@torch.no_grad()
def test_folding_works_for_a_channel_with_scale_zero() -> None:
    network, _ = awake("published")
    network.stem.sites[1].norm.weight[3] = 0.0
    x = frames(3, 50)
    torch.testing.assert_close(network.fold().whole(x), network.whole(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", SPIKING)
@torch.no_grad()
def test_folded_spikes_are_the_same(name: str) -> None:
    network, _ = awake(name)
    x = frames(3, FRAMES)
    folded = network.fold()
    ours, theirs = spikes_of(folded, lambda: folded(x)), spikes_of(network, lambda: network(x))
    for site, spikes in theirs.items():
        assert torch.equal(ours[site], spikes), site


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_streams_at_different_times_share_a_batch(name: str) -> None:
    network, _ = awake(name)
    x, begun = frames(3, 40), [0, 2, 16]
    states = [network(x[i : i + 1, :n]).state for i, n in enumerate(begun)]
    out = network(x[:, 16:29], trees.concat(states))
    for i, state in enumerate(states):
        alone = network(x[i : i + 1, 16:29], state)
        torch.testing.assert_close(out.logits[i : i + 1], alone.logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_row_reset_does_not_affect_other_rows(name: str) -> None:
    network, _ = awake(name)
    x = frames(2, 40)
    state = network(x[:, :20]).state
    mixed = trees.where(torch.tensor([False, True]), state, network.init_state(2, dtype=torch.float64))
    out = network(x[:, 20:], mixed).logits
    torch.testing.assert_close(out[1:], network(x[1:, 20:], network(x[1:, :20]).state).logits, atol=1e-10, rtol=0)
    torch.testing.assert_close(out[:1], network(x[:1, 20:]).logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_long_stream_has_constant_memory(name: str) -> None:
    network, _ = awake(name, torch.float32)
    state, sizes = None, set()
    for n in range(60):
        state = network(frames(1, 1 + n % 4, torch.float32), state).state
        sizes.add(trees.nbytes(state))
    assert len(sizes) == 1
    assert all(leaf.isfinite().all() for leaf in trees.leaves(state))


def test_rows_with_different_numbers_of_waiting_frames_are_refused() -> None:
    network, _ = awake("2d")
    one, two = network(frames(1, 1)).state, network(frames(1, 2)).state
    with pytest.raises(StateError, match=r"held: .*\[0, 1\].*multiples of the stride"):
        network(frames(2, 2), trees.concat([one, two]))


def test_spike_rates_have_a_gradient() -> None:
    network, _ = awake("2d-spiking")
    rates = network(frames(2, 30)).aux
    assert set(rates) == {p.source for p in network.products()} - {None}
    gradients = torch.autograd.grad(sum(rates.values()), list(network.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("name", ["published", "1d", "published-spiking"])
def test_products_count_the_weights(name: str) -> None:
    """At a stride of 1 each weight of a product is used once per step; the memory has no weights."""
    network, _ = awake(name)
    if network.stride > 1:
        network = replace(CONFIGS[name], stride=1).make(BINS, LABELS)
    weights = sum(p.numel() for n, p in network.named_parameters() if n.endswith("weight") and p.dim() > 1)
    config = network.config
    memory = config.memories * config.order * (config.order + 1)
    assert sum(p.macs for p in network.products()) == weights + memory


@torch.no_grad()
def test_negative_control_a_missing_convolution_state_is_found() -> None:
    """A stem whose second convolution loses its state between chunks fails the test that all networks pass."""
    network, _ = awake("1d")
    broken = network.stem.convolutions[1]
    inner = broken.forward
    broken.forward = lambda x, state: inner(x, broken.init_state(x.shape[0], dtype=x.dtype))
    x = frames(3, FRAMES)
    assert (stream(network, x, chunks(7))[0] - network(x).logits).abs().max() > 1e-3
