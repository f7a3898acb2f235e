"""Latency of scoring: percentiles in wall time, median in CPU time, which other processes disturb less."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyheads.core.errors import ArgumentError
from manyheads.recsys.serving.quantise import has_int8
from manyheads.recsys.serving.ranker import Ranker

if TYPE_CHECKING:
    from torch import nn

    from manyheads.recsys.features.layout import Layout
    from manyheads.recsys.training.recommender import Recommender

SIZES = (1, 10, 100, 1000)


@dataclass(frozen=True)
class Timing:
    """One way to score at one size: p50 and p99 wall time, median CPU time (ms), largest difference of a logit."""

    way: str
    candidates: int
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    error: float


def take_turns(ways: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """Measure wall and CPU seconds of each way, in turns, so that a slow moment of the machine affects all of them."""
    for call in ways.values():
        call()
    wall, cpu = ({name: np.zeros(repeats) for name in ways} for _ in range(2))
    for turn in range(repeats):
        for name, call in ways.items():
            begun, used = time.perf_counter(), time.process_time()
            call()
            wall[name][turn], cpu[name][turn] = time.perf_counter() - begun, time.process_time() - used
    return {name: (wall[name], cpu[name]) for name in ways}


def bench(
    folder: Path, model: Recommender | None = None, *, sizes: tuple[int, ...] = SIZES, repeats: int = 100
) -> list[Timing]:
    """Measure each way to score with this folder on one thread: torch (needs ``model``), ONNX Runtime, shared, int8.

    Rows are random and already encoded, with equal shared columns; the time to read raw rows is not included. Errors
    are against torch, or without ``model`` against ONNX Runtime on whole rows.

    Raises :class:`ArgumentError` for sizes or repeats below 1.
    """
    import torch

    from manyheads.recsys.serving.export import columns, sample_rows
    from manyheads.recsys.serving.tokens import Chosen

    if repeats < 1 or any(size < 1 for size in sizes):
        raise ArgumentError(f"bench: repeats and sizes: found {repeats} and {list(sizes)}, expected 1 or more")
    ranker = Ranker(folder, int8=False)
    rankers = {"": ranker, " int8": Ranker(folder, int8=True)} if has_int8(folder) else {"": ranker}
    layout = ranker.layout
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    try:
        for size in sizes:
            ids, numbers = sample_rows(layout, size)
            if ranker.request is not None:
                picked = columns(layout, Chosen(**ranker.request))
                numeric = list(ranker.request["numeric"])
                ids[:, picked], numbers[:, numeric] = ids[:1, picked], numbers[:1, numeric]
            plain = ids.numpy(), numbers.numpy()
            ways: dict[str, Callable[[], np.ndarray]] = {}
            if model is not None:
                ways["eager"] = _eager(model.network_, ids, numbers)
            for name, one in rankers.items():
                ways[f"onnx{name}"] = _bound(one.logits, plain)
                if one.request is not None:
                    ways[f"onnx shared{name}"] = _bound(one.shared_logits, plain)
            truth = next(iter(ways.values()))()
            for name, (wall, cpu) in take_turns(ways, max(3, repeats if size < 1000 else repeats // 5)).items():
                p50, p99 = np.percentile(wall, [50, 99]) * 1e3
                gap = np.abs(ways[name]() - truth) / np.maximum(1.0, np.abs(truth))
                found.append(Timing(name, size, p50, p99, float(np.median(cpu) * 1e3), float(gap.max())))
    finally:
        torch.set_num_threads(threads)
    return found


def network_times(networks: Mapping[Any, nn.Module], layout: Layout, candidates: int, repeats: int) -> dict[Any, float]:
    """Return the median CPU time in ms of a batch with ONNX Runtime on one thread; the networks take turns."""
    import tempfile

    from manyheads.lab.data.onnx_files import session
    from manyheads.recsys.serving.export import graphs, sample_rows
    from manyheads.recsys.serving.ranker import NETWORK, in_pieces

    ids, numbers = (part.numpy() for part in sample_rows(layout, candidates))
    ways = {}
    for name, network in networks.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / NETWORK
            path.write_bytes(graphs(network, layout).files[NETWORK])
            ways[name] = partial(in_pieces, session(path, 1, ""), {"ids": ids, "numbers": numbers}, {})
    return {name: float(np.median(cpu) * 1e3) for name, (_, cpu) in take_turns(ways, repeats).items()}


def _eager(network: nn.Module, ids: Any, numbers: Any) -> Callable[[], np.ndarray]:
    import torch

    def call() -> np.ndarray:
        with torch.no_grad():
            return network(ids, numbers).numpy()

    return call


def _bound(call: Callable[..., np.ndarray], plain: tuple[np.ndarray, np.ndarray]) -> Callable[[], np.ndarray]:
    return lambda: call(*plain)
