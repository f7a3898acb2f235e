"""Benchmark the layers: time, memory and FLOPs against length, beside the roofline bound and softmax attention.

- Time: process time of one thread on a CPU, wall time after synchronisation on a GPU; the minimum over repetitions.
- Memory: peak bytes in torch's allocator during one forward and backward pass, without parameters and input.
- FLOPs: the cost function of each layer.
- Fraction of the bound: the roofline time divided by the measured forward time. The roofline time is the larger of
  FLOPs over the measured float32 GEMM rate and moved bytes (input, output, parameters) over the measured copy
  bandwidth.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# otherwise the profiler writes to stderr at every start and stop
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch

from manyheads.core.errors import ArgumentError
from manyheads.core.layer import Layer
from manyheads.core.registry import LAYERS, create, find_layer

DIM = 128
# Limits of one measurement, as predicted from the shorter lengths: peak bytes, and seconds of forward and backward.
MEMORY = 4 << 30
SECONDS = 60.0
# Layer that the speed-up refers to, for each causality.
BASELINE = {"no": "softmax", "weak": "softmax (causal)", "strict": "softmax (causal)"}


@dataclass(frozen=True)
class Rates:
    """Measured rates of a device: float32 GEMM in FLOP/s, copy in bytes/s (read plus written); one thread on a CPU."""

    device: torch.device
    gemm: float
    copy: float


def machine_rates(device: torch.device) -> Rates:
    """Measure both rates on tensors larger than the caches."""
    a = torch.randn(1024, 1024, device=device)
    gemm = 2 * 1024**3 / _seconds(lambda: a @ a, device)
    big = torch.randn(16 << 20, device=device)
    return Rates(device, gemm, 2 * big.numel() * 4 / _seconds(lambda: big.clone(), device))


def bench_layers(
    names: Sequence[str] = (),
    lengths: Sequence[int] = (256, 512, 1024, 2048),
    *,
    device: str = "cpu",
    advance: Callable[[str], None] = lambda item: None,
) -> list[dict[str, Any]]:
    """Measure each configuration of each layer at each length; softmax attention is always included as the baseline.

    Args:
        names: layers; all registered ones by default.
        lengths: numbers of tokens. A length is left out if its cost, extrapolated from the length before, exceeds 4 GB
            or one minute.
        device: ``cpu`` or ``cuda``.
        advance: called with the name of each measurement.

    Returns:
        One row per configuration and length. ``slope`` is the log-log slope of the forward time from the length before.
        ``speedup`` is the time of softmax attention of the same causality divided by the time of this layer, forward
        plus backward.

    Raises:
        UnknownNameError: an unknown layer.
        ArgumentError: no lengths, a length below 1, or a device that does not exist.
    """
    wanted = {"softmax": find_layer("softmax")} | {name: find_layer(name) for name in (names or LAYERS)}
    if any(length < 1 for length in lengths) or not lengths:
        raise ArgumentError(f"lengths: found {list(lengths)}, expected one or more, each at least 1")
    place = _find_device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = machine_rates(place)
        rows: list[dict[str, Any]] = []
        for name, kind in wanted.items():
            rows += _bench_one(name, kind, sorted(set(lengths)), rates, advance)
    finally:
        torch.set_num_threads(threads)
    yardstick = {(row["layer"], row["length"]): _total(row) for row in rows}
    for row in rows:
        base = yardstick.get((BASELINE[row["causal"]], row["length"]))
        row["speedup"] = None if base is None else base / _total(row)
    return rows


def _bench_one(
    name: str, kind: type[Layer], lengths: Sequence[int], rates: Rates, advance: Callable[[str], None]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    done: dict[str, dict[str, Any]] = {}
    stopped: set[str] = set()
    for length in lengths:
        for label, config in kind.info.at_length(length).items():
            title = name if label == "plain" else f"{name} ({label})"
            last = done.get(label)
            if label in stopped or (last is not None and not _affordable(last, length)):
                advance(f"{title} {length}: left out")
                stopped.add(label)
                continue
            advance(f"{title} {length}")
            row = _measure(name, title, config, length, rates)
            row["slope"] = None if last is None else _slope(last, row)
            rows.append(row)
            done[label] = row
    return sorted(rows, key=lambda row: row["layer"])


def grid_of(length: int, rank: int) -> tuple[int, ...]:
    """Return the most even grid with ``length`` cells whose sides, except the last, are powers of two."""
    if rank == 1:
        return (length,)
    side = 1 << (length.bit_length() - 1) // rank
    while length % side:
        side //= 2
    return (side, *grid_of(length // side, rank - 1))


def _measure(name: str, title: str, config: Mapping[str, Any], length: int, rates: Rates) -> dict[str, Any]:
    device = rates.device
    layer = create(name, dim=DIM, **config).to(device)
    grid = grid_of(length, layer.grid_ranks[0])
    x = torch.randn(1, *grid, DIM, device=device, requires_grad=True)
    width = layer.context_dim
    context = None if width is None else torch.randn(1, length, width, device=device)

    def both() -> None:
        layer(x, context=context).y.sum().backward()

    with torch.no_grad():
        forward = _seconds(lambda: layer(x, context=context), device)
    flops = layer.info.flops(layer.config, grid)
    moved = 2 * x.numel() * 4 + sum(p.numel() * 4 for p in layer.parameters())
    return {
        "layer": title,
        "length": length,
        "causal": layer.causality,
        "forward_cpu_s": forward,
        "backward_cpu_s": max(_seconds(both, device) - forward, 0.0),
        "peak_bytes": peak_bytes(both, device),
        "flops": flops,
        "fraction_of_bound": max(flops / rates.gemm, moved / rates.copy) / forward,
        "gemm_gflops": rates.gemm / 1e9,
        "copy_gb_s": rates.copy / 1e9,
        "device": device.type,
    }


def _affordable(last: dict[str, Any], length: int) -> bool:
    growth = (length / last["length"]) ** 2
    return last["peak_bytes"] * growth <= MEMORY and _total(last) * growth <= SECONDS


def _total(row: Mapping[str, Any]) -> float:
    return row["forward_cpu_s"] + row["backward_cpu_s"]


def _slope(before: dict[str, Any], after: dict[str, Any]) -> float:
    return math.log(after["forward_cpu_s"] / before["forward_cpu_s"]) / math.log(after["length"] / before["length"])


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Return the peak of the bytes in torch's allocator while ``run`` runs, beyond those before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    live = peak = 0
    for change in _allocations(run):
        live += change
        peak = max(peak, live)
    return peak


def _allocations(run: Callable[[], Any]) -> Iterator[int]:
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        run()
    result = profile.kineto_results
    events = [] if result is None else [event for event in result.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        yield event.nbytes()


def _seconds(run: Callable[[], Any], device: torch.device, *, least: float = 0.1, most: int = 20) -> float:
    """Return the shortest time of at least three runs, repeated for at least ``least`` seconds."""
    run()
    best, spent = math.inf, 0.0
    for turn in range(most):
        before = _clock(device)
        run()
        took = _clock(device) - before
        best, spent = min(best, took), spent + took
        if spent > least and turn >= 2:
            break
    return max(best, 1e-9)


def _clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"device: found {name!r}, expected cpu or cuda: {reason}") from None
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device: found {name!r}, expected cpu or cuda")
    return device
