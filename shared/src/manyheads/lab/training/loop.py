"""The supervised training loop on Lightning Fabric, for one process or many under ``torchrun``.

Every rank shuffles with the same seed and takes its share of each global batch, so that N processes train like one. A
run that is killed at any moment resumes from its last checkpoint and gives bit-identical metrics.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.lab.data.files import write_atomically
from manyheads.lab.data.storage import save_model
from manyheads.lab.progress import progress as show_progress
from manyheads.lab.training import checkpoint
from manyheads.lab.training.averaging import place_in_mean, take_in
from manyheads.lab.training.experiment import Budget, Experiment, Part
from manyheads.lab.training.placement import Placement
from manyheads.lab.training.report import SeedResult
from manyheads.lab.training.schedule import epochs_without_gain, rate_factor, set_learning_rate

_TRAINING_LOCK = threading.RLock()


@dataclass
class Position:
    """The position of the loop; all of it is stored in a checkpoint."""

    epoch: int = 0
    batch: int = 0
    """Batches done in this epoch."""
    step: int = 0
    running_loss: float = 0.0
    """Sum of the loss over the batches of this epoch."""
    best_loss: float = math.inf
    bad_epochs: int = 0
    """Epochs since the best validation loss."""
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def fit_supervised(
    experiment: Experiment,
    seed: int,
    folder: Path | None,
    *,
    resume: bool = True,
    progress: bool = True,
    tensorboard: bool = False,
    placement: Placement | None = None,
) -> SeedResult:
    """Train one seed and return the test metrics of the weights that ``budget.keep`` selects.

    Without a ``folder`` nothing is written. ``placement`` puts the model on several processes; by default each has a
    copy.

    Raises:
        ArgumentError: the train part has less than one batch, or ``budget.keep`` needs an absent validation part.
    """
    options = {"resume": resume, "progress": progress, "tensorboard": tensorboard}
    _, result = train_model(experiment, seed, folder, **options, placement=placement)
    return result


def train_model(
    experiment: Experiment,
    seed: int,
    folder: Path | None,
    *,
    resume: bool = True,
    progress: bool = True,
    tensorboard: bool = False,
    placement: Placement | None = None,
) -> tuple[nn.Module, SeedResult]:
    """Train one seed and return the model as well as the result; see :func:`fit_supervised`.

    A lock lets threads train one after another, as they share the global random generators.
    """
    with _TRAINING_LOCK, _random_state_restored():
        return _train_model(experiment, seed, folder, resume, progress, tensorboard, placement or Placement())


@contextmanager
def _random_state_restored() -> Generator[None]:
    """Restore the caller's global random states afterwards, as training seeds the generators."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - others may draw from it
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002


def _train_model(
    experiment: Experiment,
    seed: int,
    folder: Path | None,
    resume: bool,
    progress: bool,
    tensorboard: bool,
    placement: Placement,
) -> tuple[nn.Module, SeedResult]:
    before, earlier = time.process_time(), 0.0
    budget = experiment.budget
    fabric = launch(budget, placement.accelerator)
    seed_everything(seed)
    splits = experiment.data.open()
    check_choice(budget, splits.validation)
    raw_model = experiment.model.build(splits)
    parameters = sum(p.numel() for p in raw_model.parameters())
    model, optimiser = placement.setup(fabric, raw_model, experiment)
    order, position = torch.Generator().manual_seed(seed), Position()
    best = {name: tensor.clone() for name, tensor in placement.tensors(raw_model).items()}
    identity = {"experiment": experiment.hash if folder else "", "seed": seed}
    checkpoints, writes = None if folder is None else folder / "checkpoints", fabric.is_global_zero
    if placement.parted and checkpoints is not None:
        checkpoints, writes = checkpoints / f"process-{fabric.global_rank}", True
        identity["process"] = f"{fabric.global_rank} of {fabric.world_size}"
    if checkpoints is not None and not resume and writes:
        checkpoint.remove_checkpoints(checkpoints)
    if checkpoints is not None and resume and (found := latest_of_all(checkpoints, identity, fabric)):
        tensors, metadata = found
        placement.load(raw_model, _without_prefix("model.", tensors))
        best = _without_prefix("best.", tensors)
        checkpoint.restore_optimiser(optimiser.optimizer, tensors, metadata["groups"])
        checkpoint.restore_random_states(order, tensors, metadata["random"])
        position = Position(**metadata["position"])
        earlier = checkpoint.load_cpu_seconds(checkpoints)

    def save(start_of_order: Tensor) -> None:
        if checkpoints is None or not writes:
            return
        tensors, groups = checkpoint.optimiser_tensors(optimiser.optimizer)
        states, others = checkpoint.random_states(order)
        states["random.order"] = start_of_order
        tensors |= states | _with_prefix("model.", placement.tensors(raw_model)) | _with_prefix("best.", best)
        stored = {**identity, "position": asdict(position), "groups": groups, "random": others}
        checkpoint.save_checkpoint(checkpoints, position.step, tensors, stored)
        checkpoint.save_cpu_seconds(checkpoints, time.process_time() - before + earlier)

    batches = whole_batches(splits.train, budget, fabric)
    steps = min(batches * budget.epochs, budget.max_steps or batches * budget.epochs)
    log = _event_writer(folder, tensorboard and fabric.is_global_zero)
    name = f"{experiment.name}, seed {seed}"
    bar = show_progress(name, budget.epochs) if progress and fabric.is_global_zero else nullcontext(None)
    with bar as advance:
        while not position.finished:
            start_of_order, worse = order.get_state(), epochs_without_gain(position.history)
            epoch = _epoch(splits.train, order, budget.batch_size, position.batch, fabric)
            loss_sum = torch.tensor(position.running_loss, dtype=torch.float64, device=fabric.device)
            model.train()
            while position.batch < batches and not _budget_spent(position, budget):
                done = position.epoch + position.batch / batches
                set_learning_rate(optimiser.optimizer, experiment.optimiser, done, budget.epochs, worse=worse)
                batch = fabric.to_device(next(epoch))
                optimiser.zero_grad()
                loss = experiment.objective.loss(model, batch)
                fabric.backward(loss)
                if experiment.optimiser.clip_norm is not None:
                    fabric.clip_gradients(model, optimiser, max_norm=experiment.optimiser.clip_norm)
                optimiser.step()
                loss_sum += loss.detach()
                position.batch += 1
                position.step += 1
                if budget.keep == "mean" and (count := place_in_mean(position.step, steps)) > 0:
                    take_in(best, placement.tensors(raw_model), count)
                if budget.checkpoint_every and position.step % budget.checkpoint_every == 0:
                    position.running_loss = _mean_of_ranks(loss_sum, fabric)
                    save(start_of_order)
                    loss_sum.fill_(position.running_loss)
            train_loss = _mean_of_ranks(loss_sum, fabric) / max(position.batch, 1)
            _end_epoch(experiment, position, model, splits.validation, order, fabric, train_loss)
            if budget.keep == "last" or (budget.keep == "best" and position.bad_epochs == 0):
                for part, tensor in placement.tensors(raw_model).items():
                    best[part].copy_(tensor)
            if folder is not None and fabric.is_global_zero:
                lines = "".join(json.dumps(line) + "\n" for line in position.history)
                write_atomically(folder / "metrics.jsonl", lines.encode())
            log(position.history[-1], position.step)
            save(order.get_state())
            if advance is not None:
                advance(f"epoch {position.epoch}, {_progress_line(experiment.objective, position.history[-1])}")

    placement.load(raw_model, best)
    raw_model.eval()
    with torch.no_grad():
        metrics = experiment.objective.metrics(raw_model, splits.test)
    whole = placement.whole(raw_model)
    if folder is not None and fabric.is_global_zero:
        described = {"experiment": experiment.description(), "seed": seed, "metrics": metrics}
        save_model(folder, whole, described, splits.facts.get("files"))
        if (after := getattr(experiment.objective, "after", None)) is not None:
            after(raw_model, splits, folder)
    fabric.barrier()
    return raw_model, SeedResult(metrics, parameters, time.process_time() - before + earlier, position.epoch)


def _end_epoch(
    experiment: Experiment,
    position: Position,
    model: nn.Module,
    validation: Part,
    order: torch.Generator,
    fabric: Fabric,
    train_loss: float,
) -> None:
    """Validate, record the epoch, copy the weights to keep into ``best``, and decide whether training ends."""
    loss = validation_loss(experiment, model, validation, order, fabric) if len(validation) else None
    # all ranks must take the same decisions, such as early stopping
    loss = fabric.broadcast(loss)
    rate = experiment.optimiser.learning_rate * rate_factor(
        experiment.optimiser, position.epoch, experiment.budget.epochs, worse=epochs_without_gain(position.history)
    )
    position.epoch += 1
    position.batch, position.running_loss = 0, 0.0
    line = {"epoch": position.epoch, "step": position.step, "train_loss": train_loss, "learning_rate": rate}
    position.history.append(line if loss is None else {**line, "validation_loss": loss})
    better = loss is not None and loss < position.best_loss
    if better:
        position.best_loss = loss
    position.bad_epochs = 0 if better else position.bad_epochs + 1
    patience = experiment.budget.patience
    position.finished = (
        position.epoch >= experiment.budget.epochs
        or _budget_spent(position, experiment.budget)
        or (patience is not None and position.bad_epochs >= patience)
    )


@torch.no_grad()
def validation_loss(
    experiment: Experiment, model: nn.Module, part: Part, order: torch.Generator, fabric: Fabric
) -> float:
    """Average the batch losses in shuffled order, without the last incomplete batch, as the papers' code does.

    A part with less than one batch is one batch. An objective with a ``monitor`` replaces this loss by its own measure.
    """
    model.eval()
    monitor = getattr(experiment.objective, "monitor", None)
    if monitor is not None:
        return float(monitor(model, part))
    size = min(experiment.budget.batch_size, len(part))
    shuffled = torch.randperm(len(part), generator=order)
    total = torch.zeros((), dtype=torch.float64, device=fabric.device)
    count = len(part) // max(size, 1)
    for index in range(count):
        batch = fabric.to_device(part.batch(shuffled[index * size : (index + 1) * size]))
        total += experiment.objective.loss(model, batch)
    return total.item() / count if count else math.inf


def launch(budget: Budget, accelerator: str | None = None) -> Fabric:
    """Return Fabric, launched for this process: alone, or one of several under ``torchrun``.

    ``accelerator`` is that of Fabric; by default a GPU if there is one.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    accelerator = accelerator or ("cuda" if torch.cuda.is_available() else "cpu")
    strategy = "ddp" if budget.strategy == "auto" and world > 1 else budget.strategy
    fabric = Fabric(
        accelerator=accelerator, devices=local, num_nodes=world // local, strategy=strategy, precision=budget.precision
    )
    fabric.launch()
    return fabric


def latest_of_all(
    folder: Path, identity: dict[str, Any], fabric: Fabric
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Load the newest checkpoint that every process has; a killed process may be one checkpoint behind."""
    until = None
    while True:
        found = checkpoint.load_latest(folder, expect=identity, until=until)
        own = -1 if found is None else int(found[1]["position"]["step"])
        steps = fabric.all_gather(torch.tensor(own))
        assert isinstance(steps, Tensor)
        if bool((steps == own).all()):
            return found
        until = int(steps.min())


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - code of others may draw from it
    torch.manual_seed(seed)


def check_choice(budget: Budget, validation: Part) -> None:
    """Check that ``budget.keep`` fits the validation part and the patience. Raises :class:`ArgumentError`."""
    if budget.keep == "best" and len(validation) == 0:
        raise ArgumentError("keep: found 'best' without a validation part, expected 'last' (budget.keep=last)")
    if budget.keep != "best" and budget.patience is not None:
        raise ArgumentError(
            f"patience: found {budget.patience} with keep={budget.keep!r}, expected None: the epochs are fixed"
        )


def _progress_line(objective: Any, line: dict[str, float]) -> str:
    if "validation_loss" in line and hasattr(objective, "said"):
        return objective.said(line["validation_loss"])
    name = "validation" if "validation_loss" in line else "train"
    return f"{name} {line[name + '_loss']:.4g}"


def _epoch(train: Any, order: torch.Generator, size: int, skip: int, fabric: Fabric) -> Iterator[Any]:
    """Return an iterator over this rank's share of each batch from ``skip`` on; all ranks use the same order."""
    if hasattr(train, "epoch"):
        if fabric.world_size > 1:
            raise ArgumentError(f"strategy: found {fabric.world_size} processes, a stream is read by one")
        seed = int(torch.randint(2**62, (), generator=order))
        return train.epoch(size, skip, seed)
    shuffled = torch.randperm(len(train), generator=order)
    batches = [shuffled[start : start + size] for start in range(skip * size, len(train), size)]
    return (train.batch(chosen[fabric.global_rank :: fabric.world_size]) for chosen in batches)


def whole_batches(train: Part, budget: Budget, fabric: Fabric) -> int:
    """Return the steps of an epoch.

    Raises :class:`ArgumentError` if there is none, or if the processes cannot share a batch equally.
    """
    if budget.batch_size % fabric.world_size:
        raise ArgumentError(
            f"batch_size: found {budget.batch_size}, expected a multiple of the {fabric.world_size} processes"
        )
    batches = len(train) // budget.batch_size
    if batches < 1:
        count = len(train)
        cure = f": use at most that (budget.batch_size={count})" if count else ""
        raise ArgumentError(f"batch_size: found {budget.batch_size}, the train part has only {count} examples{cure}")
    return batches


def _mean_of_ranks(value: Tensor, fabric: Fabric) -> float:
    """Average a value over the ranks; for batch means, this is the mean of the global batch."""
    if fabric.world_size == 1:
        return value.item()
    parts = fabric.all_gather(value)
    assert isinstance(parts, Tensor)
    return parts.mean().item()


def _budget_spent(position: Position, budget: Budget) -> bool:
    return budget.max_steps is not None and position.step >= budget.max_steps


def _without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _event_writer(folder: Path | None, wanted: bool) -> Any:
    if folder is None or not wanted:
        return lambda line, step: None
    from manyheads.lab.training.tensorboard import event_writer

    return event_writer(folder / "events")
