"""How a domain package makes itself known: one light value behind an entry point.

``[project.entry-points."manyheads.domains"]`` of a distribution maps the domain's name to a :class:`Domain`. The value
holds import paths, not objects: nothing heavy is imported before it is used.
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
KNOWN_DOMAINS = ("forecasting", "kws", "recsys")


@dataclass(frozen=True)
class Domain:
    """Where the parts of a domain are; each is ``"module:attribute"`` and is imported when it is asked for."""

    name: str
    summary: str
    package: str  # the distribution, for the pip line
    commands: str  # -> Mapping[str, Callable[..., Outcome]]
    datasets: str | None = None  # -> Sequence[Known]
    experiments: str | None = None  # -> () -> Sequence[Experiment]
    train_options: str | None = None  # -> type[TrainOptions]; what ``train`` has beside the common options

    def load_commands(self) -> Mapping[str, Callable[..., Outcome]]:
        return load(self.commands)

    def load_datasets(self) -> Sequence[Known]:
        return load(self.datasets) if self.datasets else ()

    def load_train_options(self) -> type[TrainOptions]:
        return load(self.train_options or "manyheads.lab.training.options:TrainOptions")

    def load_experiments(self) -> Sequence[Experiment]:
        return load(self.experiments)() if self.experiments else ()


def load(path: str) -> Any:
    """The object behind ``"module:attribute"``."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def installed_domains() -> dict[str, Domain]:
    """The domains of all installed packages by name."""
    return {entry.name: entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


def find_domain(name: str) -> Domain:
    """The installed domain of that name.

    Raises :class:`MissingPackageError` with the pip line for a known domain that is not installed, and
    :class:`UnknownNameError` for any other name.
    """
    domains = installed_domains()
    if name in domains:
        return domains[name]
    if name in KNOWN_DOMAINS:
        raise MissingPackageError(f"the domain {name!r} is not installed: {install_command(f'manyheads-{name}')}")
    raise UnknownNameError("domain", name, domains)
