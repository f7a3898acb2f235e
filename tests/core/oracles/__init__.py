"""Slow references, one a layer, written from the equations in float64. They share no code with the layers."""

from .softmax import softmax_oracle

ORACLES = {
    "softmax": softmax_oracle,
}
