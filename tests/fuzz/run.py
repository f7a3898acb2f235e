"""Try generated inputs and count what comes of them: ``python -m tests.fuzz.run`` from the root of the repository.

Each area runs in a process of its own, which reports every input before and after it is tried. An input that takes
longer than ``LIMIT_SECONDS`` is a hang; memory is bounded by the system, and an input that asks for more than
``LIMIT_BYTES`` above what its process held is counted as memory. The process then goes on with the next input.

``--area NAME --seed N --count 1`` tries one input again and shows its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import resource
import select
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from tests.fuzz.areas import AREAS, REFUSED, RIGHT, UNCHECKED

WRONG, TRACEBACK, HANG, MEMORY = "silent wrong answer", "traceback", "hang", "memory"
OUTCOMES = (REFUSED, RIGHT, UNCHECKED, WRONG, TRACEBACK, HANG, MEMORY)
FAULTS = (WRONG, TRACEBACK, HANG, MEMORY)
LIMIT_SECONDS, LIMIT_BYTES = 60, 1 << 30
# Of 10,000 inputs.
SHARES = {
    "forecasting tables": 2500,
    "audio files": 1500,
    "recommender tables and specs": 1500,
    "model files and run folders": 2000,
    "HTTP bodies": 1000,
    "layer calls": 1500,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="inputs over all areas")
    parser.add_argument("--area", choices=list(AREAS), help="one area alone")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--csv", type=Path, help="write the counts there")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        return work(chosen.area, chosen.seed, chosen.count)
    counts = {chosen.area: chosen.count} if chosen.area else shares(chosen.count)
    command = "python -m tests.fuzz.run" + (f" --area '{chosen.area}'" if chosen.area else "")
    command += f" --count {chosen.count} --seed {chosen.seed}"
    rows, found = [], 0
    for area, count in counts.items():
        outcomes, seconds, faults = try_area(area, chosen.seed, count)
        found += len(faults)
        row = {"area": area, "inputs": count, **{name: outcomes[name] for name in OUTCOMES}}
        rows.append({**row, "cpu_s": f"{seconds:.1f}"})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
        for fault in faults[:20]:
            print(fault, flush=True)
    if chosen.csv is not None:
        from manyheads.lab.data.files import write_csv

        machine = f"{platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
        write_csv(chosen.csv, [{**row, "machine": machine, "command": command} for row in rows])
    return 1 if found else 0


def shares(count: int) -> dict[str, int]:
    """How many inputs each area gets."""
    return {area: max(1, round(count * share / sum(SHARES.values()))) for area, share in SHARES.items()}


def try_area(area: str, first: int, count: int) -> tuple[Counter[str], float, list[str]]:
    """Outcomes of ``count`` inputs, CPU seconds, and a text of each fault."""
    from manyheads.lab.progress import progress

    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seed, last = first, first + count
    with progress(area, count) if sys.stderr.isatty() else contextlib.nullcontext(lambda item: None) as advance:
        while seed < last:
            for outcome, said in one_process(area, seed, last - seed):
                outcomes[outcome] += 1
                if outcome in FAULTS:
                    faults.append(f"--area '{area}' --seed {seed} --count 1: {outcome}: {said}")
                seed += 1
                advance(str(seed))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return outcomes, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, faults


def one_process(area: str, seed: int, count: int):
    """Outcome and text of each input until the process ends; it ends early with a hang, or when it is killed."""
    command = [sys.executable, "-m", "tests.fuzz.run", "--worker", "--area", area]
    command += ["--seed", str(seed), "--count", str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stream = process.stdout
    assert stream is not None
    try:
        begun = False
        while True:
            # the first input waits for what the area prepares
            ready, _, _ = select.select([stream], [], [], LIMIT_SECONDS if begun else 300)
            line = stream.readline() if ready else ""
            if not line:
                if not ready or begun:
                    yield (HANG, f"more than {LIMIT_SECONDS} s") if not ready else (MEMORY, "the process was killed")
                if not begun and ready and process.wait() != 0:
                    raise RuntimeError(f"{area}: cannot be prepared")
                return
            said = json.loads(line)
            begun = said["begun"]
            if not begun:
                yield said["outcome"], said["said"]
            if said.get("end"):
                return
    finally:
        process.kill()
        process.wait()


def work(area: str, first: int, count: int) -> int:
    """Try the inputs of one area; a line of JSON before and after each."""
    with tempfile.TemporaryDirectory() as folder:
        try_one = AREAS[area](Path(folder))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + 2 * LIMIT_BYTES, held + 2 * LIMIT_BYTES))
        for seed in range(first, first + count):
            tell(begun=True)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            outcome, said = attempt(try_one, seed)
            if 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > LIMIT_BYTES:
                outcome = MEMORY
            tell(begun=False, outcome=outcome, said=said, end=seed == first + count - 1)
    return 0


def attempt(try_one, seed: int) -> tuple[str, str]:
    """Outcome and text of one input."""
    try:
        what, outcome = try_one(seed)
    except AssertionError as error:
        return WRONG, f"{error}\n{traceback.format_exc()}"
    except MemoryError:
        return MEMORY, traceback.format_exc()
    except Exception:  # whatever a user would see as a traceback
        return TRACEBACK, traceback.format_exc()
    return outcome, what


def tell(**said: object) -> None:
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    sys.exit(main())
