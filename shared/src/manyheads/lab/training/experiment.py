"""Describe an experiment of any domain: data, model, objective, optimiser, budget, seeds, source."""

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
    """One part of a data set: examples that can be gathered by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Any: ...


@dataclass(frozen=True)
class Splits:
    """The train, validation and test parts of a data set.

    ``facts`` holds what a model needs to know of the data (widths, classes, …). ``facts["files"]`` maps names to
    contents of files that are written beside the trained model: what is needed to read raw input.

    A train part that cannot be gathered by index (a stream) has ``epoch(size, skip, seed) -> Iterator[batch]`` instead
    of ``batch``. It yields whole batches in an order that ``seed`` determines, from batch number ``skip`` on. Its
    ``len`` is the number of rows.
    """

    train: Part
    validation: Part
    test: Part
    facts: Mapping[str, Any] = field(default_factory=dict)


class DataConfig(Protocol):
    """Settings of a data set, which can open it.

    A config that names files of the user may also have ``content() -> str | None``: a digest of these files, which
    enters the hash of the experiment, so that changed files never give an old result.
    """

    def open(self) -> Splits: ...


class ModelConfig(Protocol):
    """Settings of a model, which can build it for some data; torch is seeded before the call."""

    def build(self, splits: Splits) -> nn.Module: ...


class Objective(Protocol):
    """The training loss and the reported metrics.

    An objective may also have

    - ``monitor(model, part) -> float``, lower is better: it replaces the validation loss in early stopping and in the
      choice of the weights;
    - ``after(model, splits, folder)``, which writes more files into the folder of a trained seed.
    """

    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...

    def metrics(self, model: nn.Module, part: Any) -> dict[str, float]: ...


@dataclass(frozen=True)
class Source:
    """The published figures that an experiment is compared with."""

    paper: str
    """arXiv id."""
    table: str = ""
    reported: Mapping[str, float] = field(default_factory=dict)
    """Metric -> value."""


@dataclass(frozen=True)
class Budget:
    """Training budget: epochs, batch size, early stopping, checkpoints, precision."""

    epochs: int = 10
    batch_size: int = 32
    patience: int | None = None
    """Epochs without a better validation loss before early stopping; None trains for all epochs."""
    keep: Literal["best", "last", "mean"] = "best"
    """The weights that are kept.

    ``best``: those of the best validation loss; only this choice needs a validation part. ``last``: those after the
    last step. ``mean``: their mean over the last quarter of the steps (SWA). ``last`` and ``mean`` need a fixed number
    of epochs, without ``patience``.
    """
    max_steps: int | None = None
    checkpoint_every: int | None = None
    """Steps between checkpoints inside an epoch; every epoch ends with a checkpoint in any case."""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "32-true"
    strategy: str = "auto"
    """Strategy of Lightning Fabric under torchrun; ``auto`` is DDP."""


@dataclass(frozen=True)
class Experiment:
    """The description of an experiment: everything that determines its result."""

    name: str
    data: DataConfig
    model: ModelConfig
    objective: Objective
    optimiser: Optimiser = field(default_factory=Optimiser)
    budget: Budget = Budget()
    seeds: tuple[int, ...] = (1, 2, 3)
    source: Source | None = None

    def smoke(self) -> Experiment:
        """Return the experiment cut to a smoke test of seconds: one epoch of twenty steps, one seed."""
        budget = replace(self.budget, epochs=1, max_steps=20)
        return replace(self, name=f"{self.name}-smoke", budget=budget, seeds=self.seeds[:1], source=None)

    def description(self) -> dict[str, Any]:
        """Return the description as JSON, with type names.

        Seeds and source are left to the report, as they do not determine a single run.
        """
        parts = {f.name: _describe(getattr(self, f.name)) for f in fields(self) if f.name not in ("seeds", "source")}
        content = getattr(self.data, "content", None)
        digest = content() if callable(content) else None
        return parts if digest is None else {**parts, "content": digest}

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change with anything that determines the result."""
        text = json.dumps(self.description(), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def find_experiment(name: str, experiments: Sequence[Experiment]) -> Experiment:
    """Return the experiment with that name. Raises :class:`UnknownNameError` with the nearest name."""
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
    """Return package and class without the module, so that moving a file inside its package changes no hash."""
    parts = kind.__module__.split(".")
    package = parts[:2] if parts[0] == "manyheads" else parts
    return ".".join([*package, kind.__qualname__])
