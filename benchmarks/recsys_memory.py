"""Trains from a parquet file ten times the process's memory limit: ``python benchmarks/recsys_memory.py --csv FILE``.

A file of random numbers and ids, uncompressed, is written until it takes ``--times`` the limit on the disk. Then a
process of its own trains an epoch from it under ``RLIMIT_DATA`` = the limit: the kernel refuses any private memory
beyond it (heap, anonymous maps, stacks), what Python, torch, pandas and pyarrow take for themselves included. Its peak
resident memory, which counts the code of the libraries too, has to stay below the same limit. As a control a file of
the size of the limit is read whole under it, which has to fail.

pyarrow's own allocator takes a gigabyte of addresses at once, which is private memory though nothing lies there: the
process is run with ``ARROW_DEFAULT_MEMORY_POOL=system``.
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

IDS, NUMBERS, GROUP = 4, 40, 20_000  # columns of each kind, rows of a row group
MB = 1 << 20


def table(rows: int, seed: int):
    """Ids of 1,000 values, numbers, and a label that depends on one of each."""
    import pyarrow

    rng = np.random.default_rng(seed)
    ids = {f"item{i}_id": rng.integers(0, 1000, rows) for i in range(IDS)}
    numbers = {f"x{i}": rng.random(rows) for i in range(NUMBERS)}
    logit = 4.0 * (numbers["x0"] - 0.5) + (ids["item0_id"] % 3 - 1.0)
    label = (rng.random(rows) < 1.0 / (1.0 + np.exp(-logit))).astype(np.int8)
    return pyarrow.table({**ids, **numbers, "clicked": label})


def write(path: Path, size: int) -> int:
    """Row groups until the file has ``size`` bytes; gives the rows."""
    import pyarrow.parquet

    first, rows = table(GROUP, 0), 0
    with pyarrow.parquet.ParquetWriter(path, first.schema, compression="none", use_dictionary=False) as writer:
        while path.stat().st_size < size:
            writer.write_table(first if rows == 0 else table(GROUP, rows))
            rows += GROUP
    return rows


def train(folder: Path) -> dict[str, float]:
    """One epoch of a logistic regression; only called under the limit."""
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


def under(limit: int, *arguments: str) -> subprocess.CompletedProcess:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command, own = [sys.executable, __file__, *arguments], {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    return subprocess.run(command, preexec_fn=limited, stdout=subprocess.PIPE, text=True, env=own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--limit-mb", type=int, default=600)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="where there is room for the file; a temporary folder without")
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
        done = under(limit, "--train", str(folder))
        if done.returncode:
            raise SystemExit(f"training under {asked.limit_mb} MB failed with status {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
        (folder / "train.parquet").unlink()
        write(folder / "whole.parquet", limit)
        control = under(limit, "--read", str(folder / "whole.parquet")).returncode
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
