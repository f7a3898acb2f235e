"""Slow references, one a layer, written from the equations in float64. They share no code with the layers."""

from .activator import activator_oracle
from .auto_correlation import auto_correlation_oracle
from .axial import axial_oracle
from .combiner import combiner_axial_oracle, combiner_fixed_oracle, combiner_logsparse_oracle
from .extractors import extractor_oracle
from .fourier_block import fourier_block_oracle
from .fourier_cross import fourier_cross_oracle
from .hiformer import heterogeneous_oracle, hiformer_oracle
from .lama import lama_oracle
from .lif import lif_oracle
from .lmu import lmu_oracle, spiking_lmu_oracle
from .ponet import ponet_oracle
from .prob_sparse import prob_sparse_oracle
from .random_feature import random_feature_oracle
from .routing import routing_oracle
from .softmax import softmax_oracle
from .ssa import ssa_oracle
from .transformer_xl import gtrxl_oracle, transformer_xl_oracle

ORACLES = {
    "axial": axial_oracle,
    "ponet": ponet_oracle,
    "combiner-axial": combiner_axial_oracle,
    "combiner-logsparse": combiner_logsparse_oracle,
    "combiner-fixed": combiner_fixed_oracle,
    "routing": routing_oracle,
    "ssa": ssa_oracle,
    "softmax": softmax_oracle,
    "transformer-xl": transformer_xl_oracle,
    "gtrxl": gtrxl_oracle,
    "lmu": lmu_oracle,
    "lif": lif_oracle,
    "spiking-lmu": spiking_lmu_oracle,
    "prob-sparse": prob_sparse_oracle,
    "auto-correlation": auto_correlation_oracle,
    "fourier-block": fourier_block_oracle,
    "fourier-cross": fourier_cross_oracle,
    "heterogeneous": heterogeneous_oracle,
    "hiformer": hiformer_oracle,
    "extractor-she": extractor_oracle,
    "extractor-he": extractor_oracle,
    "extractor-we": extractor_oracle,
    "extractor-me": extractor_oracle,
    "activator": activator_oracle,
    "lama": lama_oracle,
    "random-feature": random_feature_oracle,
}
