"""Declare the arguments of a layer as fields of its class, like a dataclass.

    class Window(Layer):
        heads: int = heads_argument()
        \"\"\"H; divides ``dim``.\"\"\"
        window: int = argument(default=64, least=1)
        \"\"\"Tokens that each token sees.\"\"\"
        causal: bool = False
        \"\"\"Each token sees itself and earlier tokens only.\"\"\"

        def setup(self) -> None:
            self.query = nn.Linear(self.dim, self.dim)

    Window(64, heads=4, causal=True)

The constructor is generated from the fields. It checks every value, sets it as an attribute, then calls
:meth:`Configured.setup`. Editors and type checkers know its signature (PEP 681), and ``help`` lists the fields as
arguments.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, dataclass_transform, get_origin

from torch import nn

from manyheads.core.arguments import SHAPED, checked
from manyheads.core.errors import ArgumentError

REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """One field of a layer: type, default and checks of an argument, or an attribute if ``init`` is False."""

    name: str = ""
    annotation: Any = Any
    default: Any = REQUIRED
    factory: Callable[[Any], Any] | None = None
    least: int | None = None
    check: Callable[[str, Any, Any], None] | None = None
    keyword: bool = True
    init: bool = True

    def value(self, layer: Configured, given: dict[str, Any]) -> Any:
        """Return the given value, the default, or the result of the factory for None; checked."""
        value = given.get(self.name, self.default)
        if value is None and self.factory is not None:
            value = self.factory(layer)
        owner = layer.display_name()
        if self.least is not None and value is not None and value < self.least:
            raise ArgumentError(f"{owner}: {self.name}: found {value}, expected {self.least} or more")
        if self.check is not None:
            self.check(owner, layer, value)
        return value


def argument(
    *,
    default: Any = REQUIRED,
    factory: Callable[[Any], Any] | None = None,
    least: int | None = None,
    check: Callable[[str, Any, Any], None] | None = None,
    kw_only: bool = True,
) -> Any:
    """Declare an argument of a layer.

    Args:
        default: the default value. An argument without default and factory is required.
        factory: ``factory(layer)`` computes the value from earlier arguments if it is omitted or None.
        least: smallest value; a smaller one raises :class:`ArgumentError`. None is accepted.
        check: ``check(owner, layer, value)`` raises :class:`ArgumentError` for a wrong value.
        kw_only: False for an argument that may be positional.
    """
    return Argument(
        default=None if factory is not None else default, factory=factory, least=least, check=check, keyword=kw_only
    )


def attribute(*, default: Any = REQUIRED, init: Literal[False] = False) -> Any:
    """Declare an attribute that is not an argument, such as a buffer that ``setup`` registers."""
    return Argument(default=default, init=init)


def heads_argument(*, most: int = 8, least_width: int = 1, factory: Callable[[Any], Any] | None = None) -> Any:
    """Declare the number of heads H, a divisor of ``dim`` with heads of width ``least_width`` or more.

    The default is the largest such power of two up to ``most``.
    """

    def largest(layer: Any) -> int:
        heads = most
        while heads > 1 and (layer.dim % heads or layer.dim // heads < least_width):
            heads //= 2
        return heads

    def divides(owner: str, layer: Any, heads: int) -> None:
        dim = layer.dim
        if heads < 1 or dim % heads or dim // heads < least_width:
            wide = "" if least_width == 1 else f" that leaves heads of width {least_width} or more"
            raise ArgumentError(f"{owner}: heads: found {heads}, expected a divisor of dim = {dim}{wide}")

    return argument(factory=factory or largest, check=divides)


@dataclass_transform(kw_only_default=True, field_specifiers=(argument, attribute, heads_argument))
class Configured(nn.Module):
    """A module with a constructor generated from the fields of its class. ``config`` has every argument by name."""

    arguments: ClassVar[tuple[Argument, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the fields, and generate the constructor unless the class has its own."""
        super().__init_subclass__(**kwargs)
        own = _own_arguments(cls)
        inherited = {one.name: one for one in cls.arguments}
        cls.arguments = tuple({**inherited, **own}.values())
        if "__init__" in cls.__dict__:
            cls.__init__ = checked(_within_memory(cls.__init__))  # ty: ignore[invalid-assignment]
            return
        if own:
            cls.__init__ = checked(_within_memory(_constructor(cls)))  # ty: ignore[invalid-assignment]
        cls.__doc__ = _with_arguments(cls)

    @classmethod
    def display_name(cls) -> str:
        """Return the name in error messages."""
        return getattr(getattr(cls, "info", None), "name", cls.__name__)

    def setup(self) -> None:
        """Build parameters and submodules from the arguments, which are attributes, and check combinations of them.

        ``setup`` may replace an argument by another value; ``config`` then has the new value.
        """


def _own_arguments(cls: type) -> dict[str, Argument]:
    """Return the arguments that the class itself declares, in order; remove their values from the class."""
    found: dict[str, Argument] = {}
    # a class with its own constructor has only the arguments that are declared with argument()
    plain = "__init__" not in cls.__dict__
    for name, annotation in inspect.get_annotations(cls, locals=SHAPED, eval_str=True).items():
        declared = cls.__dict__.get(name, REQUIRED)
        if not isinstance(declared, Argument):
            if not plain or annotation is ClassVar or get_origin(annotation) is ClassVar:
                continue
            declared = Argument(default=declared)
        if name in cls.__dict__:
            # a class attribute would hide a buffer or a submodule of the same name
            delattr(cls, name)
        if declared.init:
            optional = annotation | None if declared.factory is not None else annotation
            found[name] = replace(declared, name=name, annotation=optional)
        elif declared.default is not REQUIRED:
            setattr(cls, name, declared.default)
    return found


def _constructor(cls: type[Configured]) -> Callable[..., None]:
    arguments = cls.arguments
    places = [one.name for one in arguments if not one.keyword]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        given = dict(zip(places, args, strict=False)) | kwargs
        values = {}
        for one in arguments:
            values[one.name] = one.value(self, given)
            setattr(self, one.name, values[one.name])
        self.config = dict(values)
        self.setup()
        # a submodule may have replaced an argument of the same name; config then keeps the argument
        self.config.update({name: self.__dict__[name] for name in values if name in self.__dict__})

    parameter = inspect.Parameter
    every = [parameter("self", parameter.POSITIONAL_OR_KEYWORD)]
    for one in sorted(arguments, key=lambda one: one.keyword):
        kind = parameter.KEYWORD_ONLY if one.keyword else parameter.POSITIONAL_OR_KEYWORD
        every.append(parameter(one.name, kind, default=one.default, annotation=one.annotation))
    __init__.__signature__ = inspect.Signature(every)  # ty: ignore[missing-attribute]
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


def _within_memory(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor: weights that do not fit into memory raise :class:`ArgumentError`, not an error of torch."""

    @functools.wraps(init)
    def run(self: Configured, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not any(sign in str(error) for sign in ("allocate", "Storage size", "out of memory", "overflow")):
                raise
            given = ", ".join([*map(str, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
            raise ArgumentError(
                f"{self.display_name()}: found ({given}), expected weights that fit into memory"
            ) from error

    return run


def documentation(cls: type[Configured]) -> dict[str, str]:
    """Return the documentation of each argument, the string below its field; empty without source code."""
    found: dict[str, str] = {}
    for kind in reversed(cls.__mro__):
        if issubclass(kind, Configured):
            found |= _texts(kind.__module__).get(kind.__qualname__, {})
    return {one.name: found.get(one.name, "") for one in cls.arguments}


@functools.cache
def _texts(module: str) -> dict[str, dict[str, str]]:
    """Return the documentation of the fields of a module: class -> field -> text."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):
        return {}
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, node.body[1:], strict=False)
            found[node.name] = {
                field.target.id: inspect.cleandoc(text.value.value)
                for field, text in pairs
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return found


def _with_arguments(cls: type[Configured]) -> str | None:
    """Return the docstring of the class with its arguments as a section ``Args``."""
    lines = [f"{name}: {' '.join(text.split())}" for name, text in documentation(cls).items() if text]
    if not cls.__dict__.get("__doc__") or not lines:
        return cls.__doc__
    text = inspect.cleandoc(cls.__dict__["__doc__"])
    body, mark, raises = text.partition("\n\nRaises:")
    return f"{body}\n\nArgs:\n{textwrap.indent(chr(10).join(lines), '    ')}{mark}{raises}"
