"""Spike rates, synaptic operations and estimated energy of a spiking network, as NeuroBench defines them (2304.04640).

For one step of the network, with ``macs`` the multiply-adds of a matrix product, and ``r`` its input spikes per step
and neuron (the spike rate):

    effective ACs  = sum of r macs    over the products whose input is spikes   (a spike adds a column of the weights)
    effective MACs = sum of macs      over the others, which stay dense
    synaptic operations = ACs + MACs,   dense operations = sum of all macs

These are averages over the input. A product stays dense if its input is real numbers: the first convolution reads
log-mel frames, and the linear memory multiplies its own real state.

Not counted: batch norm (folded into the products), leak and threshold comparison of the neurons
(:attr:`SpikeCount.neurons` per step), the log-mel features, and data movement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.kws.models.network import Network, Product
from manyheads.kws.models.sites import SpikeSite

# M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014: 45 nm, 0.9 V, 32 bit floats:
# multiplication 3.7 pJ, addition 0.9 pJ.
MULTIPLY_PJ = 3.7
ADD_PJ = 0.9
MAC_PJ = MULTIPLY_PJ + ADD_PJ


@dataclass(frozen=True)
class ProductCount:
    """Operations of one matrix product in one step."""

    name: str
    macs: int
    """Dense multiply-adds."""
    source: str | None
    """Site of the input spikes; None if the product stays dense."""
    rate: float
    """Spike rate of the input, per step and neuron; 1 if the product stays dense."""

    @property
    def operations(self) -> float:
        """Effective operations per step."""
        return self.rate * self.macs


@dataclass(frozen=True)
class SpikeCount:
    """Spike counts of a network, averaged over its input."""

    rates: dict[str, float]
    """Site -> spike rate, per step and neuron."""
    neurons: dict[str, int]
    """Site -> number of neurons, counted once for each time that they run in a step."""
    products: tuple[ProductCount, ...]
    steps_per_second: float

    @property
    def zero_share(self) -> float:
        """Share of neuron outputs that are zero (activation sparsity); NaN without neurons."""
        total = sum(self.neurons.values())
        spikes = sum(self.rates[name] * count for name, count in self.neurons.items())
        return 1 - spikes / total if total else float("nan")

    @property
    def dense(self) -> int:
        """Multiply-adds per step if nothing is skipped, as in the same network without spikes."""
        return sum(product.macs for product in self.products)

    @property
    def effective_acs(self) -> float:
        """Additions per step, by input spikes."""
        return sum(product.operations for product in self.products if product.source is not None)

    @property
    def effective_macs(self) -> float:
        """Multiply-adds per step in the products that stay dense."""
        return sum(product.operations for product in self.products if product.source is None)

    @property
    def synaptic_operations(self) -> float:
        """Additions and multiply-adds per step."""
        return self.effective_acs + self.effective_macs

    @property
    def saving(self) -> float:
        """Dense operations divided by synaptic operations."""
        return self.dense / self.synaptic_operations

    @property
    def energy_nj(self) -> float:
        """Estimated energy of the arithmetic of one step in nanojoules, at 45 nm."""
        return (self.effective_acs * ADD_PJ + self.effective_macs * MAC_PJ) / 1000

    @property
    def dense_energy_nj(self) -> float:
        """Estimated energy of the same network without spikes, in nanojoules per step."""
        return self.dense * MAC_PJ / 1000


@torch.no_grad()
def count_spikes(network: Network, batches: Iterable[Tensor], *, hop_seconds: float = 0.01) -> SpikeCount:
    """Count the spikes of a network on batches of frames ``(B, T, M)``, each batch from a fresh state.

    Raises :class:`ArgumentError` if no batch fills a step.
    """
    network.eval()
    sizes: dict[str, int] = {}
    steps_of_call = 0

    def measure(site: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        sizes[str(site.name)] = output[0][0].numel() // steps_of_call

    hooks = [module.register_forward_hook(measure) for module in network.modules() if isinstance(module, SpikeSite)]
    sums: dict[str, float] = {}
    steps = 0
    try:
        for frames in batches:
            steps_of_call = frames.shape[1] // network.stride
            if steps_of_call == 0:
                continue
            rates = network(frames).aux
            weight = len(frames) * steps_of_call
            steps += weight
            for name, rate in rates.items():
                sums[name] = sums.get(name, 0.0) + float(rate) * weight
    finally:
        for hook in hooks:
            hook.remove()
    if steps == 0:
        raise ArgumentError(f"frames: found none that fill a step of {network.stride}, expected at least one step")
    found = {name: total / steps for name, total in sums.items()}
    products = tuple(_counted(product, found) for product in network.products())
    return SpikeCount(found, sizes, products, 1 / (network.stride * hop_seconds))


def _counted(product: Product, rates: dict[str, float]) -> ProductCount:
    rate = 1.0 if product.source is None else rates[product.source]
    return ProductCount(product.name, product.macs, product.source, rate)
