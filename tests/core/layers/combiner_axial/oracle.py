"""The oracle stands beside the one that it builds on."""

from tests.core.layers.combiner.oracle import combiner_axial_oracle

ORACLES = {"combiner-axial": combiner_axial_oracle}
