"""What the layers cost against length, beside what the machine allows.

CPU time is process time on one thread (the minimum over repetitions); bytes are those that autograd saves for the
backward pass, counted, not sampled; FLOPs come from each layer's cost function. The fraction of the bound is the larger
of FLOPs over the measured float32 GEMM rate and moved bytes over the measured copy bandwidth, divided by the measured
forward time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from manyheads.core.registry import LAYERS, create, find_layer

DIM = 128


def machine_rates() -> tuple[float, float]:
    """Float32 GEMM FLOP/s and copy bytes/s (read and written) of one thread."""
    a = torch.randn(1024, 1024)
    flops = 2 * 1024**3 / _cpu_seconds(lambda: a @ a)
    big = torch.randn(16 << 20)
    return flops, 2 * big.numel() * 4 / _cpu_seconds(lambda: big.clone())


def bench_layers(
    names: Sequence[str] = (),
    lengths: Sequence[int] = (256, 512, 1024, 2048),
    *,
    advance: Callable[[str], None] = lambda item: None,
) -> list[dict[str, Any]]:
    """One row a layer configuration and length. Raises :class:`UnknownNameError`.

    ``slope`` is the log-log slope of forward time between this length and the one before.
    """
    entries = {name: find_layer(name) for name in (names or LAYERS)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        gemm, copy = machine_rates()
        rows: list[dict[str, Any]] = []
        for name, entry in entries.items():
            for label, config in entry.examples.items():
                if config.get("context_dim") is not None or config.get("max_len") is not None:
                    continue
                last: dict[str, Any] | None = None
                for length in sorted(lengths):
                    advance(f"{name} {label} {length}")
                    wide = {**config, "window": 128} if config.get("window") else dict(config)
                    row = _measure(name, label, wide, length, gemm, copy)
                    row["slope"] = None if last is None else _slope(last, row)
                    rows.append(row)
                    last = row
        return rows
    finally:
        torch.set_num_threads(threads)


def _measure(name: str, label: str, config: dict[str, Any], length: int, gemm: float, copy: float) -> dict[str, Any]:
    layer = create(name, dim=DIM, **config)
    x = torch.randn(1, length, DIM, requires_grad=True)
    with torch.no_grad():
        forward = _cpu_seconds(lambda: layer(x))
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x).y.sum()
    flops = layer.info.flops(layer.config, length)
    both = _cpu_seconds(lambda: layer(x).y.sum().backward())
    moved = 2 * x.numel() * 4 + sum(p.numel() * 4 for p in layer.parameters())
    return {
        "layer": name if label == "plain" else f"{name} ({label})",
        "length": length,
        "forward_cpu_s": forward,
        "backward_cpu_s": max(both - forward, 0.0),
        "peak_bytes": sum(saved.values()),
        "flops": flops,
        "fraction_of_bound": max(flops / gemm, moved / copy) / forward,
        "gemm_gflops": gemm / 1e9,
        "copy_gb_s": copy / 1e9,
    }


def _slope(before: dict[str, Any], after: dict[str, Any]) -> float:
    return math.log(after["forward_cpu_s"] / before["forward_cpu_s"]) / math.log(after["length"] / before["length"])


def _cpu_seconds(run: Callable[[], Any], *, least: float = 0.05, most: int = 20) -> float:
    run()
    best, spent = math.inf, 0.0
    for _ in range(most):
        before = time.process_time()
        run()
        took = time.process_time() - before
        best, spent = min(best, took), spent + took
        if spent > least:
            break
    return max(best, 1e-9)
