"""The spiking Legendre memory unit, with calibrated normalisation: a silent network would pass everything."""

from __future__ import annotations

import math

import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.layers.spiking_lmu import SpikingLegendreMemoryUnit
from manyheads.core.mask import Mask
from manyheads.core.registry import create
from manyheads.core.testing import POINTS, Case, points_of
from tests.core.layers import CASES, EXAMPLES
from tests.core.layers.lmu.oracle import spiking_lmu_oracle

CASE, CONFIGS = CASES["spiking-lmu"], EXAMPLES["spiking-lmu"]
SITES = ("input", "memory", "output")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def calibrated(kind=SpikingLegendreMemoryUnit, dim=16, **config):
    """With fresh weights, as at the start of a training."""
    torch.manual_seed(0)
    layer = kind(dim, **{"window": 40, **config}).double().eval()
    layer.calibrate(normal(8, 200, dim, seed=1))
    return layer


def rates(out):
    return {site: out.aux[f"spike_rate_{site}"].item() for site in SITES}


class CalibratedCase(Case):
    def layer(self, dtype=torch.float64):
        made = super().layer()
        made.calibrate(self.x(grid=(64,), offset=30))
        return made.to(dtype)


def calibrated_cases():
    for label, config in CONFIGS.items():
        case = CalibratedCase(SpikingLegendreMemoryUnit, config, oracle=spiking_lmu_oracle, **CASE)
        for point in points_of(case):
            yield pytest.param(case, point, id=f"{label}-{point}")


@pytest.mark.parametrize("label", CONFIGS)
def test_neurons_fire_where_the_battery_runs(label):
    case = Case(SpikingLegendreMemoryUnit, CONFIGS[label], **CASE)
    assert min(rates(case.layer()(case.x())).values()) > 0.01


@pytest.mark.parametrize(("case", "point"), list(calibrated_cases()))
def test_calibrated_layer_passes_the_battery(case, point):
    assert min(rates(case.layer()(case.x())).values()) > 0.01
    POINTS[point].check(case)


def streamed(layer, x, sizes):
    state, found = None, []
    for part in x.split(sizes, 1):
        y, state, _ = layer(part, state)
        found.append(y)
    return torch.cat(found, 1), state


@pytest.mark.parametrize("sizes", [[1] * 200, [63, 1, 0, 64, 2, 70]], ids=["steps", "chunks"])
def test_stream_and_whole_give_the_same_spikes(sizes):
    layer, x = calibrated(), normal(4, 200, 16)
    whole = layer(x)
    assert min(rates(whole).values()) > 0.01
    found, state = streamed(layer, x, sizes)
    assert (found != whole.y).sum() == 0
    for a, b in zip(state, whole.state, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


class MemorySpikesLeftOutOfSteps(SpikingLegendreMemoryUnit):
    """As in the published code: one token at a time, the memory goes on without normalisation and neurons."""

    def _site(self, norm, x, membrane, told):
        if x.shape[1] == 1 and norm is self.memory_norm:
            return x, membrane
        return super()._site(norm, x, membrane, told)


def test_stream_that_leaves_a_site_out_is_noticed():
    layer, x = calibrated(MemorySpikesLeftOutOfSteps), normal(4, 200, 16)
    found, _ = streamed(layer, x, [1] * 200)
    assert (found != layer(x).y).double().mean() > 0.01


def test_rates_show_a_silent_layer():
    layer = calibrated(MemorySpikesLeftOutOfSteps)
    with torch.no_grad():
        layer.output_norm.bias.fill_(-50.0)
    out = layer(normal(4, 200, 16))
    assert rates(out)["output"] == 0
    assert torch.equal(streamed(layer, normal(4, 200, 16), [1] * 200)[0], out.y)  # broken, and nothing shows


def test_outputs_are_spikes():
    y = calibrated()(normal(2, 50, 16)).y
    assert set(y.unique().tolist()) == {0.0, 1.0}


def test_rates_are_those_of_the_spikes_of_real_tokens():
    layer, x = calibrated(), normal(2, 60, 16)
    padding = torch.arange(60).expand(2, -1) < torch.tensor([[60], [23]])
    out = layer(x, mask=Mask(padding=padding))
    assert rates(out)["output"] == pytest.approx(out.y.sum().item() / (83 * 16))


def test_calibration_gives_each_site_mean_zero_and_variance_one():
    layer, x, seen = calibrated(), normal(8, 200, 16, seed=1), {}
    for name in ("input_norm", "memory_norm", "output_norm"):
        layer.get_submodule(name).register_forward_hook(lambda module, args, out, name=name: seen.update({name: out}))
    layer(x)
    assert layer.input_norm.running_var.item() > 0
    torch.testing.assert_close(seen["input_norm"].mean().item(), 0.0, rtol=0, atol=1e-9)
    torch.testing.assert_close(seen["input_norm"].var().item(), 1.0, rtol=0, atol=1e-3)
    assert seen["memory_norm"].mean((0, 1)).abs().max() < 1e-2
    assert seen["output_norm"].mean((0, 1)).abs().max() < 1e-2


def test_calibration_leaves_mode_and_momentum_and_starts_anew():
    layer = calibrated()
    before = {name: value.clone() for name, value in layer.named_buffers()}
    layer.calibrate([normal(8, 200, 16, seed=5) + 3, normal(8, 200, 16, seed=6)])
    assert not torch.equal(layer.input_norm.running_mean, before["input_norm.running_mean"])
    layer.calibrate(normal(8, 200, 16, seed=1))
    assert not layer.training
    assert layer.memory_norm.momentum == 0.1
    for name, value in layer.named_buffers():
        assert torch.equal(value, before[name]), name


def test_training_statistics_ignore_padding():
    x = normal(3, 30, 16)
    padding = torch.arange(30).expand(3, -1) < torch.tensor([[30], [11], [1]])
    noise = torch.where(padding[..., None], x, 1e3)
    found = []
    for content in (x, noise):
        layer = calibrated().train()
        found.append((layer(content, mask=Mask(padding=padding)).y, layer.output_norm.running_mean.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_training_reaches_every_parameter():
    layer = calibrated().train()
    layer(normal(4, 100, 16)).y.mul(normal(4, 100, 16, seed=2)).sum().backward()
    # A bias before a normalisation has no effect; the published parameter count has it all the same.
    without_effect = {"encoder.bias", "skip.bias"}
    for name, parameter in layer.named_parameters():
        assert (parameter.grad.abs().max() > 1e-9) == (name not in without_effect), name


def test_one_token_is_no_statistic():
    with pytest.raises(ArgumentError, match="found 1 real tokens in training, expected 2 or more"):
        create("spiking-lmu", 4).train()(torch.ones(1, 1, 4))


def test_parameters_complete_the_published_count():
    """The published model of 1,689,894 without its cell, layer by layer: five convolutions of width 3 and four
    normalisations, the entry of the mixer, a convolution of width 1 and its normalisation, channel mixer, head."""
    d = 256
    stem = 3 * 128 * d + 4 * 3 * d * d + 4 * 2 * d
    mixer = 2 * d + d * d + d + 2 * d
    channels = (2 * d + d * 4 * d + 4 * d) + (2 * 4 * d + 4 * d * d + d)
    head = 2 * d + d * 35 + 35
    cell = sum(p.numel() for p in create("spiking-lmu", d, window=2 * d).parameters())
    assert stem + mixer + channels + head + cell == 1_689_894


def test_order_above_the_window_warns():
    with pytest.warns(UserWarning, match="spiking-lmu: order: found 8 with window 7"):
        SpikingLegendreMemoryUnit(4, window=7)


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({"order": 0}, ArgumentError, "spiking-lmu: order: found 0, expected 1 or more"),
        ({"window": 0}, ArgumentError, "spiking-lmu: window: found 0, expected 1 or more"),
        ({"tau": 1.0}, ArgumentError, "spiking-lmu: tau: found 1.0"),
        ({"tau": math.inf}, ArgumentError, "spiking-lmu: tau: found inf"),
        ({"threshold": -1.0}, ArgumentError, "spiking-lmu: threshold: found -1.0"),
        ({"surrogate": "arctan"}, ArgumentError, "surrogate: found 'arctan', expected 'sigmoid', 'atan'"),
    ],
)
def test_bad_arguments_are_refused(config, kind, message):
    with pytest.raises(kind, match=message):
        SpikingLegendreMemoryUnit(4, **config)
