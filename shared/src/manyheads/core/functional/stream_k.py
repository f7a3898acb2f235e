"""Schedules of the tiles of attention on workers: stream-K (Lean Attention, 2405.10480) and its baselines.

Output i (one batch row and head) needs ``n_i = ceil(N_i / tile)`` tiles of keys; each of W workers computes one tile in
one unit of time.

    stream-K        all ``n = sum n_i`` tiles in one line, cut into W contiguous ranges of ``ceil(n / W)`` or one less:
                    time ``ceil(n / W)``; ranges cross the borders of outputs
    FlashAttention  an output is never split; the next one goes to the first free worker:
                    time ``ceil(BH / W) n_i`` if all are equal
    FlashDecoding   each output in S chunks of ``ceil(n_i / S)``, dealt in rounds: time ``ceil(BH S / W) ceil(n_i / S)``

The worker with the first tile of an output is its host: it waits for the partial results of the others and merges them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from manyheads.core.errors import ArgumentError


class Span(NamedTuple):
    """Tiles ``start`` up to ``stop`` of one output."""

    output: int
    start: int
    stop: int


@dataclass(frozen=True)
class Schedule:
    """The spans of each worker, in the order in which it computes them."""

    workers: tuple[tuple[Span, ...], ...]

    @property
    def loads(self) -> tuple[int, ...]:
        """Tiles of each worker."""
        return tuple(sum(span.stop - span.start for span in spans) for spans in self.workers)

    @property
    def makespan(self) -> int:
        """Tiles of the busiest worker: the total time if a tile takes one unit."""
        return max(self.loads)

    @property
    def occupancy(self) -> float:
        """The busy share of the workers' time; 1 without any tile."""
        return sum(self.loads) / (len(self.workers) * self.makespan) if self.makespan else 1.0

    @property
    def hosts(self) -> dict[int, int]:
        """The worker with the first tile of each output; outputs without tiles have none."""
        return {span.output: w for w, spans in enumerate(self.workers) for span in spans if span.start == 0}


def stream_k(tiles: Sequence[int], workers: int) -> Schedule:
    """Stream-K schedule: contiguous ranges of the line of all tiles; loads differ by at most one, larger ones first.

    Args:
        tiles: tiles of each output; 0 is allowed.
        workers: W.
    """
    _check(tiles, workers)
    least, larger = divmod(sum(tiles), workers)
    plan: list[tuple[Span, ...]] = []
    output, done = 0, 0
    for worker in range(workers):
        left = least + (worker < larger)
        spans = []
        while left:
            if done == tiles[output]:
                output, done = output + 1, 0
                continue
            taken = min(left, tiles[output] - done)
            spans.append(Span(output, done, done + taken))
            done, left = done + taken, left - taken
        plan.append(tuple(spans))
    return Schedule(tuple(plan))


def flash_attention_schedule(tiles: Sequence[int], workers: int) -> Schedule:
    """FlashAttention schedule: each output as a whole goes, in order, to the first free worker (list scheduling)."""
    _check(tiles, workers)
    plan: list[list[Span]] = [[] for _ in range(workers)]
    free = [(0, worker) for worker in range(workers)]
    for output, count in enumerate(tiles):
        if count:
            busy, worker = free[0]
            plan[worker].append(Span(output, 0, count))
            heapq.heapreplace(free, (busy + count, worker))
    return Schedule(tuple(map(tuple, plan)))


def flash_decoding_schedule(tiles: Sequence[int], workers: int, *, splits: int | None = None) -> Schedule:
    """FlashDecoding schedule: each output in ``splits`` equal chunks, dealt to the workers in rounds.

    The number of chunks is :func:`flash_decoding_splits` by default. Raises :class:`ArgumentError` for ``splits`` below
    1.
    """
    _check(tiles, workers)
    if splits is None:
        splits = flash_decoding_splits(len(tiles), max(tiles, default=0), workers)
    if splits < 1:
        raise ArgumentError(f"flash_decoding_schedule: splits: found {splits}, expected 1 or more")
    plan: list[list[Span]] = [[] for _ in range(workers)]
    dealt = 0
    for output, count in enumerate(tiles):
        chunk = -(-count // splits)
        for start in range(0, count, chunk or 1):
            plan[dealt % workers].append(Span(output, start, min(start + chunk, count)))
            dealt += 1
    return Schedule(tuple(map(tuple, plan)))


def flash_decoding_splits(outputs: int, tiles: int, workers: int) -> int:
    """The fewest chunks of an output whose rounds are at least 85 % as full as those of the best number of chunks.

    Args:
        outputs: B H.
        tiles: tiles of the longest output, which bounds the number of chunks.
        workers: W.
    """

    def fullness(splits: int) -> float:
        chunks = outputs * splits
        return chunks / (workers * -(-chunks // workers))

    if not outputs or not tiles:
        return 1
    # W chunks of an output always fill every round.
    candidates = range(1, min(tiles, workers) + 1)
    best = max(map(fullness, candidates))
    return next(splits for splits in candidates if fullness(splits) >= 0.85 * best)


def _check(tiles: Sequence[int], workers: int) -> None:
    if workers < 1:
        raise ArgumentError(f"schedule: workers: found {workers}, expected 1 or more")
    if any(count < 0 for count in tiles):
        raise ArgumentError(f"schedule: tiles: found {min(tiles)}, expected 0 or more for each output")
