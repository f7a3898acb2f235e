"""Slow references, one a layer, written from the equations in float64. They share no code with the layers."""

from .combiner import combiner_fixed_oracle
from .softmax import softmax_oracle

ORACLES = {
    "combiner-fixed": combiner_fixed_oracle,
    "softmax": softmax_oracle,
}
