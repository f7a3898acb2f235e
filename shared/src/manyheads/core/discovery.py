"""Classes by name, found by folder: every class in a package that has an ``info`` of its own is registered.

A module is imported when one of its classes is asked for. It is looked for under the name itself, then under the name
without its last words (``combiner-fixed`` in ``combiner.py``), then in all modules.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from types import ModuleType
from typing import Any, TypeVar

Kind = TypeVar("Kind")


class Discovered(Mapping[str, type[Kind]]):
    """The subclasses of ``base`` in the modules of ``package``, by the name in their ``info``, in order of modules."""

    def __init__(self, package: ModuleType, base: type[Kind]) -> None:
        self._package, self._base = package, base
        self._of_module: dict[str, Mapping[str, type[Kind]]] = {}

    def __getitem__(self, name: str) -> type[Kind]:
        words = str(name).replace("-", "_").split("_")
        for count in range(len(words), 0, -1):
            module = "_".join(words[:count])
            if module in self._modules and name in (found := self._in(module)):
                return found[name]
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @cached_property
    def _modules(self) -> tuple[str, ...]:
        return tuple(sorted(module.name for module in pkgutil.iter_modules(self._package.__path__)))

    @cached_property
    def _all(self) -> Mapping[str, type[Kind]]:
        found: dict[str, Any] = {}
        for module in self._modules:
            for name, kind in self._in(module).items():
                if name in found:
                    folder = self._package.__name__.rpartition(".")[2]
                    raise RuntimeError(
                        f"{folder}/{module}.py: {kind.__name__}: found the name {name!r}, which "
                        f"{found[name].__module__} has too, expected a name of its own"
                    )
                found[name] = kind
        return found

    def _in(self, module: str) -> Mapping[str, type[Kind]]:
        """The classes that the module itself defines, in its order."""
        if module not in self._of_module:
            full = f"{self._package.__name__}.{module}"
            kinds = [kind for kind in vars(importlib.import_module(full)).values() if isinstance(kind, type)]
            own: list[Any] = [
                k for k in kinds if issubclass(k, self._base) and k.__module__ == full and "info" in vars(k)
            ]
            self._of_module[module] = {kind.info.name: kind for kind in own}
        return self._of_module[module]
