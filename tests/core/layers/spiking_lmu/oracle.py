"""The oracle stands beside the one that it builds on."""

from tests.core.layers.lmu.oracle import spiking_lmu_oracle

ORACLES = {"spiking-lmu": spiking_lmu_oracle}
