"""Check the shape annotations of ``manyheads.core`` at run time: ``pytest --shapes tests/core``.

The library imports jaxtyping for type checkers only, and stays unchecked. :func:`install` hooks the import of its
modules: public functions and methods then compare their arguments and what they return with annotations such as
``Float[Tensor, "b t d"]``. An axis name has one size in a call.

Torch's compiler and exporter see the functions themselves.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import re
import sys
import typing
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import jaxtyping
import torch
from beartype.door import is_bearable
from jaxtyping import TypeCheckError, jaxtyped

COVERED = tuple(f"manyheads.core.{name}" for name in ("functional", "blocks", "backbones", "methods", "mask", "state"))
KINDS = {name: getattr(jaxtyping, name) for name in ("Bool", "Float", "Int", "Shaped")}
WITH_SHAPE = re.compile(rf"\b({'|'.join(KINDS)})\[")


def install() -> None:
    """Check every covered module that is imported from now on."""
    already = [name for name in sys.modules if name.startswith(COVERED)]
    assert not already, f"imported before the shapes are checked: {already}"
    sys.meta_path.insert(0, _Finder())


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which raises ``TypeCheckError`` for a tensor that its annotation does not allow.

    The function's own refusal of such an argument goes first.
    """
    texts = inspect.get_annotations(inspect.unwrap(function))
    hints = typing.get_type_hints(function, localns=KINDS)
    expected = {name: hints[name] for name, text in texts.items() if WITH_SHAPE.search(str(text))}
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)
        with jaxtyped("context"):
            wrong = [n for n, value in given.items() if n in expected and not is_bearable(value, expected[n])]
            out = function(*args, **kwargs)
            if not wrong and "return" in expected and not is_bearable(out, expected["return"]):
                given, wrong = {"return": out, **given}, ["return"]
        if wrong:
            found = ", ".join(f"{name} {_described(value)}" for name, value in given.items())
            raise TypeCheckError(f"{function.__qualname__}: {wrong[0]}: found {found}, expected {texts[wrong[0]]}")
        return out

    run.checks_shapes_of = tuple(expected)  # ty: ignore[unresolved-attribute]
    return run


def check_module(module: ModuleType) -> None:
    """Replace the public functions and methods that ``module`` defines by checked ones."""
    for owner in [module, *(kind for kind in vars(module).values() if _own(kind, module, type))]:
        for name, value in list(vars(owner).items()):
            function = value.__func__ if isinstance(value, staticmethod) else value
            if (name.startswith("_") and name != "__call__") or not _own(function, module, FunctionType):
                continue
            if any(WITH_SHAPE.search(str(text)) for text in inspect.get_annotations(inspect.unwrap(function)).values()):
                new = checked(function)
                setattr(owner, name, staticmethod(new) if isinstance(value, staticmethod) else new)


def _own(value: Any, module: ModuleType, kind: type) -> bool:
    return isinstance(value, kind) and value.__module__ == module.__name__ and not value.__name__.startswith("_")


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))})"
    return type(value).__name__


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(COVERED):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check_module(module)
