"""Convert values to JSON, and JSON to dataclasses; each value is checked against its annotation."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from manyheads.core.errors import ArgumentError

Kind = TypeVar("Kind")


def from_json(kind: type[Kind], values: Any, *, place: str = "") -> Kind:
    """Build the dataclass ``kind`` from a JSON object.

    Lists become tuples; nested objects become the dataclasses of their fields. Absent fields keep their defaults.
    Error messages begin with ``place``.

    Raises:
        ArgumentError: an unknown field, a missing field, or a value that its annotation excludes.
    """
    name = place or kind.__name__
    if not isinstance(values, Mapping):
        raise ArgumentError(f"{name}: found {_shown(values)}, expected an object")
    hints = typing.get_type_hints(kind)
    fields = {one.name: one for one in dataclasses.fields(kind)}  # ty: ignore[invalid-argument-type]
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise ArgumentError(f"{name}: found the field {unknown[0]!r}, expected {', '.join(fields)}")
    taken = {key: _take(value, hints[key], f"{name}.{key}") for key, value in values.items()}
    for key, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and key not in taken:
            raise ArgumentError(f"{name}.{key}: found none, expected a value")
    return kind(**taken)


def _take(value: Any, hint: Any, place: str) -> Any:
    """Convert a value to its annotated type."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
    elif origin in (types.UnionType, typing.Union):
        for choice in choices:
            try:
                return _take(value, choice, place)
            except ArgumentError:
                continue
    elif origin is tuple:
        if isinstance(value, list | tuple):
            if len(choices) == 2 and choices[1] is Ellipsis:
                return tuple(_take(one, choices[0], f"{place}[{at}]") for at, one in enumerate(value))
            if len(choices) == len(value):
                return tuple(_take(one, choice, place) for one, choice in zip(value, choices, strict=True))
    elif origin is not None:
        if isinstance(value, Mapping) == issubclass(origin, Mapping):
            return value
    elif dataclasses.is_dataclass(hint):
        return from_json(hint, value, place=place)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = getattr(hint, "__name__", None) or str(hint)
    raise ArgumentError(f"{place}: found {_shown(value)}, expected {expected if origin is None else hint}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def plain(value: Any) -> Any:
    """Convert a value to plain JSON types: NaN and infinities become None, tuples lists, numpy scalars numbers."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
