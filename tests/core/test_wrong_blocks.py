"""Wrong arguments of blocks and of methods are one line; a layer is checked in test_bad_input.py."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch
from torch import nn

import manyheads.core.blocks as blocks
from manyheads.core import create
from manyheads.core.errors import ManyheadsError
from manyheads.core.methods.mixing_matrix import mixing_matrix
from manyheads.core.methods.subsampling import ratio_at, set_ratio

WRONG: list[Any] = ["8", None, -1, 0, 2.5, True, float("nan"), 10**12, [2], object()]


def every_block():
    for module in pkgutil.iter_modules(blocks.__path__):
        found = importlib.import_module(f"manyheads.core.blocks.{module.name}")
        for name, kind in vars(found).items():
            own = inspect.isclass(kind) and issubclass(kind, nn.Module) and kind.__module__ == found.__name__
            if own and not name.startswith("_"):
                yield pytest.param(kind, id=name)


def accepted(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether the value may be right."""
    annotation = str(parameter.annotation)
    signed = parameter.name in ("bias", "theta", "scale", "device", "dtype", "padding", "window")
    return (value is None and "None" in annotation) or (value is True and "bool" in annotation) or signed


def complaint(block, arguments: dict[str, Any]) -> str:
    """The line in which a block refuses, empty where it does not; any other error than ours is the test's."""
    try:
        block(**arguments)
    except ManyheadsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("block", every_block())
def test_a_wrong_argument_of_a_block_is_one_line(block):
    parameters = list(inspect.signature(block).parameters.values())
    needed = {p.name: 4 for p in parameters if p.default is p.empty and "int" in str(p.annotation)}
    for parameter in parameters:
        for value in WRONG:
            if accepted(parameter, value):
                continue
            said = complaint(block, needed | {parameter.name: value})
            assert "\n" not in said, f"{parameter.name}={value!r}: {said}"
    assert complaint(block, {**needed, "no_such_argument": 1})


@pytest.mark.parametrize(
    "call",
    [
        lambda: mixing_matrix("softmax", torch.ones(1, 2, 8)),
        lambda: mixing_matrix(create("softmax", dim=8), [[1.0]]),
        lambda: mixing_matrix(create("softmax", dim=8), torch.ones(1, 2, 8), mask=torch.ones(1, 2, dtype=torch.bool)),
        lambda: set_ratio(None, 0.5),
        lambda: set_ratio(nn.Identity(), "half"),
        lambda: ratio_at("first", 10, ratio=0.5),
        lambda: ratio_at(1, 10),
    ],
)
def test_a_wrong_argument_of_a_method_is_one_line(call):
    with pytest.raises(ManyheadsError) as said:
        call()
    assert "\n" not in str(said.value)
