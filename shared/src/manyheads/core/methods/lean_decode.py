"""Lean Attention (2405.10480): one query per head over a long cache of keys, cut into parts of equal work.

    out[b, h] = merge over parts P of the cache of (m_P, l_P, o_P),   see :mod:`manyheads.core.functional.merge`

The merge is associative and commutative, so that any cut in any order gives the same result. Axes: b batch, h query
heads, k heads of keys and values (K divides H; H / K query heads share one cache, which is read once for all of them),
n tokens of cache, e key width, f value width.

:func:`lean_decode` executes the stream-K schedule of :mod:`manyheads.core.functional.stream_k` span by span: exact,
differentiable, and slow. :func:`split_decode` is the one for a CPU: each cache is cut into S equal parts, which are
folded into the axis that torch's fused kernel spreads over its threads: one call, and one merge by log-sum-exp.

Cost: time ``H N (E + F)``, spread over the threads; memory ``S H F`` beside the cache.

It is faster than the fused kernel alone if that has fewer tasks (B K) than threads: up to as many times as there are
threads, for one row and one long cache. It is not faster if B K is a multiple of the threads: then S is 1 and the fused
kernel runs as it is. Heads that share a cache gain in addition, because it is read once. docs/running.md has the
measurements.

Differs from the paper: there is no GPU kernel. The paper's workers are streaming multiprocessors that take tiles in
lock-step; here a worker of the schedule is an iteration of a loop. :func:`split_decode` cuts caches into equal parts
within a head instead of ranges that cross heads, because the CPU kernel takes one length per call. Rows of different
lengths are then one call per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.arguments import checked
from manyheads.core.errors import ArgumentError
from manyheads.core.functional.attention import attention, fused_attention_with_lse
from manyheads.core.functional.merge import Partial, finish, merge, partial_attention
from manyheads.core.functional.stream_k import flash_decoding_splits, stream_k

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Tokens of a part; in a smaller one the merge and the second thread cost more than they save.
PART = 4096


@checked
def lean_decode(
    q: Float[Tensor, "b h 1 e"],
    k: Float[Tensor, "b k n e"],
    v: Float[Tensor, "b k n f"],
    *,
    lengths: Int[Tensor, "b"] | Sequence[int] | None = None,
    workers: int = 8,
    tile: int = 256,
    scale: float | None = None,
) -> Float[Tensor, "b h 1 f"]:
    """Decode one token by the stream-K schedule.

    Args:
        lengths: tokens in use at the start of each row's cache; all N by default. A row without any gives 0.
        workers: W of the schedule.
        tile: keys of a tile.
        scale: of the scores, ``E ** -0.5`` by default.

    Raises:
        ArgumentError: shapes that do not fit, lengths beyond the cache, no worker, an empty tile.
    """
    used = _check("lean_decode", q, k, v, lengths)
    if tile < 1:
        raise ArgumentError(f"lean_decode: tile: found {tile}, expected 1 or more")
    batch, heads, _, _ = q.shape
    caches, wide = k.shape[1], torch.promote_types(q.dtype, torch.float32)
    grouped = q.reshape(batch, caches, heads // caches, q.shape[-1]).to(wide)
    schedule = stream_k([-(-count // tile) for count in used for _ in range(caches)], workers)
    merged: dict[int, Partial] = {}
    for span in (span for spans in schedule.workers for span in spans):
        row, cache = divmod(span.output, caches)
        keys = slice(span.start * tile, min(span.stop * tile, used[row]))
        part = partial_attention(
            grouped[row, cache], k[row, cache, keys].to(wide), v[row, cache, keys].to(wide), scale=scale
        )
        before = merged.get(span.output)
        merged[span.output] = part if before is None else merge(before, part)
    nothing = grouped.new_zeros(heads // caches, v.shape[-1])
    outputs = [finish(merged[i])[0] if i in merged else nothing for i in range(batch * caches)]
    out = torch.stack(outputs) if outputs else grouped.new_zeros(0, *nothing.shape)
    return out.reshape(batch, heads, 1, v.shape[-1]).to(q.dtype)


@checked
def split_decode(
    q: Float[Tensor, "b h 1 e"],
    k: Float[Tensor, "b k n e"],
    v: Float[Tensor, "b k n f"],
    *,
    lengths: Int[Tensor, "b"] | Sequence[int] | None = None,
    splits: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h 1 f"]:
    """Decode one token by torch's fused kernel on the CPU, for inference; other arguments as :func:`lean_decode`.

    Args:
        splits: S parts of a cache; by default :func:`decode_splits` on the CPU, 1 on other devices.

    Raises:
        ArgumentError: as :func:`lean_decode`; fewer than one part; gradients are recorded and an input requires them.
    """
    used = _check("split_decode", q, k, v, lengths)
    if torch.is_grad_enabled() and any(part.requires_grad for part in (q, k, v)):
        raise ArgumentError(
            "split_decode: found an input that requires gradients, expected torch.no_grad() or lean_decode, which is "
            "differentiable"
        )
    if splits is not None and splits < 1:
        raise ArgumentError(f"split_decode: splits: found {splits}, expected 1 or more")
    batch, heads, _, _ = q.shape
    caches = k.shape[1]
    grouped = q if heads == caches else q.reshape(batch, caches, heads // caches, q.shape[-1])
    if len(set(used)) > 1:
        rows = zip(*(part.split(1) for part in (grouped, k, v)), used, strict=True)
        out = torch.cat([_decode(*row, splits, scale) for row in rows])
    else:
        out = _decode(grouped, k, v, used[0] if used else 0, splits, scale)
    return out if heads == caches else out.reshape(batch, heads, 1, v.shape[-1])


@checked
def decode_splits(caches: int, tokens: int, threads: int | None = None) -> int:
    """S, the fewest parts of a cache that keep the threads at least 85 % as busy as the best number of parts.

    Args:
        caches: B K, the tasks that the kernel spreads over the threads.
        tokens: N; a part has 4,096 or more.
        threads: torch's number of threads by default.
    """
    return flash_decoding_splits(caches, tokens // PART, threads or torch.get_num_threads())


def _decode(q: Tensor, k: Tensor, v: Tensor, used: int, splits: int | None, scale: float | None) -> Tensor:
    """Attention of ``q (B, K, G, E)`` over the first ``used`` tokens, ``(B, K, G, F)``."""
    batch, caches, tokens, _ = k.shape
    if not used or not batch:
        return q.new_zeros(*q.shape[:3], v.shape[-1])
    if used < tokens:
        k, v = k[:, :, :used], v[:, :, :used]
    if splits is None:
        splits = decode_splits(batch * caches, used) if q.device.type == "cpu" else 1
    splits = min(splits, used)
    if splits == 1:
        return attention(q, k, v, scale=scale)
    # Heads and rows that cannot be viewed as one axis: row by row, without a copy.
    if any(part.stride(0) != caches * part.stride(1) for part in (k, v)):
        return torch.stack([_split(q[b], k[b], v[b], splits, scale) for b in range(batch)])
    return _split(*(part.flatten(0, 1) for part in (q, k, v)), splits, scale).unflatten(0, (batch, caches))


def _split(q: Tensor, k: Tensor, v: Tensor, splits: int, scale: float | None) -> Tensor:
    """Attention ``(R, G, F)`` of ``q (R, G, E)`` over ``k (R, N, E)``, ``v (R, N, F)``, in equal parts and a rest."""
    tokens = k.shape[1]
    size = tokens // splits
    even = splits * size
    folded = (part[:, :even].unflatten(1, (splits, size)) for part in (k, v))
    out, lse = fused_attention_with_lse(q.unsqueeze(1).expand(-1, splits, -1, -1), *folded, scale=scale)
    if even < tokens:
        rest = fused_attention_with_lse(*(part.unsqueeze(1) for part in (q, k[:, even:], v[:, even:])), scale=scale)
        out, lse = torch.cat([out, rest[0]], 1), torch.cat([lse, rest[1]], 1)
    return (out * lse.softmax(1).unsqueeze(-1)).sum(1).to(q.dtype)


def _check(name: str, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | Sequence[int] | None) -> list[int]:
    """Check the shapes; the number of tokens in use of each row."""
    if q.dim() != 4 or q.shape[2] != 1:
        raise ArgumentError(f"{name}: q: found {tuple(q.shape)}, expected (B, H, 1, E): one query a head")
    if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3] or (k.shape[0], k.shape[3]) != (len(q), q.shape[3]):
        raise ArgumentError(
            f"{name}: k, v: found {tuple(k.shape)} and {tuple(v.shape)}, expected (B, K, N, E) and (B, K, N, F) "
            f"with B = {len(q)}, E = {q.shape[3]}"
        )
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ArgumentError(f"{name}: k: found {k.shape[1]} heads, expected a divisor of the {q.shape[1]} of q")
    if lengths is None:
        return [k.shape[2]] * len(k)
    used = [int(n) for n in (lengths.tolist() if isinstance(lengths, Tensor) else lengths)]
    if len(used) != len(k) or any(not 0 <= n <= k.shape[2] for n in used):
        raise ArgumentError(f"{name}: lengths: found {used}, expected {len(k)} numbers from 0 to {k.shape[2]}")
    return used
