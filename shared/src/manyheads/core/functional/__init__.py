"""Maths without parameters, shared by the layers."""

from manyheads.core.functional.attention import attention, attention_with_lse
from manyheads.core.functional.block_local import block_local_attention, block_local_stream
from manyheads.core.functional.clustered_attention import clustered_attention, latest_in_cluster
from manyheads.core.functional.episode_rows import Episodes, by_episode, split_episodes
from manyheads.core.functional.fft_convolution import fast_length, fft_convolution
from manyheads.core.functional.merge import Partial, empty_partial, finish, merge, partial_attention
from manyheads.core.functional.packing import keep_first, pack, pack_order, require_room, take_along, unpack
from manyheads.core.functional.prefix import prefix_softmax
from manyheads.core.functional.relative_attention import relative_attention, sinusoids
from manyheads.core.functional.segments import same_segment, segment_ids, segment_starts
from manyheads.core.functional.source_sampling import (
    kept_sources,
    local_sources,
    sampled_attention,
    uniform_sources,
)
from manyheads.core.functional.spans import pool_span, prefix_spans, span_value
from manyheads.core.functional.spherical_kmeans import (
    affinity,
    balanced_members,
    cluster_statistics,
    commitment_loss,
    ema_update,
    nearest,
    to_sphere,
)
from manyheads.core.functional.windowed_attention import windowed_attention

__all__ = [
    "Episodes",
    "Partial",
    "affinity",
    "attention",
    "attention_with_lse",
    "balanced_members",
    "block_local_attention",
    "block_local_stream",
    "by_episode",
    "cluster_statistics",
    "clustered_attention",
    "commitment_loss",
    "ema_update",
    "empty_partial",
    "fast_length",
    "fft_convolution",
    "finish",
    "keep_first",
    "kept_sources",
    "latest_in_cluster",
    "local_sources",
    "merge",
    "nearest",
    "pack",
    "pack_order",
    "partial_attention",
    "pool_span",
    "prefix_softmax",
    "prefix_spans",
    "relative_attention",
    "require_room",
    "same_segment",
    "sampled_attention",
    "segment_ids",
    "segment_starts",
    "sinusoids",
    "span_value",
    "split_episodes",
    "take_along",
    "to_sphere",
    "uniform_sources",
    "unpack",
    "windowed_attention",
]
