"""The oracle stands beside the one that it builds on."""

from tests.core.layers.combiner.oracle import combiner_logsparse_oracle

ORACLES = {"combiner-logsparse": combiner_logsparse_oracle}
