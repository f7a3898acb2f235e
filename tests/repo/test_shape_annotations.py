"""Every tensor that a public function of the core takes or returns has its shape in the annotation."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

from manyheads.core import arguments

CORE = Path(__file__).parents[2] / "shared/src/manyheads/core"
COVERED = [
    CORE / "mask.py",
    CORE / "state.py",
    *(
        path
        for folder in ("functional", "blocks", "backbones", "methods")
        for path in sorted((CORE / folder).rglob("*.py"))
    ),
]
KINDS = {"Bool", "Float", "Int", "Shaped"}


def public_functions(tree: ast.Module):
    """Functions of the module and methods of its public classes, with their names."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and (inner.name == "__call__" or not inner.name.startswith("_")):
                    yield f"{node.name}.{inner.name}", inner
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node


def without_shape(annotation: ast.expr) -> bool:
    """Whether the annotation names ``Tensor`` without axes.

    What a function given as an argument takes and returns is its own affair: ``Callable[[Tensor], Tensor]`` may stay.
    """
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        if annotation.value.id == "Callable":
            return False
        if annotation.value.id in KINDS:
            kind, axes = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else (None, None)
            right = isinstance(kind, ast.Name) and kind.id == "Tensor"
            return not (right and isinstance(axes, ast.Constant) and isinstance(axes.value, str))
    if isinstance(annotation, ast.Name):
        return annotation.id == "Tensor"
    return any(without_shape(child) for child in ast.iter_child_nodes(annotation) if isinstance(child, ast.expr))


def missing(source: str) -> list[str]:
    """Arguments and results without an annotation, or with a tensor without axes."""
    found = []
    for name, function in public_functions(ast.parse(source)):
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        for argument in arguments:
            if argument is None or argument.arg in ("self", "cls"):
                continue
            if argument.annotation is None or without_shape(argument.annotation):
                found.append(f"{name}: {argument.arg}")
        # the backward pass of an autograd function returns a gradient, or None, for each argument of its forward
        if function.name != "backward" and (function.returns is None or without_shape(function.returns)):
            found.append(f"{name}: return")
    return found


@pytest.mark.parametrize("path", COVERED, ids=lambda path: str(path.relative_to(CORE)))
def test_public_functions_say_the_shapes_of_their_tensors(path):
    assert missing(path.read_text()) == []


def test_the_covered_folders_are_not_empty():
    assert len(COVERED) > 40
    assert sum(path.read_text().count("[Tensor, ") for path in COVERED) > 300


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x: Tensor) -> None: ...", ["f: x"]),
        ("def f(x) -> None: ...", ["f: x"]),
        ("def f(x: int): ...", ["f: return"]),
        ('def f(*, x: Float[Tensor, "b"] | Tensor | None = None) -> None: ...', ["f: x"]),
        ('def f(x: Float[Tensor, "b"]) -> tuple[Tensor, int]: ...', ["f: return"]),
        ("def f(x: Sequence[Tensor]) -> None: ...", ["f: x"]),
        ("def f(x: Float[Tensor]) -> None: ...", ["f: x"]),
        ("class A:\n    def forward(self, x: Tensor) -> None: ...", ["A.forward: x"]),
        ("class A:\n    def __call__(self, x: Tensor) -> None: ...", ["A.__call__: x"]),
        ('def f(x: Float[Tensor, "b"], run: Callable[[Tensor], Tensor]) -> Int[Tensor, ""]: ...', []),
        ("def _f(x): ...\nclass _A:\n    def forward(self, x): ...", []),
    ],
)
def test_a_tensor_without_axes_is_found(source, expected):
    assert missing(source) == expected


def checked_functions():
    """Functions of the core whose arguments are checked against their annotations when they are called."""
    import manyheads.core

    for found in pkgutil.walk_packages(manyheads.core.__path__, "manyheads.core."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            for function in [value, *(vars(value).values() if inspect.isclass(value) else ())]:
                code = getattr(function, "__code__", None)
                if inspect.isfunction(function) and code is not None and code.co_filename == arguments.__file__:
                    yield function


def test_checked_functions_know_all_their_annotations():
    functions = list(checked_functions())
    assert len(functions) > 50
    unknown = [
        f"{function.__module__}.{function.__qualname__}: {parameter.name}: {parameter.annotation}"
        for function in functions
        for parameter in arguments._parameters(function)
        if isinstance(parameter.annotation, str)
    ]
    assert unknown == []
