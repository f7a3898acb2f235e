"""One description of an experiment, for every domain, and how it is run and reported.

A run writes ``runs/<name>/<hash>/``: ``experiment.json``, ``report.json`` and, for each seed, a folder ``seed-<n>``
with ``metrics.jsonl``, ``model.safetensors`` and ``checkpoints/``. The hash is that of the description, so that a
changed experiment never resumes an old one; a finished run is read back instead of being computed again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from manyheads.core.errors import ArgumentError, CheckpointError, ManyheadsWarning, UnknownNameError
from manyheads.lab.command import command_line, first_process, plain
from manyheads.lab.files import remove_parts, write_atomically
from manyheads.lab.storage import load_document, save_document

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

RESULT, REPORT = "result of a seed", "report of an experiment"


class Part(Protocol):
    """Examples that can be gathered by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Any: ...


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set; ``facts`` is what a model has to know of it (widths, classes, …).
    ``facts["files"]``, name -> content, are written beside the trained model: what it takes to read raw input.

    A train part that cannot be gathered by index (a stream) has ``epoch(size, skip, seed) -> Iterator[batch]`` instead
    of ``batch``: whole batches in an order that ``seed`` decides, from the batch ``skip`` on; ``len`` is its rows.
    """

    train: Part
    validation: Part
    test: Part
    facts: Mapping[str, Any] = field(default_factory=dict)


class DataConfig(Protocol):
    """Knows how to open itself."""

    def open(self) -> Splits: ...


class ModelConfig(Protocol):
    """Knows how to build the model for some data; torch is seeded before."""

    def build(self, splits: Splits) -> nn.Module: ...


class Objective(Protocol):
    """What is minimised, and what is reported.

    An objective may also have ``monitor(model, part) -> float``, the lower the better: then training stops and chooses
    weights by that of the validation part instead of the loss; and ``after(model, splits, folder)``, which leaves more
    in the folder of a trained seed.
    """

    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...

    def metrics(self, model: nn.Module, part: Any) -> dict[str, float]: ...


@dataclass(frozen=True)
class Source:
    """Where a figure was published."""

    paper: str  # arXiv id
    table: str = ""
    reported: Mapping[str, float] = field(default_factory=dict)  # metric -> value


@dataclass(frozen=True)
class Optimiser:
    """The optimiser and its schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adam and adamw."""
    schedule: Literal["constant", "halving", "cosine", "one-cycle", "steps", "plateau"] = "constant"
    """halving: epochs 1 and 2 at the full rate, then half of the rate before; cosine: down to 0 over the epochs;
    one-cycle: step by step, up from a 25th over the first ``warm_up`` of all steps and down to 0, both along a cosine;
    steps: times 0.85 every 10 epochs; plateau: a tenth after each epoch without a better validation loss, down to a
    thousandth."""
    warm_up: float = 0.3
    clip_norm: float | None = None

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of a model; each parameter group may have its own ``base_rate``."""
        from manyheads.lab.train import make_optimiser

        return make_optimiser(model, self)


@dataclass(frozen=True)
class Budget:
    """How long, how wide, how precisely."""

    epochs: int = 10
    batch_size: int = 32
    patience: int | None = None
    """Epochs without a better validation loss before stopping."""
    keep: Literal["best", "last", "mean"] = "best"
    """The weights that are kept: of the best validation loss, or, where the epochs are fixed, after the last step, or
    the mean over the last quarter of the steps; only ``best`` needs a validation part."""
    max_steps: int | None = None
    checkpoint_every: int | None = None
    """Steps between checkpoints inside an epoch; each epoch ends with one in any case."""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    strategy: str = "auto"
    """Fabric's strategy under torchrun: auto is DDP."""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a result."""

    name: str
    data: DataConfig
    model: ModelConfig
    objective: Objective
    optimiser: Optimiser = Optimiser()
    budget: Budget = Budget()
    seeds: tuple[int, ...] = (1, 2, 3)
    source: Source | None = None

    def smoke(self) -> Experiment:
        """The same in seconds: one epoch of twenty steps, one seed."""
        budget = replace(self.budget, epochs=1, max_steps=20)
        return replace(self, name=f"{self.name}-smoke", budget=budget, seeds=self.seeds[:1], source=None)

    def description(self) -> dict[str, Any]:
        """As JSON holds it, types named; seeds and source do not decide a single run and are left to the report."""
        return {f.name: _describe(getattr(self, f.name)) for f in fields(self) if f.name not in ("seeds", "source")}

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with anything that decides the result."""
        text = json.dumps(self.description(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave."""

    metrics: Mapping[str, float]
    parameters: int
    cpu_seconds: float
    epochs: int


@dataclass(frozen=True)
class Report:
    """All seeds of one experiment."""

    name: str
    hash: str
    command: str
    seeds: tuple[int, ...]
    metrics: Mapping[str, Mapping[str, float]]  # seed -> metric -> value
    mean: Mapping[str, float]
    sd: Mapping[str, float | None]  # sample standard deviation; None with one seed
    parameters: int
    cpu_seconds: float
    peak_memory_bytes: int
    environment: Mapping[str, str]
    source: Mapping[str, Any] | None

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report. Raises :class:`CheckpointError` for a file that is absent or damaged."""
        stored: dict[str, Any] = load_document(path, kind=REPORT, fix="remove it and run the experiment again")
        try:
            stored["seeds"] = tuple(stored["seeds"])
            return cls(**stored)
        except (TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path}: found the fields of another version: remove it and run the experiment again"
            ) from error


Fit = Callable[..., SeedResult]


def find_experiment(name: str, experiments: Sequence[Experiment]) -> Experiment:
    """By name; raises :class:`UnknownNameError` with the nearest."""
    for experiment in experiments:
        if experiment.name == name:
            return experiment
    raise UnknownNameError("experiment", name, [e.name for e in experiments])


def run(
    experiment: Experiment,
    *,
    root: str | Path = "runs",
    seeds: Sequence[int] | None = None,
    resume: bool = True,
    progress: bool = True,
    tensorboard: bool = False,
    fit: Fit | None = None,
) -> Report:
    """Runs every seed, resuming what was begun, and writes the report.

    ``fit(experiment, seed, folder, *, resume, progress, tensorboard) -> SeedResult`` is the supervised loop by default;
    reinforcement learning and other engines bring their own. ``resume=False`` starts afresh in the same folder.
    """
    if fit is None:
        from manyheads.lab.train import fit_supervised as fit
    chosen = tuple(experiment.seeds if seeds is None else seeds)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ArgumentError(f"seeds: found {list(chosen)}, expected at least one, each once")
    folder = Path(root) / experiment.name / experiment.hash
    if first_process():
        write_json(folder / "experiment.json", experiment.description())
    results = {}
    for seed in chosen:
        results[seed] = _run_seed(experiment, seed, folder / f"seed-{seed}", resume, progress, tensorboard, fit)
    names = list(next(iter(results.values())).metrics)
    columns = {name: [result.metrics[name] for result in results.values()] for name in names}
    report = Report(
        experiment.name,
        experiment.hash,
        command_line(),
        chosen,
        {str(seed): dict(result.metrics) for seed, result in results.items()},
        {name: statistics.fmean(column) for name, column in columns.items()},
        {name: statistics.stdev(column) if len(column) > 1 else None for name, column in columns.items()},
        next(iter(results.values())).parameters,
        sum(result.cpu_seconds for result in results.values()),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        environment(),
        None if experiment.source is None else asdict(experiment.source),
    )
    if first_process():
        save_document(folder / "report.json", plain(asdict(report)), kind=REPORT)
    return report


def _run_seed(
    experiment: Experiment, seed: int, folder: Path, resume: bool, progress: bool, tensorboard: bool, fit: Fit
) -> SeedResult:
    done = folder / "result.json"
    if resume and done.exists():
        try:
            return SeedResult(**load_document(done, kind=RESULT, fix="computed again from what is whole"))
        except (CheckpointError, TypeError) as error:
            warnings.warn(str(error), ManyheadsWarning, stacklevel=2)
    if first_process():
        done.unlink(missing_ok=True)
        remove_parts(folder)
    result = fit(experiment, seed, folder, resume=resume, progress=progress, tensorboard=tensorboard)
    if first_process():
        save_document(done, plain(asdict(result)), kind=RESULT)
    return result


def environment() -> dict[str, str]:
    """Versions and machine."""
    packages = ("manyheads-core", "torch", "numpy", "lightning-fabric")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        **{name: version(name) for name in packages},
    }


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(plain(value), indent=2, allow_nan=False).encode() + b"\n")


def _describe(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _describe(getattr(value, f.name)) for f in fields(value)}
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **inner}
    return plain(value)
