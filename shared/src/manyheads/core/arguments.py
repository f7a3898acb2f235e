"""Arguments against their annotations: names, types and sizes are checked before a constructor or a function runs.

    @checked
    def create(name: str, dim: int, **config: Any) -> Layer: ...

The signature stays what it is, for editors too. A wrong call raises :class:`ArgumentError` in one line that names the
argument, what was found and what was expected. What a number means (a divisor, a share) the function checks itself.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")
Kind = TypeVar("Kind", bound=type)

LARGEST = 2**24  # of a number: a larger size is a mistake, and would ask for memory until the process is killed
SEED = (-(2**63), 2**63 - 1, "a whole number of 64 bits")
BATCH = (0, LARGEST, "a whole number from 0 to 2**24")
WIDTHS = ("dim", "inputs", "outputs", "fields", "num_features")
WIDTH = (1, LARGEST, "1 or more, up to 2**24")
OTHER = (-LARGEST, LARGEST, "a whole number up to 2**24")


class _Shaped:
    """jaxtyping's ``Float[Tensor, "b t d"]``, which is imported for type checkers only: stands for ``Tensor``."""

    def __class_getitem__(cls, kind_and_axes: tuple[type, str]) -> type:
        return kind_and_axes[0]


SHAPED = dict.fromkeys(("Bool", "Float", "Int", "Shaped"), _Shaped)


def describe(value: Any) -> str:
    """A value in a few words on one line, for an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    kind = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, torch.dtype):
        return str(value)
    if value is None or isinstance(value, bool | str | int | float | complex):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}… ({kind})"
    return f"{'an' if kind[:1] in 'aeiouAEIOU' else 'a'} {kind}"


class Expectation(NamedTuple):
    """Values allowed by an annotation: ``choices`` in words; ``take(value)`` is the value or NotImplemented."""

    choices: list[str]
    take: Callable[[Any], Any]

    @property
    def words(self) -> str:
        *others, last = self.choices
        return f"{', '.join(others)} or {last}" if others else last


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, whose arguments are compared with its annotations first.

    A number of numpy's becomes Python's. Annotations that are neither numbers, text, tensors, literals, classes nor
    unions of them are not checked. Under ``torch.compile`` nothing is.
    """
    signature: _Signature | None = None

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal signature
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if signature is None:
            signature = _Signature(function)
        taken, named = signature.take(args, kwargs)
        return function(*taken, **named)

    return run


def check_names(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises :class:`ArgumentError` where ``function`` cannot be called with arguments of these names and places."""
    _Signature(function).take(args, kwargs)


def checked_constructor(kind: Kind) -> Kind:
    """The class, its constructor :func:`checked`."""
    kind.__init__ = checked(kind.__init__)  # ty: ignore[invalid-assignment]
    return kind


class _Signature:
    """The arguments of a function and what each expects."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = getattr(function, "__name__", "function")
        every = _parameters(function)
        self.bound = bool(every) and every[0].name == "self"
        every = every[self.bound :]
        self.parameters = {p.name: p for p in every if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        self.positional = [p.name for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.open_names = any(p.kind is p.VAR_KEYWORD for p in every)
        self.open_places = any(p.kind is p.VAR_POSITIONAL for p in every)
        self.expected = {name: _expectation(name, p.annotation) for name, p in self.parameters.items()}

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments as they are used; raises :class:`ArgumentError`."""
        first = args[: self.bound]
        owner = self._owner(first)
        places = args[self.bound :]
        if len(places) > len(self.positional) and not self.open_places:
            known = ", ".join(self.positional) or "none"
            raise ArgumentError(f"{owner}: found {len(places)} arguments without a name, expected {known} at most")
        taken = [*first, *(self._one(owner, n, v) for n, v in zip(self.positional, places, strict=False))]
        taken += places[len(self.positional) :]
        given = self.positional[: len(places)]
        named = {}
        for name, value in kwargs.items():
            if name in given:
                raise ArgumentError(f"{owner}: {name}: found it twice, by place and by name, expected it once")
            if name not in self.parameters and not self.open_names:
                raise ArgumentError(f"{owner}: {name}: found an argument of that name, expected {self._known(name)}")
            named[name] = self._one(owner, name, value) if name in self.parameters else value
        for name, parameter in self.parameters.items():
            if parameter.default is parameter.empty and name not in given and name not in kwargs:
                expected = self.expected[name]
                raise ArgumentError(f"{owner}: {name}: found none, expected {expected.words if expected else 'one'}")
        return taken, named

    def _owner(self, first: tuple[Any, ...]) -> str:
        if not first:
            return self.name
        info = getattr(type(first[0]), "info", None)
        owner = getattr(info, "name", None) or type(first[0]).__name__
        return owner if self.name in ("__init__", "forward") else f"{owner}: {self.name}"

    def _known(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.parameters, n=1)
        known = f"one of {', '.join(self.parameters)}" if self.parameters else "none"
        return f"{known}: did you mean {near[0]}?" if near else known

    def _one(self, owner: str, name: str, value: Any) -> Any:
        expected = self.expected[name]
        if expected is None:
            return value
        taken = expected.take(value)
        if taken is NotImplemented:
            raise ArgumentError(f"{owner}: {name}: found {describe(value)}, expected {expected.words}")
        return taken


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """With annotations as values; as text if a name is imported for type checkers only, other than those of shapes."""
    try:
        signature = inspect.signature(function, locals=SHAPED, eval_str=True)
    except NameError:
        signature = inspect.signature(function)
    return list(signature.parameters.values())


def _expectation(name: str, annotation: Any) -> Expectation | None:
    """Return the check of an argument, None for an annotation that is not checked."""
    if annotation is inspect.Parameter.empty:
        return None
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [_expectation(name, part) for part in typing.get_args(annotation)]
        known = [part for part in parts if part is not None]
        return _either(known) if len(known) == len(parts) else None
    if origin is Literal:
        choices = typing.get_args(annotation)
        return Expectation([repr(choice) for choice in choices], _among(choices))
    if origin is not None:
        return _class(origin) if isinstance(origin, type) else None
    if annotation is None or annotation is type(None):
        return Expectation(["None"], lambda value: None if value is None else NotImplemented)
    if annotation is int:
        least, most, words = {"seed": SEED, "batch": BATCH, **dict.fromkeys(WIDTHS, WIDTH)}.get(name, OTHER)
        return Expectation([words], functools.partial(_whole, least=least, most=most))
    simple = {
        float: Expectation(["a finite number up to 2**24"], _finite),
        bool: Expectation(["True or False"], lambda value: value if isinstance(value, bool) else NotImplemented),
        str: Expectation(["text"], lambda value: value if isinstance(value, str) else NotImplemented),
        torch.device: Expectation(["a device"], _device),
        torch.dtype: Expectation(["a floating point dtype"], _dtype),
    }
    if annotation in simple:
        return simple[annotation]
    return _class(annotation) if isinstance(annotation, type) and annotation not in (object, Any) else None


def _either(parts: list[Expectation]) -> Expectation:
    def take(value: Any) -> Any:
        return next((found for part in parts if (found := part.take(value)) is not NotImplemented), NotImplemented)

    return Expectation([choice for part in parts for choice in part.choices], take)


def _among(choices: tuple[Any, ...]) -> Callable[[Any], Any]:
    return lambda value: value if any(type(value) is type(c) and value == c for c in choices) else NotImplemented


def _class(kind: type) -> Expectation:
    words = "a tensor" if kind is Tensor else f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"
    return Expectation([words], lambda value: value if isinstance(value, kind) else NotImplemented)


def _whole(value: Any, *, least: int, most: int) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return NotImplemented
    return int(value) if least <= int(value) <= most else NotImplemented


def _finite(value: Any) -> Any:
    number: Any = NotImplemented if isinstance(value, bool) or not isinstance(value, numbers.Real) else value
    if number is NotImplemented or not abs(number) <= LARGEST:  # NaN is not either
        return NotImplemented
    return number if isinstance(number, int) else float(number)


def _device(value: Any) -> Any:
    if isinstance(value, torch.device) or not isinstance(value, str):
        return value if isinstance(value, torch.device) else NotImplemented
    try:
        return torch.device(value)
    except RuntimeError:
        return NotImplemented


def _dtype(value: Any) -> Any:
    return value if isinstance(value, torch.dtype) and value.is_floating_point else NotImplemented
