"""Discover domain packages through entry points.

``[project.entry-points."manyheads.domains"]`` of a distribution maps the domain's name to a :class:`Domain`. The value
holds import paths, not objects, so that nothing heavy is imported before its use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import MissingPackageError, UnknownNameError
from manyheads.lab.install import install_command

if TYPE_CHECKING:
    from manyheads.lab.cli.command import Outcome
    from manyheads.lab.data.registry import Known
    from manyheads.lab.training.experiment import Experiment
    from manyheads.lab.training.options import TrainOptions

GROUP = "manyheads.domains"
KNOWN_DOMAINS = ("forecasting", "images", "kws", "recsys", "rl")


@dataclass(frozen=True)
class Domain:
    """Import paths of the parts of a domain, each ``"module:attribute"``, imported on first use."""

    name: str
    summary: str
    package: str
    """Name of the distribution, for the pip command."""
    commands: str
    """Path of a ``Mapping[str, Callable[..., Outcome]]``."""
    datasets: str | None = None
    """Path of a ``Sequence[Known]``."""
    experiments: str | None = None
    """Path of a function ``() -> Sequence[Experiment]``."""
    train_options: str | None = None
    """Path of a subclass of :class:`TrainOptions`: the options that ``train`` has in this domain only."""

    def load_commands(self) -> Mapping[str, Callable[..., Outcome]]:
        return load(self.commands)

    def load_datasets(self) -> Sequence[Known]:
        return load(self.datasets) if self.datasets else ()

    def load_train_options(self) -> type[TrainOptions]:
        return load(self.train_options or "manyheads.lab.training.options:TrainOptions")

    def load_experiments(self) -> Sequence[Experiment]:
        return load(self.experiments)() if self.experiments else ()


def load(path: str) -> Any:
    """Import the object at ``"module:attribute"``."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def installed_domains() -> dict[str, Domain]:
    """Return the domains of all installed packages by name."""
    return {entry.name: entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


def find_domain(name: str) -> Domain:
    """Return the installed domain of that name.

    Raises:
        MissingPackageError: a known domain that is not installed; the message holds the pip command.
        UnknownNameError: any other name.
    """
    domains = installed_domains()
    if name in domains:
        return domains[name]
    if name in KNOWN_DOMAINS:
        raise MissingPackageError(f"the domain {name!r} is not installed: {install_command(f'manyheads-{name}')}")
    raise UnknownNameError("domain", name, domains)
