"""The oracle stands beside the one that it builds on."""

from tests.core.layers.transformer_xl.oracle import gtrxl_oracle

ORACLES = {"gtrxl": gtrxl_oracle}
