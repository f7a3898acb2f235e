"""Tables of the layers: cost, comparison with public implementations, and the ways to run attention."""

from __future__ import annotations

import math
import statistics

from rows import Row, markdown, read


def schedules() -> str:
    """Compare the makespan of three schedules, in tiles."""
    shown = [
        (row["case"], row["flash_attention"], row["flash_decoding"], row["stream_k"], f"{float(row['occupancy']):.3f}")
        for row in read("attention_run")
        if row["part"] == "schedule"
    ]
    header = (
        "tiles of time, 108 workers, 256 keys a tile",
        "FlashAttention-2",
        "FlashDecoding",
        "stream-K",
        "occupancy",
    )
    return markdown(header, shown)


def decoding() -> str:
    """Compare two ways to decode one query per head over a cache, with the load of the machine."""
    rows = [row for row in read("attention_run") if row["part"] == "decode"]
    shown = [
        (
            row["case"],
            row["splits"],
            f"{float(row['sdpa_wall_ms']):.3f}",
            f"{float(row['split_wall_ms']):.3f}",
            f"{float(row['times_faster']):.2f}",
        )
        for row in rows
    ]
    loads = sorted(float(row["load"]) for row in rows)
    caption = (
        f"Least wall time of {min(int(row['turns']) for row in rows):,} to {max(int(row['turns']) for row in rows):,} "
        f"alternating turns, {rows[0]['threads']} threads, width 64, "
        f"float32; load of the machine {loads[0]:.1f} to {loads[-1]:.1f}."
    )
    header = ("one query a head", "S", "plain SDPA, ms", "`split_decode`, ms", "times faster")
    return markdown(header, shown) + "\n\n" + caption


def sequences() -> str:
    """List error, traffic, memory and CPU time of one sequence on one process and on two."""
    shown = [
        (
            f"{row['case']}: {row['kind']}",
            f"{float(row['error']):.1e}",
            f"{int(row['bytes_forward']):,}",
            f"{int(row['bytes_backward']):,}",
            f"{int(row['largest_tensor']):,}",
            f"{int(row['scores_least']):,} to {int(row['scores']):,}"
            if row["scores"] != row["scores_least"]
            else f"{int(row['scores']):,}",
            f"{float(row['forward_cpu_s']) * 1e3:.0f} + {float(row['backward_cpu_s']) * 1e3:.0f}",
        )
        for row in read("attention_run")
        if row["part"] == "sequence"
    ]
    header = (
        "2 heads of 64",
        "error",
        "bytes forward",
        "backward",
        "largest tensor",
        "scores a process",
        "CPU ms a process",
    )
    return markdown(header, shown)


def factors() -> str:
    """Separate the speedup of the kernel from the speedup of splitting, forward and backward together."""
    rows = [row for row in read("attention_run") if row["part"] == "sequence" and "causal" not in row["case"]]
    cost = {(int(r["tokens"]), r["kind"]): float(r["forward_cpu_s"]) + float(r["backward_cpu_s"]) for r in rows}
    shown = [
        (
            f"{tokens:,} tokens",
            f"{cost[tokens, 'naive'] / cost[tokens, 'blocked']:.1f}",
            *(f"{cost[tokens, 'blocked'] / cost[tokens, kind]:.2f}" for kind in ("ring", "all-gather", "ulysses")),
        )
        for tokens in sorted({tokens for tokens, _ in cost})
    ]
    header = ("CPU time", "naive / blocked, 1 process", "blocked / ring of 2", "/ all-gather", "/ ulysses")
    return markdown(header, shown)


def cost() -> str:
    """List the cost of each layer at 8,192 tokens, and the growth of its time from 1,024 tokens on."""
    by_layer: dict[str, dict[int, Row]] = {}
    for row in read("layers"):
        by_layer.setdefault(row["layer"], {})[int(row["length"])] = row
    shown = []
    for name, lengths in by_layer.items():
        most = 8192 if 8192 in lengths else max(lengths)
        row = lengths[most]
        both = float(row["forward_cpu_s"]) + float(row["backward_cpu_s"])
        shown.append(
            (
                f"{name}" if most == 8192 else f"{name}, {most:,} tokens",
                row["causal"],
                f"{float(row['forward_cpu_s']) * 1e3:.1f}",
                f"{both * 1e3:.1f}",
                f"{float(row['speedup']):.1f}",
                slope(lengths),
                f"{float(row['peak_bytes']) / 1e6:,.0f}",
                f"{float(row['flops']) / 1e9:.2f}",
                f"{float(row['fraction_of_bound']):.2f}",
            )
        )
    first = read("layers")[0]
    caption = (
        f"Width 128, one row, one thread, float32. This machine: {float(first['gemm_gflops']):.0f} GFLOP/s of matrix "
        f"products, {float(first['copy_gb_s']):.1f} GB/s copied."
    )
    header = (
        *("layer", "causal", "forward, CPU ms", "and backward", "times faster than softmax", "slope of forward"),
        *("peak MB", "GFLOP", "share of the bound"),
    )
    return markdown(header, shown) + "\n\n" + caption


def slope(lengths: dict[int, Row]) -> str:
    """Fit the log-log slope of forward time by least squares, over the lengths from 1,024 on."""
    points = [(math.log(n), math.log(float(row["forward_cpu_s"]))) for n, row in lengths.items() if n >= 1024]
    if len(points) < 3:
        return "none"
    return f"{statistics.linear_regression(*zip(*points, strict=True)).slope:.2f}"


def peers() -> str:
    """Compare the speed of our layers with public implementations."""
    shown = [
        (
            row["layer"],
            row["peer"],
            row["shape"],
            f"{float(row['forward_ratio']):.2f}",
            f"{float(row['both_ratio']):.2f}",
        )
        for row in read("peers")
    ]
    header = ("layer", "beside", "input", "times as fast, forward", "with backward")
    return markdown(header, shown)


TABLES = (schedules, decoding, sequences, factors, cost, peers)
