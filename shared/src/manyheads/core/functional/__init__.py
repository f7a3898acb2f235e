"""Functions without parameters that the layers share."""

from manyheads.core.functional.attention import (
    attention,
    attention_with_lse,
    fused_attention_backward,
    fused_attention_with_lse,
)
from manyheads.core.functional.block_local import block_local_attention, block_local_stream
from manyheads.core.functional.circular_correlation import circular_correlation
from manyheads.core.functional.clustered_attention import clustered_attention, latest_in_cluster
from manyheads.core.functional.deformable import deformable_attention, pixel_centres, real_extent
from manyheads.core.functional.episode_rows import Episodes, by_episode, split_episodes
from manyheads.core.functional.fft_convolution import fast_length, fft_convolution, grid_fft_convolution
from manyheads.core.functional.fourier_basis import fourier_basis
from manyheads.core.functional.gru import gru_scan
from manyheads.core.functional.halo_attention import halo_attention
from manyheads.core.functional.hashing import hashed_choice, hashed_integers
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
from manyheads.core.functional.non_locality import non_locality
from manyheads.core.functional.packing import (
    hold_first,
    hold_last,
    keep_first,
    pack,
    pack_order,
    require_room,
    take_along,
    unpack,
)
from manyheads.core.functional.prefix import prefix_softmax
from manyheads.core.functional.prefix_sum import prefix_sum
from manyheads.core.functional.recurrent_mask import RecurrentMask, carried, recurrent_mask
from manyheads.core.functional.relative_attention import relative_attention, sinusoids
from manyheads.core.functional.segments import (
    positions,
    same_segment,
    segment_cumsum,
    segment_ids,
    segment_starts,
    visible,
)
from manyheads.core.functional.shift import shifted
from manyheads.core.functional.source_sampling import kept_sources, local_sources, sampled_attention, uniform_sources
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
from manyheads.core.functional.stream_k import (
    Schedule,
    Span,
    flash_attention_schedule,
    flash_decoding_schedule,
    flash_decoding_splits,
    stream_k,
)
from manyheads.core.functional.windowed_attention import windowed_attention

__all__ = [
    "Episodes",
    "LegendreSystem",
    "Neuron",
    "Partial",
    "RecurrentMask",
    "Schedule",
    "Span",
    "affinity",
    "attention",
    "attention_with_lse",
    "balanced_members",
    "block_local_attention",
    "block_local_stream",
    "by_episode",
    "carried",
    "circular_correlation",
    "cluster_statistics",
    "clustered_attention",
    "commitment_loss",
    "deformable_attention",
    "discretise",
    "ema_update",
    "empty_partial",
    "fast_length",
    "fft_convolution",
    "finish",
    "fire",
    "flash_attention_schedule",
    "flash_decoding_schedule",
    "flash_decoding_splits",
    "fourier_basis",
    "fused_attention_backward",
    "fused_attention_with_lse",
    "grid_fft_convolution",
    "gru_scan",
    "halo_attention",
    "hashed_choice",
    "hashed_integers",
    "hold_first",
    "hold_last",
    "impulse_response",
    "keep_first",
    "kept_sources",
    "latest_in_cluster",
    "legendre_matrices",
    "legendre_memory",
    "legendre_polynomials",
    "legendre_system",
    "lif",
    "local_sources",
    "merge",
    "nearest",
    "non_locality",
    "pack",
    "pack_order",
    "partial_attention",
    "pixel_centres",
    "pool_span",
    "positions",
    "prefix_softmax",
    "prefix_spans",
    "prefix_sum",
    "real_extent",
    "recurrent_mask",
    "relative_attention",
    "require_room",
    "same_segment",
    "sampled_attention",
    "segment_cumsum",
    "segment_ids",
    "segment_starts",
    "shifted",
    "sinusoids",
    "span_value",
    "spike_rate",
    "split_episodes",
    "stream_k",
    "take_along",
    "to_sphere",
    "uniform_sources",
    "unpack",
    "visible",
    "windowed_attention",
]
