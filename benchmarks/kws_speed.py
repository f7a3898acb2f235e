"""Measure the speed of the published LMUFormer against a reference and the limits of the machine.

    python benchmarks/kws_speed.py

One run, one thread, CPU time in microseconds; all candidates take turns and the shortest time of each counts. Weights
are random, batch norm is calibrated. Four groups:

- one 10 ms frame of one stream and of 64 streams, with ONNX Runtime in float32 and int8, and in eager mode;
- the time to read the same bytes of weights once, in order (a matrix-vector product of that size): a lower bound for a
  single stream, which uses every weight once;
- 32 clips of 128 frames at once, against the published arithmetic (:mod:`kws_reference`);
- the rate of a large matrix product, and the fraction of it that each candidate reaches.

The front end (log-mel features) is measured in a row of its own only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from kws_reference import Reference
from torch.nn import functional

from manyheads.kws.audio.features import Features, LogMel, RunningMean
from manyheads.kws.export.formats import StepRunner, export_clip, export_step, quantise
from manyheads.kws.models import published
from manyheads.kws.models.staged import Staged
from manyheads.lab.data.files import write_csv

RESULT = Path(__file__).parent / "results" / "kws_speed.csv"
BINS, WORDS, CLIPS, FRAMES = 128, tuple(f"word{n}" for n in range(35)), 32, 128
# Microseconds a stream and frame, by number of streams.
TARGETS = {
    "ANN, ONNX Runtime float32": {1: 100.0, 64: 20.0},
    "ANN, ONNX Runtime int8": {1: 60.0, 64: 7.0},
}
# Times faster than the reference.
FACTORS = {"ANN, eager": 1.5, "ANN, ONNX Runtime float32": 2.0, "spiking, eager": 2.0}

Run = Callable[[], object]


class Candidate:
    """A function to be timed, ``repeat`` calls at a time, as the clock is coarse for short calls."""

    def __init__(self, run: Run, repeat: int = 1) -> None:
        self.run, self.repeat, self.least = run, repeat, float("inf")

    def take_turn(self) -> None:
        """Time the calls once and keep the shortest time of a call, in microseconds."""
        begun = time.process_time()
        for _ in range(self.repeat):
            self.run()
        self.least = min(self.least, (time.process_time() - begun) / self.repeat * 1e6)


def networks(spiking: bool) -> tuple[Staged, Staged]:
    """Return the network of the published size without look-ahead, calibrated; and a copy folded for whole clips."""
    torch.manual_seed(0)
    network = published(spiking=spiking, lookahead=0).make(BINS, WORDS)
    network.calibrate(torch.randn(4, FRAMES, BINS))
    folded = network.eval().fold()
    folded.freeze_clips(FRAMES)
    return network, folded


def streams(folder: Path, spiking: bool) -> dict[tuple[str, str, int], Candidate]:
    """Return the candidates for one frame of one stream and of 64 streams."""
    name = "spiking" if spiking else "ANN"
    network, folded = networks(spiking)
    real = export_step(network, folder / f"{name}.onnx")
    small = quantise(real, folder / f"{name}.int8.onnx")
    made: dict[tuple[str, str, int], Candidate] = {}
    for count in (1, 64):
        frames = torch.randn(count, 1, BINS)
        for kind, path in (("float32", real), ("int8", small)):
            run = partial(StepRunner(path, streams=count), frames.numpy())
            made["stream", f"{name}, ONNX Runtime {kind}", count] = Candidate(run, 50 if count == 1 else 4)
        state = [folded.init_state(count)]

        def step(state=state, frames=frames) -> None:
            state[0] = folded(frames, state[0]).state

        made["stream", f"{name}, eager", count] = Candidate(step, 20 if count == 1 else 2)
    return made


def clips(folder: Path, spiking: bool) -> dict[tuple[str, str, int], Candidate]:
    """Return the candidates for all clips at once."""
    name = "spiking" if spiking else "ANN"
    network, folded = networks(spiking)
    frames = torch.randn(CLIPS, FRAMES, BINS)
    reference = Reference(spiking=spiking).eval()
    made = {
        ("clips", f"{name}, published arithmetic", CLIPS): Candidate(lambda: reference(frames)),
        ("clips", f"{name}, eager", CLIPS): Candidate(lambda: folded.whole(frames)),
    }
    if not spiking:
        path = export_clip(network, folder / "clips.onnx", frames=FRAMES)
        session = _session(path)
        fed = {"frames": frames.numpy()}
        made["clips", f"{name}, ONNX Runtime float32", CLIPS] = Candidate(lambda: session.run(None, fed))
    return made


def machine(weights: int) -> dict[tuple[str, str, int], Candidate]:
    """Return the limits of the machine: a large product, and reading the weights once."""
    a, b = torch.randn(CLIPS * FRAMES, 768), torch.randn(256, 768)
    matrix, vector = torch.randn(weights // 256, 256), torch.randn(256)
    quarter = matrix[: len(matrix) // 4].clone()
    return {
        ("machine", "product of (4096, 768) and (768, 256)", 1): Candidate(lambda: functional.linear(a, b)),
        ("machine", "reading the weights once, float32", 1): Candidate(lambda: torch.mv(matrix, vector), 10),
        ("machine", "reading a quarter of them", 1): Candidate(lambda: torch.mv(quarter, vector), 20),
    }


def front_end() -> dict[tuple[str, str, int], Candidate]:
    """Return the streaming front end on a chunk of 10 ms at 16 kHz, 80 bins."""
    log_mel, mean = LogMel(Features(bins=80)), RunningMean()
    chunk = torch.randn(1, 160)
    state = [log_mel.init_state(1), mean.init_state(1, 80)]

    def step() -> None:
        frames, state[0] = log_mel(chunk, state[0])
        _, state[1] = mean(frames, state[1])

    return {("stream", "log-mel and running mean, eager", 1): Candidate(step, 10)}


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def clip_macs(what: str, step: int) -> int:
    """Return the multiply-adds of a frame if whole clips run at once.

    The recurrence of the memory is not counted: an FFT or a few blocks replace it (not counted either), or one product
    with all earlier inputs, which includes the readout.
    """
    order = 512 if what.startswith("spiking") else 256
    dense = step - order * (order + 1)
    joined = what.startswith("ANN") and "published" not in what
    return dense - order * 256 + FRAMES * 256 if joined else dense


def rows(found: Mapping[tuple[str, str, int], Candidate], macs: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the rows: times, fractions of the limits, and whether each target is met."""
    product = found["machine", "product of (4096, 768) and (768, 256)", 1].least
    gflops = 2e-3 * CLIPS * FRAMES * 768 * 256 / product
    floors = {
        "float32": found["machine", "reading the weights once, float32", 1].least,
        "int8": found["machine", "reading a quarter of them", 1].least,
    }
    table = []
    for (group, what, count), candidate in found.items():
        row: dict[str, Any] = {"group": group, "what": what, "at_once": count, "cpu_us": round(candidate.least, 1)}
        name = what.split(",")[0]
        if group == "machine":
            row["gflop_s"] = round(gflops, 1) if what.startswith("product") else ""
        elif name in macs:
            done = macs[name] * count if group == "stream" else clip_macs(what, macs[name]) * count * FRAMES
            rate = 2e-3 * done / candidate.least
            row |= {"gflop_s": round(rate, 1), "of_product_rate": round(rate / gflops, 3)}
        if group == "stream":
            target = TARGETS.get(what, {}).get(count)
            row["us_per_stream"] = round(candidate.least / count, 1)
            if count == 1 and name in macs and "eager" not in what:
                row["reading_the_weights_us"] = round(floors["int8" if "int8" in what else "float32"], 1)
            if target is not None:
                row |= {"target": f"<= {target:g} us", "met": candidate.least / count <= target}
        if group == "clips" and "published" not in what:
            factor = found["clips", f"{name}, published arithmetic", CLIPS].least / candidate.least
            row |= {"times_faster": round(factor, 2), "target": f">= {FACTORS[what]:g}", "met": factor >= FACTORS[what]}
        table.append(row)
    return table


def float32_spikes() -> dict[str, Any]:
    """Return the share of spikes that differ in float32 between a whole clip and frame by frame, published size."""
    from manyheads.kws.models.sites import SpikeSite

    network, _ = networks(True)
    frames = torch.randn(4, 100, BINS)
    seen: dict[str, list[torch.Tensor]] = {}
    for site in network.modules():
        if isinstance(site, SpikeSite):
            site.register_forward_hook(lambda m, _, out: seen.setdefault(m.name, []).append(out[0]))
    rates = network(frames).aux
    whole, state = {name: parts.pop() for name, parts in seen.items()}, None
    for t in range(frames.shape[1]):
        state = network(frames[:, t : t + 1], state).state
    differ = {name: (torch.cat(parts, 1) != whole[name]).double().mean().item() for name, parts in seen.items()}
    worst = max(differ, key=lambda name: differ[name])
    assert min(rates.values()) > 0.01, "a silent site shows nothing"
    what = f"spiking, float32: share of spikes that differ, whole against frame by frame, worst site {worst}"
    return {"group": "spikes", "what": what, "at_once": 4, "share": f"{differ[worst]:.2e}"}


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")) + ", 1 thread"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--turns", type=int, default=60, help="repetitions")
    turns = parser.parse_args(arguments).turns
    warnings.filterwarnings("ignore", message="lmuformer: order")
    torch.set_num_threads(1)
    macs = {n: sum(p.macs for p in networks(n == "spiking")[0].products()) for n in ("ANN", "spiking")}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        found: dict[tuple[str, str, int], Candidate] = {}
        for spiking in (False, True):
            found |= streams(Path(folder), spiking)
        found |= front_end()
        for spiking in (False, True):
            found |= clips(Path(folder), spiking)
        found |= machine(macs["ANN"])
        for turn in range(turns):
            for (group, _, _), candidate in found.items():
                # clips take a hundred times as long
                if group != "clips" or turn % 4 == 0:
                    candidate.take_turn()
        table = [*rows(found, macs), float32_spikes()]
    versions = " ".join(f"{name}={version(name)}" for name in ("torch", "onnxruntime", "numpy"))
    for row in table:
        row |= {
            "machine": processor(),
            "versions": versions,
            "command": f"python benchmarks/kws_speed.py --turns {turns}",
        }
    write_csv(RESULT, table)
    for row in table:
        print({key: value for key, value in row.items() if key not in ("machine", "versions", "command")})


if __name__ == "__main__":
    main()
