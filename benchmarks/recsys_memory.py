"""Train from a Parquet file ten times as large as the memory limit: ``python benchmarks/recsys_memory.py --csv FILE``.

An uncompressed file of random numbers and ids is written until its size is ``--times`` the limit. A separate process
then trains one epoch from it under ``RLIMIT_DATA`` = the limit. The kernel refuses any private memory beyond the limit
(heap, anonymous maps, stacks), including that of Python, torch, pandas and pyarrow themselves. The peak resident
memory, which also counts the code of the libraries, must stay below the same limit. As a control, a file of the size of
the limit is read whole under the limit, which must fail.

The process runs with ``ARROW_DEFAULT_MEMORY_POOL=system``: pyarrow's own allocator reserves a gigabyte of addresses,
which counts as private memory although it is unused.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from manyheads.lab.data.files import write_csv

# Columns of ids, columns of numbers, rows of a row group.
IDS, NUMBERS, GROUP = 4, 40, 20_000
MB = 1 << 20


def table(rows: int, seed: int):
    """Make a table of ids with 1,000 values, numbers, and a label that depends on one column of each kind."""
    import pyarrow

    rng = np.random.default_rng(seed)
    ids = {f"item{i}_id": rng.integers(0, 1000, rows) for i in range(IDS)}
    numbers = {f"x{i}": rng.random(rows) for i in range(NUMBERS)}
    logit = 4.0 * (numbers["x0"] - 0.5) + (ids["item0_id"] % 3 - 1.0)
    label = (rng.random(rows) < 1.0 / (1.0 + np.exp(-logit))).astype(np.int8)
    return pyarrow.table({**ids, **numbers, "clicked": label})


def write(path: Path, size: int) -> int:
    """Write row groups until the file has ``size`` bytes; return the number of rows."""
    import pyarrow.parquet

    first, rows = table(GROUP, 0), 0
    with pyarrow.parquet.ParquetWriter(path, first.schema, compression="none", use_dictionary=False) as writer:
        while path.stat().st_size < size:
            writer.write_table(first if rows == 0 else table(GROUP, rows))
            rows += GROUP
    return rows


def train(folder: Path) -> dict[str, float]:
    """Train a logistic regression for one epoch; called in the limited process only."""
    from manyheads.lab.training.experiment import Budget, Experiment
    from manyheads.lab.training.loop import train_model
    from manyheads.recsys.datasets.parquet_stream import StreamedTable
    from manyheads.recsys.models import config_of
    from manyheads.recsys.training.objective import LogLoss

    held = str(folder / "held.parquet")
    data = StreamedTable(str(folder / "train.parquet"), held, held, ("clicked",), buffer=GROUP)
    budget = Budget(epochs=1, batch_size=10_000)
    _, result = train_model(Experiment("memory", data, config_of("lr"), LogLoss(), budget=budget), 1, None)
    return dict(result.metrics)


def run_limited(limit: int, *arguments: str) -> subprocess.CompletedProcess:
    """Run this file in a process with ``limit`` bytes of private memory."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command, own = [sys.executable, __file__, *arguments], {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    return subprocess.run(command, preexec_fn=limited, stdout=subprocess.PIPE, text=True, env=own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="file for the row")
    parser.add_argument("--limit-mb", type=int, default=600, help="memory limit in MB")
    parser.add_argument("--times", type=int, default=10, help="size of the file in units of the limit")
    parser.add_argument(
        "--folder", type=Path, help="folder with enough space for the file; a temporary folder by default"
    )
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.train is not None:
        metrics = train(asked.train)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**metrics, "peak_mb": peak, "cpu_s": time.process_time()}))
        return
    if asked.read is not None:
        from manyheads.recsys.features.tables import read_table

        try:
            read_table(asked.read)
        except (MemoryError, OSError):
            sys.exit(3)
        return
    limit = asked.limit_mb * MB
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        import pyarrow.parquet

        pyarrow.parquet.write_table(table(20_000, 10**9), folder / "held.parquet")
        rows = write(folder / "train.parquet", asked.times * limit)
        size = (folder / "train.parquet").stat().st_size
        done = run_limited(limit, "--train", str(folder))
        if done.returncode:
            raise SystemExit(f"training under {asked.limit_mb} MB failed with status {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
        (folder / "train.parquet").unlink()
        write(folder / "whole.parquet", limit)
        control = run_limited(limit, "--read", str(folder / "whole.parquet")).returncode
    if found["peak_mb"] > asked.limit_mb:
        raise SystemExit(f"peak resident memory: {found['peak_mb']:.0f} MB, expected at most {asked.limit_mb}")
    row = {
        "limit_mb": asked.limit_mb,
        "file_mb": f"{size / MB:.0f}",
        "rows": rows,
        "columns": IDS + NUMBERS + 1,
        "peak_resident_mb": f"{found['peak_mb']:.0f}",
        "auc": f"{found['auc']:.4f}",
        "cpu_s": f"{found['cpu_s']:.0f}",
        "reading_a_tenth_whole": {0: "fits", 3: "out of memory"}.get(control, f"status {control}"),
    }
    print(json.dumps(row), file=sys.stderr)
    if asked.csv is not None:
        write_csv(asked.csv, [row])


if __name__ == "__main__":
    main()
