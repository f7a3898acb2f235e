"""Maths without parameters, shared by the layers."""

from manyheads.core.functional.attention import attention, attention_with_lse
from manyheads.core.functional.episode_rows import Episodes, by_episode, split_episodes
from manyheads.core.functional.fft_convolution import fast_length, fft_convolution
from manyheads.core.functional.legendre import (
    LegendreSystem,
    discretise,
    impulse_response,
    legendre_matrices,
    legendre_memory,
    legendre_polynomials,
    legendre_system,
)
from manyheads.core.functional.lif import Neuron, fire, lif, spike_rate
from manyheads.core.functional.merge import Partial, empty_partial, finish, merge, partial_attention
from manyheads.core.functional.packing import keep_first, pack, pack_order, require_room, take_along, unpack
from manyheads.core.functional.prefix import prefix_softmax
from manyheads.core.functional.recurrent_mask import RecurrentMask, carried, recurrent_mask
from manyheads.core.functional.relative_attention import relative_attention, sinusoids
from manyheads.core.functional.segments import same_segment, segment_ids, segment_starts
from manyheads.core.functional.spans import pool_span, prefix_spans, span_value
from manyheads.core.functional.windowed_attention import windowed_attention

__all__ = [
    "Episodes",
    "LegendreSystem",
    "Neuron",
    "Partial",
    "RecurrentMask",
    "attention",
    "attention_with_lse",
    "by_episode",
    "carried",
    "discretise",
    "empty_partial",
    "fast_length",
    "fft_convolution",
    "finish",
    "fire",
    "impulse_response",
    "keep_first",
    "legendre_matrices",
    "legendre_memory",
    "legendre_polynomials",
    "legendre_system",
    "lif",
    "merge",
    "pack",
    "pack_order",
    "partial_attention",
    "pool_span",
    "prefix_softmax",
    "prefix_spans",
    "recurrent_mask",
    "relative_attention",
    "require_room",
    "same_segment",
    "segment_ids",
    "segment_starts",
    "sinusoids",
    "span_value",
    "spike_rate",
    "split_episodes",
    "take_along",
    "unpack",
    "windowed_attention",
]
