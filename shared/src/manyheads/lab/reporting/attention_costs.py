"""Benchmark the ways to run attention: tile schedules, split decoding, and sequence parallelism.

Each case gives one row. The column ``part`` is one of:

    schedule  makespan in tiles of stream-K and of two other schedules; counted, not timed
    decode    one query per head over a cache of N tokens: SDPA and split decoding alternate; shortest wall time, and
              the load of the machine. Wall time, because the gain comes from several threads
    sequence  T tokens on one process (naive with stored scores, then the fused kernel) and on two processes (gloo):
              largest error against float64, bytes sent and bytes predicted, largest tensor and block of scores, CPU
              seconds per process
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manyheads.core.functional import attention, flash_attention_schedule, flash_decoding_schedule, stream_k
from manyheads.core.methods.lean_decode import decode_splits, split_decode

Row = dict[str, Any]
# Number of workers of the schedules; number of keys per tile.
WORKERS, TILE = 108, 256
SCHEDULES = {
    "batch 1, 32 heads, 4,096 tokens": ([4096], 32),
    "batch 1, 56 heads, 65,536 tokens": ([65536], 56),
    "batch 4, 32 heads, 16,384 tokens": ([16384] * 4, 32),
    "batch 5, 64 heads, 100 to 12,000 tokens": ([100, 1000, 3000, 6000, 12000], 64),
}
# Batch size, query heads, key-value heads, tokens.
DECODES = (
    (1, 1, 1, 1024),
    (1, 1, 1, 4096),
    (1, 1, 1, 16384),
    (1, 1, 1, 65536),
    (1, 2, 2, 16384),
    (1, 3, 3, 16384),
    (1, 8, 8, 16384),
    (4, 8, 8, 4096),
    (1, 8, 1, 16384),
    (1, 8, 2, 16384),
)
# Time limit of one decoding case, in seconds.
SECONDS = 6.0
HEADS, WIDTH, RANKS = 2, 64, 2
# Kind, causal, balanced; naive and blocked run on one process.
WAYS = (
    ("naive", False, False),
    ("blocked", False, False),
    ("ring", False, False),
    ("all-gather", False, False),
    ("ulysses", False, False),
    ("blocked", True, False),
    ("ring", True, False),
    ("ring", True, True),
)


def bench_attention_run(
    lengths: Sequence[int] = (1024, 2048, 4096),
    *,
    turns: int = 1000,
    threads: int = 2,
    advance: Callable[[str], None] = lambda item: None,
) -> list[Row]:
    """Run all cases and return their rows.

    Args:
        lengths: sequence lengths in tokens, multiples of 4.
        turns: largest number of repetitions of each decoding method.
        threads: number of threads for decoding.
        advance: called with the name of each case.
    """
    advance("schedules")
    rows = [_schedule(name, *case) for name, case in SCHEDULES.items()]
    for case in DECODES:
        advance(f"decode {case}")
        rows.append(_decode(*case, turns=turns, threads=threads))
    advance(f"sequences over {RANKS} processes")
    return rows + _sequences(lengths)


def _schedule(name: str, lengths: Sequence[int], heads: int) -> Row:
    tiles = [math.ceil(length / TILE) for length in lengths for _ in range(heads)]
    lean = stream_k(tiles, WORKERS)
    return {
        "part": "schedule",
        "case": name,
        "workers": WORKERS,
        "tile": TILE,
        "flash_attention": flash_attention_schedule(tiles, WORKERS).makespan,
        "flash_decoding": flash_decoding_schedule(tiles, WORKERS).makespan,
        "stream_k": lean.makespan,
        "occupancy": lean.occupancy,
    }


def _decode(batch: int, heads: int, caches: int, tokens: int, *, turns: int, threads: int) -> Row:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        q = torch.randn(batch, heads, 1, WIDTH)
        k, v = torch.randn(2, batch, caches, tokens, WIDTH).unbind()

        def plain() -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=heads != caches)

        def split() -> Tensor:
            return split_decode(q, k, v)

        with torch.no_grad():
            error = float((plain() - split()).abs().max())
            least = {plain: math.inf, split: math.inf}
            taken, begun = 0, time.perf_counter()
            while taken < turns and (taken < 20 or time.perf_counter() - begun < SECONDS):
                taken += 1
                for way in least:
                    started = time.perf_counter()
                    way()
                    least[way] = min(least[way], time.perf_counter() - started)
        return {
            "part": "decode",
            "case": f"B = {batch}, H = {heads}, K = {caches}, N = {tokens:,}",
            "threads": threads,
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "turns": taken,
            "splits": decode_splits(batch * caches, tokens, threads),
            "error": error,
            "sdpa_wall_ms": least[plain] * 1e3,
            "split_wall_ms": least[split] * 1e3,
            "times_faster": least[plain] / least[split],
        }
    finally:
        torch.set_num_threads(before)


def _sequences(lengths: Sequence[int]) -> list[Row]:
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (folder, tuple(lengths)), RANKS)
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]
    rows = []
    for parts in zip(*ranks, strict=True):
        row = dict(parts[0])
        for name in ("scores", "largest_block", "largest_tensor", "forward_cpu_s", "backward_cpu_s"):
            row[name] = max(part[name] for part in parts if part[name] is not None)
        row["scores_least"] = min(part["scores"] for part in parts if part["scores"] is not None)
        rows.append(row)
    return rows


class _Largest(TorchDispatchMode):
    """Record the bytes of the largest tensor that any operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, Tensor):
                self.nbytes = max(self.nbytes, part.nbytes)
        return out


def _naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * WIDTH**-0.5, -1) @ v


def _reference(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Compute attention in float64, 256 rows at a time."""
    q, k, v = q.double(), k.double(), v.double()
    parts, tokens = [], q.shape[2]
    for first in range(0, tokens, 256):
        scores = q[:, :, first : first + 256] @ k.transpose(-1, -2) * WIDTH**-0.5
        if causal:
            row = torch.arange(first, first + scores.shape[2]).unsqueeze(1)
            scores = scores.masked_fill(torch.arange(tokens) > row, float("-inf"))
        parts.append(scores.softmax(-1) @ v)
    return torch.cat(parts, 2)


def _rank(rank: int, folder: str, lengths: Sequence[int]) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    rows = [_sequence(rank, tokens, *way) for tokens in lengths for way in WAYS]
    dist.barrier()
    dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(rows))


def _sequence(rank: int, tokens: int, kind: str, causal: bool, balanced: bool) -> Row:
    from manyheads.core.methods.sequence_parallel import Traffic, attention_over, gather, shard

    generator = torch.Generator().manual_seed(tokens)
    whole = torch.randn(3, 1, HEADS, tokens, WIDTH, generator=generator).unbind()
    alone, traffic = kind in ("naive", "blocked"), Traffic()
    if alone:
        local = [part.clone().requires_grad_() for part in whole]

        def forward() -> Tensor:
            return _naive(*local) if kind == "naive" else attention(*local, causal=causal)
    else:
        local = [shard(part, balanced=balanced).requires_grad_() for part in whole]
        attend = attention_over(kind=kind, causal=causal, balanced=balanced, traffic=traffic)  # ty: ignore

        def forward() -> Tensor:
            return attend(*local, tokens=tokens)

    row: Row = {
        "part": "sequence",
        "case": f"{tokens:,} tokens{', causal' if causal else ''}",
        "tokens": tokens,
        "kind": f"{kind} (head-tail)" if balanced else kind,
        "processes": 1 if alone else RANKS,
        "error": None,
        "bytes_forward": 0,
        "bytes_backward": 0,
        "predicted_forward": 0 if alone else _predicted(kind, tokens)[0],
        "predicted_backward": 0 if alone else _predicted(kind, tokens)[1],
        "scores": None,
        "largest_block": None,
        "largest_tensor": None,
        "forward_cpu_s": None,
        "backward_cpu_s": None,
    }
    if alone and rank:
        return row
    with _Largest() as mode:
        out = forward()
        out.sum().backward()
    row["largest_tensor"] = mode.nbytes // 4
    pairs = HEADS * (tokens * (tokens + 1) // 2 if causal else tokens * tokens)
    row["scores"] = pairs if alone else traffic.scores
    row["largest_block"] = pairs if alone else traffic.largest_block
    row["bytes_forward"], row["bytes_backward"] = traffic.forward, traffic.backward
    found = out.detach() if alone else gather(out.detach(), tokens=tokens, balanced=balanced)
    row["error"] = float((found.double() - _reference(*whole, causal)).abs().max())
    spent = []
    for _ in range(3):
        started = time.process_time()
        out = forward()
        middle = time.process_time()
        out.sum().backward()
        spent.append((middle - started, time.process_time() - middle))
    row["forward_cpu_s"], row["backward_cpu_s"] = (min(part) for part in zip(*spent, strict=True))
    return row


def _predicted(kind: str, tokens: int) -> tuple[int, int]:
    """Return the bytes sent forward and backward, by the formulas of ``sequence_parallel``, float32, even shards."""
    block = tokens // RANKS * HEADS * WIDTH * 4
    if kind == "ulysses":
        turned = 4 * block * (RANKS - 1) // RANKS
        return turned, turned
    return 2 * block * (RANKS - 1), 4 * block * (RANKS - 1)
