"""One description of an experiment, for every domain: data, model, objective, optimiser, budget, seeds, source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from manyheads.core.errors import UnknownNameError
from manyheads.lab.data.fields import plain
from manyheads.lab.training.optimisers import Optimiser

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    optimiser: Optimiser = field(default_factory=Optimiser)
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


def find_experiment(name: str, experiments: Sequence[Experiment]) -> Experiment:
    """By name; raises :class:`UnknownNameError` with the nearest."""
    for experiment in experiments:
        if experiment.name == name:
            return experiment
    raise UnknownNameError("experiment", name, [e.name for e in experiments])


def _describe(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _describe(getattr(value, f.name)) for f in fields(value)}
        return {"type": type_name(type(value)), **inner}
    return plain(value)


def type_name(kind: type) -> str:
    """The package and the class, without the module: a file that moves inside its package changes no hash."""
    parts = kind.__module__.split(".")
    package = parts[:2] if parts[0] == "manyheads" else parts
    return ".".join([*package, kind.__qualname__])
