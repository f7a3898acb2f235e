"""Script of ``test_processes.py`` and ``test_sharded.py``: ``two_processes.py ENGINE FOLDER``.

Two processes are forked from here, as importing torch costs seconds, with the variables that torchrun sets. They train
each case together; the first writes it into a folder of its name.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from manyheads.lab.training.experiment import Budget, Experiment, Splits
from manyheads.lab.training.loop import fit_supervised
from manyheads.lab.training.optimisers import Optimiser
from manyheads.recsys.datasets.splits import prepare
from manyheads.recsys.datasets.synthetic import Synthetic
from manyheads.recsys.distributed.placement import ShardedPlacement
from manyheads.recsys.distributed.sharded_tables import process_group, torchrec
from manyheads.recsys.features.spec import infer_spec
from manyheads.recsys.features.tables import split_rows
from manyheads.recsys.models import config_of
from manyheads.recsys.training.objective import LogLoss
from manyheads.recsys.training.optimisers import SplitOptimiser


@dataclass(frozen=True)
class Prepared:
    splits: Splits

    def open(self):
        return self.splits


def splits():
    """Two tasks, the second with missing labels; multi-valued cells; numbers with gaps."""
    rng = np.random.default_rng(0)
    rows = 900
    item, user = rng.integers(0, 40, rows), rng.integers(0, 90, rows)
    tags = ["|".join(rng.choice(list("abcd"), rng.integers(1, 4), replace=False)) for _ in range(rows)]
    size = rng.normal(size=rows)
    click = (rng.random(rows) < 1 / (1 + np.exp(-(item - 20) / 6))).astype(float)
    buy = np.where(rng.random(rows) < 0.4, (rng.random(rows) < 0.5).astype(float), np.nan)
    size[::9] = np.nan
    columns = {"user_id": user, "item_id": item, "tags": tags, "part.of": rng.choice(list("xyz"), rows), "size": size}
    frame = pd.DataFrame({**columns, "click": click, "buy": buy})
    tasks = ("click", "buy")
    return prepare(split_rows(frame, seed=3), infer_spec(frame, label=tasks), tasks).splits


def cases():
    """Return the cases by name. Embeddings start large, so that rounding does not decide a ReLU near 0."""
    data, start = Prepared(splits()), {"dim": 8, "init_sd": 0.3}
    plateau, budget = {"schedule": "plateau"}, Budget(epochs=5, batch_size=64, patience=3)
    narrow = {"batch_norm": False, "tower": (24, 16)}
    made = (
        ("tower", config_of("hiformer+", {**start, **narrow}), LogLoss(0.01), Optimiser("adam", 1e-3, **plateau)),
        (
            "norm",
            config_of("deepfm", {**start, "hidden": (24, 16)}),
            LogLoss(0.03, "batch", (1.0, 0.5)),
            Optimiser("sgd", 0.05, **plateau),
        ),
        (
            "apart",
            config_of("final-mlp", {**start, "first_context": ("user_id",), "second_context": ("item_id", "tags")}),
            LogLoss(0.03, "batch"),
            SplitOptimiser("sgd", 0.02, tables="sgd", table_rate=0.2, **plateau),
        ),
    )
    alike = Synthetic(fields=5, values=12, pairs=3, train=640, validation=200, test=200)
    shared = config_of("vanilla", {**start, "shared_tables": True, "positions": True, "dropout": 0.1})
    one = Experiment("shared", alike, shared, LogLoss(0.03, "batch"), Optimiser("sgd", 0.1), Budget(2, 64, keep="mean"))
    return {"shared": one} | {
        name: Experiment(name, data, model, objective, optimiser, budget) for name, model, objective, optimiser in made
    }


def main(rank, engine, folder, port):
    """Run one of the two processes, with the environment of torchrun."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}
    os.environ |= {name: str(value) for name, value in told.items()}
    if engine == "sharded":
        with process_group():
            for case, experiment in cases().items():
                fit_supervised(experiment, 1, folder / case, progress=False, placement=ShardedPlacement(30))
            # broken off in its last epoch, before the second process had written its checkpoint
            if rank == 1:
                shutil.copytree(folder / "tower", folder / "resumed")
                (folder / "resumed" / "model.safetensors").unlink()
                max((folder / "resumed").glob("checkpoints/process-1/*")).unlink()
            dist.barrier()
            fit_supervised(cases()["tower"], 1, folder / "resumed", progress=False, placement=ShardedPlacement(30))
    else:
        for case, experiment in cases().items():
            fit_supervised(experiment, 1, folder / case, progress=False)


if __name__ == "__main__":
    if sys.argv[1] == "sharded":
        torchrec("distributed.model_parallel")  # imported once, before the processes part
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(main, (sys.argv[1], Path(sys.argv[2]), port), 2, start_method="fork")
