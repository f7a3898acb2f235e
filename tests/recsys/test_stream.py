"""Training from parquet: every row once per epoch, shuffled, resumable, in constant memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

pyarrow = pytest.importorskip("pyarrow")

import pyarrow.parquet as pq  # noqa: E402

from manyheads.core.errors import ArgumentError, DataError  # noqa: E402
from manyheads.lab.training.experiment import Budget, Experiment  # noqa: E402
from manyheads.lab.training.loop import train_model  # noqa: E402
from manyheads.recsys.datasets.parquet_stream import StreamedTable  # noqa: E402
from manyheads.recsys.models import config_of  # noqa: E402
from manyheads.recsys.training.objective import LogLoss  # noqa: E402


def table(rows, seed=0):
    rng = np.random.default_rng(seed)
    item = rng.integers(0, 50, rows)
    clicked = (rng.random(rows) < 1 / (1 + np.exp(-(item - 25) / 5))).astype(int)
    columns = {"item_id": item, "kind": rng.choice(["a", "b"], rows), "x": np.arange(rows, dtype=float)}
    return pd.DataFrame({**columns, "clicked": clicked})


@pytest.fixture
def files(tmp_path):
    for name, rows, seed in (("train", 2000, 0), ("validation", 300, 1), ("test", 300, 2)):
        table(rows, seed).to_parquet(tmp_path / f"{name}.parquet", row_group_size=130)
    return {name: str(tmp_path / f"{name}.parquet") for name in ("train", "validation", "test")}


@pytest.fixture
def stream(files):
    return StreamedTable(**files, label=("clicked",), buffer=400).open().train


def numbers(stream, *arguments):
    """Return the unique value of each row."""
    mean, deviation = stream.encoder.scales["x"]
    return [(b.numbers[:, 0] * deviation + mean).round().int().tolist() for b in stream.epoch(*arguments)]


def test_every_row_is_used_once_per_epoch_except_the_last_incomplete_batch(stream):
    batches = numbers(stream, 64, 0, 7)
    assert [len(b) for b in batches] == [64] * (2000 // 64)
    flat = list(itertools.chain(*batches))
    assert len(set(flat)) == len(flat)
    assert len(stream) == 2000


def test_the_seed_determines_the_order(stream):
    assert numbers(stream, 64, 0, 7) == numbers(stream, 64, 0, 7)
    assert numbers(stream, 64, 0, 7) != numbers(stream, 64, 0, 8)


@pytest.mark.parametrize("skip", [1, 5, 30, 31])
def test_an_epoch_resumes_at_any_batch(stream, skip):
    assert numbers(stream, 64, skip, 7) == numbers(stream, 64, 0, 7)[skip:]


def test_a_batch_mixes_several_row_groups(stream):
    groups = [len({value // 130 for value in batch}) for batch in numbers(stream, 64, 0, 7)]
    assert min(groups) >= 2


def test_the_encoder_of_a_stream_equals_that_of_the_whole_table(files, stream):
    from manyheads.recsys.features.encoder import Encoder

    whole = Encoder.fit(pd.read_parquet(files["train"]), stream.encoder.spec)
    rows = table(50, 5)
    assert torch.equal(whole.transform(rows).ids, stream.encoder.transform(rows).ids)


def experiment(files, **changes):
    data = StreamedTable(**files, label=("clicked",), buffer=400)
    budget = Budget(**{"epochs": 3, "batch_size": 64, "checkpoint_every": 10, **changes})
    return Experiment("s", data, config_of("lr", {"init_sd": 0.01}), LogLoss(), budget=budget)


def test_a_model_learns_from_a_stream(files):
    _, result = train_model(experiment(files, epochs=8), 1, None, progress=False)
    assert result.metrics["auc"] > 0.8


def test_files_that_cannot_be_streamed_are_refused(files, tmp_path):
    def opened(**changes):
        return StreamedTable(**{**files, "label": ("clicked",), **changes}).open()

    with pytest.raises(DataError, match="column 'sold' is missing; found item_id"):
        opened(label=("sold",))
    with pytest.raises(DataError, match=r"no\.parquet: no such file"):
        opened(train=str(tmp_path / "no.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1PAR1")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        opened(train=str(tmp_path / "bad.parquet"))
    table(5).iloc[:0].to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet: found no rows"):
        opened(train=str(tmp_path / "empty.parquet"))
    table(100).assign(clicked=1).to_parquet(tmp_path / "one.parquet")
    with pytest.raises(DataError, match="one class only"):
        opened(train=str(tmp_path / "one.parquet"))
    with pytest.raises(ArgumentError, match="buffer: found 10, expected at least a batch of 64 rows"):
        next(opened(buffer=10).train.epoch(64, 0, 1))


MEASURED = """
import resource, sys
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq
from manyheads.lab.training.experiment import Budget, Experiment
from manyheads.lab.training.loop import train_model
from manyheads.recsys.models import config_of
from manyheads.recsys.datasets.parquet_stream import StreamedTable
from manyheads.recsys.training.objective import LogLoss
folder, rows = sys.argv[1], int(sys.argv[2])

def part(count, seed):
    rng = np.random.default_rng(seed)
    columns = {f"c{i}_id": rng.integers(0, 500, count) for i in range(10)}
    columns |= {f"x{i}": rng.normal(size=count) for i in range(10)}
    return pd.DataFrame({**columns, "y": rng.integers(0, 2, count)})

writer = None
for seed in range(rows // 10000):
    piece = pa.Table.from_pandas(part(10000, seed))
    writer = writer or pq.ParquetWriter(f"{folder}/{rows}.parquet", piece.schema)
    writer.write_table(piece)
writer.close()
part(2000, 10**6).to_parquet(f"{folder}/held.parquet")
held = f"{folder}/held.parquet"
data = StreamedTable(f"{folder}/{rows}.parquet", held, held, ("y",), buffer=10000)
experiment = Experiment("m", data, config_of("lr"), LogLoss(), budget=Budget(epochs=1, batch_size=2000))
train_model(experiment, 1, None, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    """The longer file has 121 MB more of numbers; less than a tenth of it is additional memory."""
    peaks = []
    for rows in (80_000, 800_000):
        command = [sys.executable, "-c", MEASURED, str(tmp_path), str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    more = 720_000 * 21 * 8 / 2**20
    assert peaks[1] - peaks[0] < 0.1 * more, peaks


UNDER = """
import resource, sys
import pandas as pd
folder, limit = sys.argv[1], int(sys.argv[2])

def train(name):
    data = StreamedTable(f"{folder}/{name}", f"{folder}/held.parquet", f"{folder}/held.parquet", ("y",), buffer=4000)
    experiment = Experiment("m", data, config_of("lr"), LogLoss(), budget=Budget(epochs=1, batch_size=500))
    train_model(experiment, 1, None, progress=False)

from manyheads.lab.training.experiment import Budget, Experiment
from manyheads.lab.training.loop import train_model
from manyheads.recsys.models import config_of
from manyheads.recsys.datasets.parquet_stream import StreamedTable
from manyheads.recsys.training.objective import LogLoss
train("held.parquet")  # what only a first training imports does not count
with open("/proc/self/status") as status:
    data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (data + limit, data + limit))
train("big.parquet")
print("trained")
try:
    pd.read_parquet(f"{folder}/big.parquet")
except (MemoryError, OSError):
    print("not read")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts anonymous maps on Linux only")
def test_a_file_ten_times_the_memory_limit_can_be_streamed_but_not_read_whole(tmp_path):
    limit = 24 * 2**20
    rng = np.random.default_rng(0)

    def part(rows):
        columns = {f"x{i}": rng.random(rows) for i in range(30)}
        return pyarrow.table({"user_id": rng.integers(0, 100, rows), **columns, "y": rng.integers(0, 2, rows)})

    pq.write_table(part(1000), tmp_path / "held.parquet")
    with pq.ParquetWriter(tmp_path / "big.parquet", part(1).schema, compression="none", use_dictionary=False) as writer:
        while (tmp_path / "big.parquet").stat().st_size < 10 * limit:
            writer.write_table(part(4000))
    # pyarrow's own allocator takes a gigabyte of addresses at once
    own = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", UNDER, str(tmp_path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=500)
    assert done.stdout.split("\n")[:2] == ["trained", "not read"], done.stderr[-2000:]
