"""Wrong calls of every registered layer: ``(description, call)`` pairs, each of which must raise a ManyheadsError."""

from __future__ import annotations

import importlib.util
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch

from manyheads.core.layer import Layer
from manyheads.core.mask import Mask
from manyheads.core.registry import LAYERS, create
from manyheads.core.testing import Case
from tests.core.layers import CASES, EXAMPLES

# The tests of the core run without numpy as well.
HAS_NUMPY = importlib.util.find_spec("numpy") is not None

Call = tuple[str, Callable[[], Any]]

NEVER_NUMBERS = ["8", "", b"2", [2], (2,), {}, object(), 2j, float("nan"), float("inf"), -float("inf")]
HUGE = [10**9, 2**31, 2**63, 10**30, -(10**30), 10**400]
NEVER_FLAGS = ["yes", "", 0, 1, 2, None, [], 1.0]
NEVER_TEXT = ["", "no such name", 3, None, [], b"relu", True, 1.5]
SIGNED = {"axis", "seed", "gate_bias", "spread", "local_heads"}  # may be 0 or negative, or of another check


def cases() -> Iterator[tuple[str, str, Case]]:
    """Layer, label of the configuration, case."""
    for name, layer in LAYERS.items():
        for label, config in EXAMPLES[name].items():
            yield name, label, Case(layer, config, **CASES[name])


def wrong_values(annotation: str, name: str) -> list[Any]:
    """Values that an argument of this annotation must refuse."""
    optional = "None" in annotation
    if "bool" in annotation:
        return NEVER_FLAGS
    if annotation.startswith("int"):
        values = [
            *NEVER_NUMBERS,
            True,
            False,
            2.0,
            2.5,
            *([] if name == "seed" else [*HUGE, *([] if name in SIGNED else [0, -1])]),
        ]
        return values if optional else [*values, None]
    if annotation.startswith("float"):
        values = [*NEVER_NUMBERS, True, 1e300, 10**30]
        return values if optional else [*values, None]
    return NEVER_TEXT


def wrong_constructor_calls(seed: int, count: int) -> Iterator[Call]:
    """``count`` constructor calls, by ``create`` and by class, with one wrong argument each."""
    draw, every = random.Random(seed), list(cases())
    for _ in range(count):
        name, label, case = draw.choice(every)
        parameters = list(inspect.signature(case.layer_class).parameters.values())
        config: dict[str, Any] = {"dim": case.dim, **case.config}
        required = [p.name for p in parameters if p.default is p.empty]
        kind = draw.choice(["value", "value", "value", "value", "unknown", "missing", "places"])
        places: tuple[Any, ...] = ()
        if kind == "value":
            parameter = draw.choice(parameters)
            wrong = wrong_values(inspect.formatannotation(parameter.annotation).strip("'"), parameter.name)
            config[parameter.name] = draw.choice(wrong)
            what = f"{parameter.name}={config[parameter.name]!r:.40}"
        elif kind == "unknown":
            unknown = draw.choice(["head", "Heads", "dims", "n_heads", "dropout", "self", "x", "padding"])
            config[unknown] = draw.choice([1, None, "a"])
            what = f"unknown {unknown}"
        elif kind == "missing":
            gone = draw.choice(required)
            del config[gone]
            what = f"without {gone}"
        else:
            places = (config.pop("dim"), 2, 3)
            what = "three arguments without a name"
        if draw.random() < 0.5 or "self" in config:
            config = {key: value for key, value in config.items() if key != "self"} | (
                {"itself": 1} if "self" in config else {}
            )
            yield f"{name} [{label}] class: {what}", lambda k=case.layer_class, p=places, c=config: k(*p, **c)
        elif not places:
            yield f"{name} [{label}] create: {what}", lambda n=name, c=config: create(n, **c)


def wrong_forward_calls(seed: int, count: int) -> Iterator[Call]:
    """``count`` calls of built layers, of ``step`` and of ``init_state``, with one thing wrong each."""
    draw, every = random.Random(seed), list(cases())
    built: dict[int, list[Call]] = {}
    for _ in range(count):
        at = draw.randrange(len(every))
        name, label, case = every[at]
        if at not in built:
            built[at] = every_wrong_call(case, case.layer(torch.float32))
        what, call = draw.choice(built[at])
        yield f"{name} [{label}] {what}", call


def every_wrong_call(case: Case, layer: Layer) -> list[Call]:
    """All that is wrong with one call of ``layer``, one thing at a time."""
    x, context = case.x().float(), case.context()
    context = None if context is None else context.float()
    good: dict[str, Any] = {"context": context}
    calls: list[Call] = []

    def add(what: str, call: Callable[[], Any]) -> None:
        calls.append((what, call))

    numbers, weights = _array(x), list(layer.parameters())
    inputs = {
        "a list": x.tolist(), "numpy": numbers, "None": None, "text": "x", "a number": 3.0, "int": x.int(),
        "bool": x > 0, "complex": x.to(torch.complex64), "float64": x.double() if weights else None,
        "float16": x.half() if weights else None, "no axis": x[0, 0, ..., 0].reshape(-1)[0],
        "a row": x[..., 0], "one axis more": x.unsqueeze(1).unsqueeze(1).unsqueeze(1),
        "one wider": torch.cat([x, x[..., :1]], -1),
        "one narrower": x[..., :-1], "a tuple": (x,), "a meta tensor": x.to("meta") if weights else None,
    }  # fmt: skip
    for what, bad in inputs.items():
        add(f"x: {what}", lambda bad=bad: layer(bad, **good))
    tokens = torch.ones(case.batch, case.tokens, dtype=torch.bool)
    masks = {
        "a tensor": tokens, "True": True, "text": "causal", "a dict": {"padding": tokens}, "a list": [tokens],
        "numpy": _array(tokens), "a class": Mask,
    }  # fmt: skip
    for what, bad in masks.items():
        add(f"mask: {what}", lambda bad=bad: layer(x, mask=bad, **good))
    fields = {
        "padding": [tokens.float(), tokens[:, :-1], tokens[0], tokens.tolist(), _array(tokens), 1, tokens.long()],
        "reset": [tokens.float(), tokens[:, :-1], tokens.tolist(), True, tokens.unsqueeze(2)],
        "window": [0, -1, 2.5, "3", True, [3], tokens, float("nan"), 10**30],
        "blocks": [tokens, tokens.float(), tokens.long()[:, :-1], 3, tokens.long().tolist()],
        "context_padding": [tokens.float(), tokens[:, :1], 1, "all"],
        "pad": [tokens],
    }  # fmt: skip
    for field, values in fields.items():
        for bad in values:
            add(f"mask.{field}: {type(bad).__name__}", lambda f=field, bad=bad: layer(x, mask=Mask(**{f: bad}), **good))
    contexts = [3, "c", x.tolist(), numbers, x[0], torch.ones(case.batch, 2, 99), torch.ones(case.batch + 1, 2, 5)]
    contexts += [torch.ones(case.batch, 2, 5, dtype=torch.int64), torch.ones(case.batch, 2, 5).double()]
    if context is not None:
        contexts.append(None)
    for bad in contexts:
        add(f"context: {type(bad).__name__}", lambda bad=bad: layer(x, context=bad))
    states: list[Any] = [3, "s", [], [1], (), (1, 2), {}, x, (x,) * 9, numbers, object()]
    if layer.state_kind != "none":
        fresh = layer.init_state(case.batch, dtype=x.dtype)
        states += [
            fresh[:-1], tuple(fresh), list(fresh), layer.init_state(case.batch + 1, dtype=x.dtype),
            layer.init_state(case.batch, dtype=torch.float64), fresh._replace(**{fresh._fields[0]: None}),
            fresh._replace(**{fresh._fields[0]: 3}), fresh._replace(**{fresh._fields[0]: torch.zeros(())}),
            fresh._replace(**{fresh._fields[-1]: [1]}),
        ]  # fmt: skip
    for bad in states:
        add(f"state: {type(bad).__name__}", lambda bad=bad: layer(x, bad, **good))
        add(f"step: {type(bad).__name__}", lambda bad=bad: layer.step(x[:, 0], bad))
    for what in ("a list", "None", "int", "one wider", "text", "a tuple", "complex"):
        bad = inputs[what]
        bad = bad[:, 0] if isinstance(bad, torch.Tensor) else bad
        state = None if layer.state_kind == "none" else layer.init_state(case.batch, dtype=x.dtype)
        add(f"step: x_t: {what}", lambda bad=bad, state=state: layer.step(bad, state))
    if layer.state_kind != "none":
        for bad in [-1, "2", None, 2.0, True, [2], 10**30, x]:
            add(f"init_state: {type(bad).__name__}", lambda bad=bad: layer.init_state(bad))
        for bad in [torch.int64, "float32", 3, *([_array(x).dtype] if HAS_NUMPY else [])]:
            add(f"init_state: dtype {bad}", lambda bad=bad: layer.init_state(2, dtype=bad))
    add("no argument", lambda: layer())
    add("unknown argument", lambda: layer(x, padding=tokens, **good))
    add("a context by place", lambda: layer(x, None, x))
    return calls


def _array(x: torch.Tensor) -> Any:
    """The tensor as an array of numpy, or as a list without numpy."""
    return x.numpy() if HAS_NUMPY else x.tolist()
