"""Spike counts against loops over every spike, a small network by hand, and NeuroBench if installed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from manyheads.core.blocks.causal_convolution import CausalConvolution
from manyheads.core.errors import ArgumentError
from manyheads.kws.audio.features import LogMel, RunningMean
from manyheads.kws.evaluation.spikes import ADD_PJ, MAC_PJ, ProductCount, SpikeCount, count_spikes
from manyheads.kws.models.network import Product
from manyheads.kws.models.sites import SpikeSite

from .spotters import FEATURES, babble, small_spotter


def frames_of(seed, seconds=2.0):
    return RunningMean()(LogMel(FEATURES)(torch.from_numpy(babble(seconds, seed=seed))[None])[0])[0]


def test_counts_of_a_small_network_computed_by_hand():
    # Two real inputs to three neurons, and these to two neurons: 10 of 100 neuron outputs are spikes.
    products = (ProductCount("in", 6, None, 1.0), ProductCount("out", 6, "site", 0.1))
    count = SpikeCount({"site": 0.1}, {"site": 3}, products, 100.0)
    assert count.dense == 12
    assert count.effective_macs == 6
    assert count.effective_acs == pytest.approx(0.6)
    assert count.synaptic_operations == pytest.approx(6.6)
    assert count.saving == pytest.approx(12 / 6.6)
    assert count.zero_share == pytest.approx(0.9)
    assert count.energy_nj == pytest.approx((6 * 4.6 + 0.6 * 0.9) / 1000)
    assert count.dense_energy_nj == pytest.approx(12 * 4.6 / 1000)
    assert (0.9, pytest.approx(4.6)) == (ADD_PJ, MAC_PJ)


@pytest.mark.parametrize("stem", ["1d", "2d"])
def test_spike_rates_equal_counted_spikes(stem):
    network = small_spotter(spiking=True, stem=stem).network
    seen = {site.name: [0.0, 0] for site in network.modules() if isinstance(site, SpikeSite)}

    def count(site, inputs, output):
        seen[site.name][0] += float(output[0].sum())
        seen[site.name][1] += output[0].numel()

    for site in network.modules():
        if isinstance(site, SpikeSite):
            site.register_forward_hook(count)
    batches = [frames_of(1), frames_of(2, 1.0)]
    found = count_spikes(network, batches)
    steps = sum(frames.shape[1] // network.stride for frames in batches)
    assert set(found.rates) == set(seen)
    for name, (spikes, outputs) in seen.items():
        assert found.rates[name] == pytest.approx(spikes / outputs, rel=1e-5)
        assert found.neurons[name] == outputs / steps
        assert found.rates[name] > 0.01
    assert found.zero_share == pytest.approx(1 - sum(s for s, _ in seen.values()) / sum(n for _, n in seen.values()))


def fan_out(module):
    """Return the number of multiply-adds for one input number."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.weight.shape[0] * module.weight.shape[2]


def test_each_spike_costs_one_column_of_weights():
    network = small_spotter(spiking=True, stem="1d", stride=1).network.eval()
    frames, added, dense = frames_of(3), [0.0], [0]

    def count(module, inputs, output):
        x = inputs[0]
        if bool(((x == 0) | (x == 1)).all()):
            added[0] += float(x.sum()) * fan_out(module)
        else:
            dense[0] += x.numel() * fan_out(module)

    for module in network.modules():
        if isinstance(module, nn.Linear | CausalConvolution):
            module.register_forward_hook(count)
    found = count_spikes(network, [frames])
    memory, drive = (next(p for p in found.products if p.name == name) for name in ("memory", "drive"))  # no modules
    steps = frames.shape[1]
    assert found.effective_acs - drive.rate * drive.macs == pytest.approx(added[0] / steps, rel=1e-5)
    assert found.effective_macs - memory.macs == dense[0] / steps
    assert drive.rate == found.rates["input"]
    assert {p.name for p in found.products if p.source is None} == {"stem1", "memory"}


def test_a_network_without_spikes_saves_nothing():
    found = count_spikes(small_spotter().network, [frames_of(1)])
    assert found.saving == 1.0
    assert found.effective_acs == 0
    assert found.rates == {}


def test_too_few_frames_are_refused():
    with pytest.raises(ArgumentError, match="found none that fill a step of 2"):
        count_spikes(small_spotter().network, [torch.zeros(1, 1, 16)])


def test_operations_equal_neurobench():
    """A chain of linear layers and neurons, counted by the hooks of NeuroBench."""
    neurobench = pytest.importorskip("neurobench.metrics.workload")
    from neurobench.models import TorchModel

    class Spike(nn.Module):
        def forward(self, x):
            return (x > 0.8).float()

    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(5, 8, bias=False), Spike(), nn.Linear(8, 4, bias=False))
    x = torch.randn(64, 5)
    model = TorchModel(chain)
    model.add_activation_module(Spike)
    model.register_hooks()
    theirs = neurobench.SynapticOperations()(model, model(x), (x, torch.zeros(64)))
    rate = float(Spike()(chain[0](x)).mean())
    products = (Product("in", 40, None), Product("out", 32, "spikes"))
    counted = tuple(ProductCount(p.name, p.macs, p.source, 1.0 if p.source is None else rate) for p in products)
    mine = SpikeCount({"spikes": rate}, {"spikes": 8}, counted, 100.0)
    assert 0.01 < rate < 0.5
    assert theirs["Effective_MACs"] == pytest.approx(mine.effective_macs)
    assert theirs["Effective_ACs"] == pytest.approx(mine.effective_acs)
    assert theirs["Dense"] == pytest.approx(mine.dense)
