"""Small calibrated networks for the tests: random batch norm, and neurons that spike."""

from __future__ import annotations

import torch

from manyheads.core.blocks.batch_norm import SequenceBatchNorm
from manyheads.kws.models import LayerNetworkConfig, LMUFormerConfig, Network, NetworkConfig, ResidualCNNConfig

BINS, LABELS = 20, ("yes", "no", "up", "down")
SMALL = {"channels": 12, "order": 6, "window": 20, "memories": 2}
PUBLISHED = {"stem": "1d", "kernels": (3, 3, 3, 3), "stride": 1, "channels": 12, "ratio": 4, "memories": 1}
PUBLISHED |= {"order": 16, "window": 32, "published": True}

CONFIGS: dict[str, NetworkConfig] = {
    "2d": LMUFormerConfig(**SMALL),
    "2d-spiking": LMUFormerConfig(**SMALL, spiking=True),
    "2d-ahead": LMUFormerConfig(**SMALL, lookahead=2),
    "1d": LMUFormerConfig(**SMALL, stem="1d"),
    "1d-spiking": LMUFormerConfig(**SMALL, stem="1d", spiking=True),
    "1d-deep": LMUFormerConfig(**SMALL, stem="1d", depth=2, spiking=True),
    "1d-ahead": LMUFormerConfig(**SMALL, stem="1d", stride=1, lookahead=3),
    "1d-ahead-spiking": LMUFormerConfig(**SMALL, stem="1d", lookahead=4, spiking=True),
    "published": LMUFormerConfig(**PUBLISHED, lookahead=5),
    "published-spiking": LMUFormerConfig(**PUBLISHED, lookahead=5, spiking=True),
    "published-causal": LMUFormerConfig(**PUBLISHED),
    "residual-cnn": ResidualCNNConfig(channels=12, depth=3),
    "residual-cnn-ahead": ResidualCNNConfig(channels=12, depth=3, lookahead=2),
    "softmax": LayerNetworkConfig(layer="softmax", channels=12, options={"heads": 2, "window": 9}),
    "softmax-ahead": LayerNetworkConfig(layer="softmax", channels=12, lookahead=2, depth=2),
    "lmu": LayerNetworkConfig(layer="lmu", channels=12, options={"order": 8, "window": 20}),
    "transformer-xl": LayerNetworkConfig(layer="transformer-xl", channels=12, options={"memory": 7}),
    "gtrxl": LayerNetworkConfig(layer="gtrxl", channels=12, options={"memory": 7}),
    "lif": LayerNetworkConfig(layer="lif", channels=12),
    "spiking-lmu": LayerNetworkConfig(layer="spiking-lmu", channels=12, options={"order": 8, "window": 20}),
}
SPIKING = [name for name, config in CONFIGS.items() if getattr(config, "spiking", False)]


def awake(name: str, dtype: torch.dtype = torch.float64) -> tuple[Network, dict[str, torch.Tensor]]:
    """Return a network in evaluation mode, and its spike rates.

    Every batch norm has random scale and shift, with statistics calibrated on :func:`frames`. The weights of the head
    are drawn again, because the initial ones are small.
    """
    torch.manual_seed(1)
    network = CONFIGS[name].make(BINS, LABELS).to(dtype)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, SequenceBatchNorm):
                module.weight.uniform_(0.6, 1.6)
                module.bias.uniform_(-0.3, 0.5)
        network.head.weight.normal_()
    rates = network.calibrate(frames(8, 61, dtype))
    return network.eval(), rates


def frames(batch: int, count: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, count, BINS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
