"""Training with tables that are cut over the processes: the loop of :mod:`manyheads.lab.training.loop` around TorchRec.

Batches, losses, L2, schedule and the choice of weights are those of one process, to rounding, and so is the folder that
is written; a seed that was broken off starts afresh.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.lab.data.files import write_atomically
from manyheads.lab.data.storage import save_model
from manyheads.lab.progress import progress as show_progress
from manyheads.lab.training.averaging import place_in_mean, take_in
from manyheads.lab.training.experiment import Experiment, Splits
from manyheads.lab.training.loop import check_choice, seed_everything
from manyheads.lab.training.report import SeedResult
from manyheads.lab.training.schedule import epochs_without_gain, rate_factor, set_learning_rate
from manyheads.recsys.distributed.sharded_tables import ROW_WISE_FROM, gathered, shard


def fit_sharded(
    experiment: Experiment,
    seed: int,
    folder: Path | None,
    *,
    resume: bool = True,
    progress: bool = True,
    tensorboard: bool = False,
    row_wise_from: int = ROW_WISE_FROM,
) -> SeedResult:
    """One seed on all ranks of the process group; ``lab.experiment.run(..., fit=fit_sharded)`` runs an experiment so.

    Raises :class:`ArgumentError` for what only one process can do: a stream, clipped gradients, mixed precision.
    """
    del resume, tensorboard
    before = time.process_time()
    budget = experiment.budget
    seed_everything(seed)
    splits = experiment.data.open()
    model = experiment.model.build(splits)
    parameters = sum(p.numel() for p in model.parameters())
    parallel = shard(model, row_wise_from=row_wise_from)
    check_supported(experiment, splits)
    optimiser = experiment.optimiser.make(parallel)
    order = torch.Generator().manual_seed(seed)
    own = {**dict(parallel.named_parameters()), **dict(parallel.named_buffers())}
    best = {name: value.detach().clone() for name, value in own.items()}
    best_loss, bad, step, history = math.inf, 0, 0, []
    steps = len(splits.train) // budget.batch_size * budget.epochs
    steps = min(steps, budget.max_steps or steps)
    first = dist.get_rank() == 0
    with show_progress(experiment.name, budget.epochs) if progress and first else nullcontext(None) as advance:
        for epoch in range(budget.epochs):
            worse = epochs_without_gain(history)
            total, batches = torch.zeros((), dtype=torch.float64), 0
            parallel.train()
            for done, share in _shares(splits.train, order, budget.batch_size):
                if step == budget.max_steps:
                    break
                set_learning_rate(optimiser, experiment.optimiser, epoch + done, budget.epochs, worse=worse)
                optimiser.zero_grad()
                loss = experiment.objective.loss(parallel, splits.train.batch(share))
                loss.backward()
                optimiser.step()
                total += loss.detach()
                batches, step = batches + 1, step + 1
                if budget.keep == "mean" and (place := place_in_mean(step, steps)) > 0:
                    take_in(best, own, place)
            rate = experiment.optimiser.learning_rate * rate_factor(
                experiment.optimiser, epoch, budget.epochs, worse=worse
            )
            history.append({"epoch": epoch + 1, "step": step, "train_loss": _mean(total / max(batches, 1))})
            history[-1]["learning_rate"] = rate
            if len(splits.validation):
                history[-1]["validation_loss"] = loss = _measured(experiment.objective, parallel, splits.validation)
                better = loss < best_loss
                best_loss, bad = (loss, 0) if better else (best_loss, bad + 1)
            if budget.keep == "last" or (budget.keep == "best" and bad == 0):
                for name, value in own.items():
                    best[name].copy_(value.detach())
            if folder is not None and first:
                write_atomically(folder / "metrics.jsonl", "".join(json.dumps(h) + "\n" for h in history).encode())
            if advance is not None:
                advance(f"epoch {epoch + 1}, train {history[-1]['train_loss']:.4g}")
            if step == budget.max_steps or (budget.patience is not None and bad >= budget.patience):
                break
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(best[name])
        parallel.eval()
        metrics = experiment.objective.metrics(parallel, splits.test)
    state = gathered(model, parallel)
    if folder is not None and first:
        described = {"experiment": experiment.description(), "seed": seed, "metrics": metrics}
        save_model(folder, state, described, splits.facts["files"])
    dist.barrier()
    return SeedResult(metrics, parameters, time.process_time() - before, len(history))


def _shares(train: Any, order: torch.Generator, size: int):
    """The share of the epoch that is done, and this rank's rows of each whole batch; all ranks draw the same order."""
    shuffled = torch.randperm(len(train), generator=order)
    batches = len(train) // size
    for index in range(batches):
        yield index / batches, shuffled[index * size : (index + 1) * size][dist.get_rank() :: dist.get_world_size()]


def _measured(objective: Any, model: nn.Module, part: Any) -> float:
    """The monitor of the first rank on all, so that they stop together."""
    with torch.no_grad():
        model.eval()
        return _from_first(torch.tensor(float(objective.monitor(model, part)), dtype=torch.float64))


def _from_first(value: Tensor) -> float:
    dist.broadcast(value, 0)
    return value.item()


def _mean(value: Tensor) -> float:
    dist.all_reduce(value)
    return value.item() / dist.get_world_size()


def check_supported(experiment: Experiment, splits: Splits) -> None:
    """Raises :class:`ArgumentError` for what :func:`fit_sharded` cannot do."""
    budget, ranks = experiment.budget, dist.get_world_size()
    if not hasattr(splits.train, "batch"):
        raise ArgumentError(f"strategy: found {ranks} processes, a stream is read by one")
    if experiment.optimiser.clip_norm is not None:
        raise ArgumentError(f"clip_norm: found {experiment.optimiser.clip_norm}, expected None with sharded tables")
    if budget.precision != "32-true":
        raise ArgumentError(f"precision: found {budget.precision}, expected 32-true with sharded tables")
    if budget.batch_size % ranks or len(splits.train) < budget.batch_size:
        raise ArgumentError(
            f"batch_size: found {budget.batch_size}, expected a multiple of the {ranks} processes, at most the "
            f"{len(splits.train)} training rows"
        )
    check_choice(budget, splits.validation)
