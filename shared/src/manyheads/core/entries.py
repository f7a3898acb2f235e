"""Every layer: its class, the configurations that the tests run, and what the benchmark runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from manyheads.core.layer import Layer
from manyheads.core.layers.activator import Activator
from manyheads.core.layers.auto_correlation import AutoCorrelation
from manyheads.core.layers.axial import AxialAttention
from manyheads.core.layers.combiner import CombinerFixed
from manyheads.core.layers.combiner_axial import CombinerAxial
from manyheads.core.layers.combiner_logsparse import CombinerLogsparse
from manyheads.core.layers.extractors import (
    HigherPerformanceExtractor,
    MinimalistExtractor,
    SuperHighPerformanceExtractor,
    WorthwhileExtractor,
)
from manyheads.core.layers.fourier_block import FourierBlock
from manyheads.core.layers.fourier_cross import FourierCrossAttention
from manyheads.core.layers.gtrxl import GTrXL
from manyheads.core.layers.hiformer import Heterogeneous, Hiformer
from manyheads.core.layers.lama import LowRankAttentionPooling
from manyheads.core.layers.lif import LIF
from manyheads.core.layers.lmu import LegendreMemoryUnit
from manyheads.core.layers.ponet import PoNet
from manyheads.core.layers.prob_sparse import ProbSparse
from manyheads.core.layers.random_feature import RandomFeatureAttention
from manyheads.core.layers.routing import Routing
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.layers.spiking_lmu import SpikingLegendreMemoryUnit
from manyheads.core.layers.ssa import SubsampledAttention
from manyheads.core.layers.transformer_xl import TransformerXL


@dataclass(frozen=True)
class Entry:
    """A layer's class and the configurations (without ``dim``) that the battery runs; the first is the plain one."""

    layer: type[Layer]
    examples: Mapping[str, Mapping[str, Any]]
    case: Mapping[str, Any] = field(default_factory=dict)  # what the battery needs to know: dim, grid
    at_length: Callable[[int], Mapping[str, Mapping[str, Any]]] | None = None  # what the benchmark runs, by label


def _root(tokens: int) -> int:
    """The power of two at the root of the length, or the next."""
    return 1 << -(-(tokens - 1).bit_length() // 2)


AWAKE = {"seed": 2}  # with other draws a shut ReLU or neurons that never fire leave little to check


def _routing_at_length(n: int) -> dict[str, dict[str, Any]]:
    side = max(16, 16 * round(n**0.5 / 16))  # a multiple of the vector units' width
    plain = {"heads": 2, "local_heads": 1, "clusters": side, "window": side, "block": side}
    causal = {**plain, "causal": True, "shared_qk": True}
    return {"plain": plain, "causal": causal, "latest-w": {**causal, "assignment": "latest-w"}}


LAYERS: Mapping[str, Entry] = {
    "softmax": Entry(
        SoftmaxAttention,
        {
            "plain": {"heads": 2},
            "causal": {"heads": 2, "causal": True},
            "window": {"heads": 2, "causal": True, "window": 4},
            "growing": {"heads": 2, "causal": True, "max_len": 32, "bias": True},
            "cross": {"heads": 2, "context_dim": 5},
        },
        at_length=lambda n: {
            "plain": {"heads": 2},
            "causal": {"heads": 2, "causal": True},
            "window": {"heads": 2, "causal": True, "window": 128},
        },
    ),
    "axial": Entry(
        AxialAttention,
        {
            "plain": {"heads": 2},
            "columns, causal": {"heads": 2, "axis": 0, "causal": True, "bias": True},
            "rows, causal": {"heads": 3, "axis": 1, "causal": True},
        },
        case={"grid": (3, 4)},
        at_length=lambda n: {"plain": {"heads": 2}, "causal": {"heads": 2, "causal": True}},
    ),
    "combiner-fixed": Entry(
        CombinerFixed,
        {
            "plain": {"heads": 2, "segment": 3},
            "causal": {"heads": 2, "segment": 3, "causal": True, "bias": True},
            "by length": {"heads": 2},
            "growing": {"heads": 3, "segment": 3, "causal": True, "max_len": 32},
        },
        at_length=lambda n: {
            "plain": {"heads": 2, "segment": _root(n)},
            "causal": {"heads": 2, "segment": _root(n), "causal": True},
        },
    ),
    "combiner-logsparse": Entry(
        CombinerLogsparse,
        {"plain": {"heads": 2}, "growing": {"heads": 3, "max_len": 32, "bias": True}},
    ),
    "combiner-axial": Entry(
        CombinerAxial,
        {
            "plain": {"heads": 2},
            "horizontal": {"heads": 2, "plan": "horizontal", "bias": True},
            "rowmajor": {"heads": 2, "plan": "rowmajor"},
        },
        case={"dim": 4, "grid": (3, 4)},
        at_length=lambda n: {
            "plain": {"heads": 2},
            "horizontal": {"heads": 2, "plan": "horizontal"},
            "rowmajor": {"heads": 2, "plan": "rowmajor"},
        },
    ),
    "ponet": Entry(
        PoNet,
        {
            "plain": {"heads": 2, "segment": 3},
            "causal": {"heads": 2, "segment": 3, "causal": True},
            "growing": {"heads": 2, "segment": 3, "causal": True, "max_len": 32},
            "running": {"heads": 3, "segment": 3, "causal": True, "global_pooling": "running"},
        },
        at_length=lambda n: {
            "plain": {"heads": 2, "segment": 64},
            "causal": {"heads": 2, "segment": 64, "causal": True},
            "running": {"heads": 2, "segment": 64, "causal": True, "global_pooling": "running"},
        },
    ),
    "transformer-xl": Entry(
        TransformerXL,
        {
            "plain": {"heads": 2, "memory": 3},
            "memory-gradient": {"heads": 2, "memory": 3, "memory_gradient": True},
            "wide-heads": {"heads": 3, "head_width": 5, "memory": 2, "memory_gradient": True, "norm": True},
            "long-memory": {"heads": 1, "memory": 20},
        },
        at_length=lambda n: {"plain": {"heads": 2, "memory": 128}},
    ),
    "gtrxl": Entry(
        GTrXL,
        {
            "plain": {"heads": 2, "memory": 3, "hidden": 8},
            "memory-gradient": {"heads": 2, "memory": 3, "hidden": 8, "memory_gradient": True},
            "residual": {"heads": 2, "memory": 3, "gate": "residual", "head_width": 4},
            "input": {"heads": 2, "memory": 3, "hidden": 8, "gate": "input"},
            "output": {"heads": 2, "memory": 3, "hidden": 8, "gate": "output"},
            "highway": {"heads": 2, "memory": 3, "hidden": 8, "gate": "highway"},
            "sigmoid-tanh": {"heads": 2, "memory": 3, "hidden": 8, "gate": "sigmoid-tanh", "gate_bias": 0.0},
        },
        at_length=lambda n: {"plain": {"heads": 2, "memory": 128}},
    ),
    "lmu": Entry(
        LegendreMemoryUnit,
        {
            "plain": {},
            "linear": {"order": 4, "window": 5, "activation": "identity"},
            "channels": {"order": 3, "window": 8, "activation": "tanh", "channels": 2},
        },
        case=AWAKE,
        at_length=lambda n: {"plain": {"window": max(n, 128)}, "window": {"order": 32}},
    ),
    "lif": Entry(
        LIF,
        {
            "plain": {},
            "soft": {"reset": "soft", "surrogate": "atan", "threshold": 0.6},
            "attached": {"detach_reset": False, "surrogate": "triangle", "tau": 1.5, "threshold": 0.7},
            "bare": {
                "reset": "soft",
                "detach_reset": False,
                "decay_input": False,
                "surrogate": "rectangular",
                "alpha": 0.5,
            },
        },
        case=AWAKE,
    ),
    "spiking-lmu": Entry(
        SpikingLegendreMemoryUnit,
        {"plain": {}, "short": {"order": 5, "window": 6, "threshold": 0.5, "tau": 3.0, "surrogate": "atan"}},
        case=AWAKE,
        at_length=lambda n: {"plain": {"window": max(n, 256)}},
    ),
    "routing": Entry(
        Routing,
        {
            "plain": {"heads": 2, "local_heads": 1, "clusters": 2, "window": 3, "block": 2},
            "causal": {"heads": 2, "local_heads": 1, "clusters": 3, "window": 3, "block": 3, "causal": True},
            "shared": {
                **{"heads": 2, "local_heads": 0, "clusters": 2, "window": 4, "block": 2},
                **{"causal": True, "shared_qk": True},
            },
            "latest-w": {
                **{"heads": 2, "local_heads": 1, "clusters": 2, "window": 2, "block": 2},
                **{"causal": True, "shared_qk": True, "assignment": "latest-w"},
            },
            "latest-w, all heads": {
                **{"heads": 3, "local_heads": 0, "clusters": 2, "window": 3, "block": 1},
                **{"causal": True, "shared_qk": True, "assignment": "latest-w"},
            },
        },
        at_length=_routing_at_length,
    ),
    "ssa": Entry(
        SubsampledAttention,
        {
            "plain": {"heads": 2, "ratio": 0.5},
            "causal": {"heads": 2, "ratio": 0.5, "causal": True},
            "local": {"heads": 2, "ratio": 0.5, "spread": 0.5},
            "growing": {"heads": 2, "ratio": 0.5, "causal": True, "max_len": 32, "bias": True},
        },
        at_length=lambda n: {
            "plain": {"heads": 2, "ratio": 0.125},
            "causal": {"heads": 2, "ratio": 0.125, "causal": True},
            "local": {"heads": 2, "ratio": 0.125, "spread": 0.5},
        },
    ),
    "prob-sparse": Entry(
        ProbSparse,
        {
            "plain": {"heads": 2, "factor": 1},
            "causal": {"heads": 2, "factor": 1, "causal": True},
            "sum": {"heads": 2, "factor": 1, "causal": True, "running": "sum", "bias": False},
            "many": {"heads": 1, "factor": 2.6, "causal": True, "seed": 5},
        },
        at_length=lambda n: {"plain": {"heads": 2}, "causal": {"heads": 2, "causal": True}},
    ),
    "auto-correlation": Entry(
        AutoCorrelation,
        {
            "plain": {"heads": 2, "factor": 1.6},
            "per-head": {"heads": 2, "factor": 1.6, "per_head": True, "bias": False},
            "all": {"heads": 1, "factor": 9},
            "cross": {"heads": 2, "factor": 1.6, "context_dim": 5},
        },
        at_length=lambda n: {"plain": {}},
    ),
    "fourier-block": Entry(
        FourierBlock,
        {
            "plain": {"heads": 2, "length": 12, "modes": 4},
            "lowest": {"heads": 1, "length": 7, "modes": 3, "select": "lowest", "bias": False},
            "all": {"heads": 1, "length": 8, "modes": 5},
        },
        at_length=lambda n: {"plain": {"length": n, "modes": min(64, n // 2 + 1)}},
    ),
    "fourier-cross": Entry(
        FourierCrossAttention,
        {
            "plain": {"heads": 2, "length": 12, "context_dim": 5, "modes": 4},
            "lowest": {"heads": 1, "length": 7, "context_dim": 5, "modes": 3, "select": "lowest", "bias": False},
            "short": {"heads": 1, "length": 8, "context_dim": 3, "context_length": 12, "modes": 5},
        },
    ),
    "heterogeneous": Entry(
        Heterogeneous,
        {
            "plain": {"fields": 5, "heads": 2},
            "pruned": {"fields": 5, "heads": 1, "queries": 2, "expansion": 1},
        },
        case={"grid": (5,)},
        at_length=lambda n: {"plain": {"fields": n}} if n <= 512 else {},  # records of more fields are not met
    ),
    "hiformer": Entry(
        Hiformer,
        {
            "plain": {"fields": 5, "heads": 2},
            "low-rank": {"fields": 5, "heads": 2, "rank": 4},
            "pruned": {"fields": 5, "heads": 1, "queries": 2, "expansion": 1},
            "low-rank-pruned": {"fields": 5, "heads": 1, "rank": 7, "queries": 1},
        },
        case={"grid": (5,)},
        at_length=lambda n: {"plain": {"fields": n, "rank": 64}} if n <= 512 else {},
    ),
    "extractor-she": Entry(
        SuperHighPerformanceExtractor,
        {
            "plain": {"max_len": 32},
            "lag": {"max_len": 32, "index": "lag"},
            "width": {"max_len": 32, "width": 4},
        },
        case={"grid": (9,)},
        at_length=lambda n: {"plain": {"max_len": n}},
    ),
    "extractor-he": Entry(
        HigherPerformanceExtractor,
        {
            "plain": {"max_len": 32},
            "lag": {"max_len": 32, "index": "lag"},
        },
        case={"grid": (9,)},
        at_length=lambda n: {"plain": {"max_len": n}, "lag": {"max_len": n, "index": "lag"}},
    ),
    "extractor-we": Entry(
        WorthwhileExtractor,
        {
            "plain": {"max_len": 32},
            "lag": {"max_len": 32, "index": "lag"},
        },
        case={"grid": (9,)},
        at_length=lambda n: {"plain": {"max_len": n}, "lag": {"max_len": n, "index": "lag"}},
    ),
    "extractor-me": Entry(MinimalistExtractor, {"plain": {}, "width": {"width": 4}}),
    "activator": Entry(
        Activator,
        {
            "plain": {"hidden": 8},
            "only-glu": {"hidden": 8, "second_block": False},
            "token": {"axis": "token", "tokens": 7},
            "silu": {"activation": "silu"},
        },
        at_length=lambda n: {"plain": {}, "token": {"axis": "token", "tokens": n, "hidden": 128}},
    ),
    "lama": Entry(
        LowRankAttentionPooling,
        {
            "plain": {"heads": 2},
            "learned": {"heads": 3, "context": "learned", "temperature": True},
            "causal": {"heads": 2, "causal": True},
            "recurrent": {"heads": 2, "causal": True, "context": "learned", "temperature": True},
            "window": {"heads": 2, "causal": True, "window": 4},
            "growing": {"heads": 3, "causal": True, "max_len": 32, "temperature": True},
        },
        at_length=lambda n: {
            "plain": {"heads": 4},
            "recurrent": {"heads": 4, "causal": True, "context": "learned"},
            "window": {"heads": 4, "causal": True, "window": 128},
        },
    ),
    "random-feature": Entry(
        RandomFeatureAttention,
        {
            "plain": {"heads": 5},
            "biased": {"heads": 4, "biased": True, "seed": 3},
            "causal": {"heads": 4, "causal": True},
            "growing": {"heads": 4, "causal": True, "max_len": 32},
            "cross": {"heads": 4, "context_dim": 5},
        },
        at_length=lambda n: {"plain": {"heads": 4}},
    ),
}
