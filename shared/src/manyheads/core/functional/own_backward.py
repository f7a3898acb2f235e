"""What goes with an autograd function that has a backward pass of its own.

Such a function is fast because torch does not see inside it, so that torch can neither trace nor transform it nor
differentiate it twice. Where torch must see inside (:func:`must_be_plain`), the same function runs in plain operations;
second derivatives come from there too (:func:`plain_gradients`), or are refused (:func:`once_differentiable`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from manyheads.core.errors import DerivativeError

# Private to torch: without them nothing counts as transformed, and torch's own errors remain.
is_transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_functorch = getattr(torch._C, "_functorch", None)


def must_be_plain() -> bool:
    """Whether torch compiles, exports or transforms (``torch.func``) what runs."""
    return torch.compiler.is_compiling() or is_transformed()


def differentiated_twice() -> bool:
    """Whether two ``torch.func`` derivatives are nested, or one runs forward: no fused kernel has either."""
    if torch.compiler.is_compiling() or not is_transformed():
        return False
    kinds = [level.key() for level in getattr(_functorch, "get_interpreter_stack", list)() or []]
    types = getattr(_functorch, "TransformType", None)
    return types is not None and (types.Jvp in kinds or kinds.count(types.Grad) > 1)


def plain_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Any], gradients: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of ``function(*inputs)``, differentiable themselves; None for what needs none.

    For the backward pass under ``create_graph``: ``function`` is the plain form, ``inputs`` are the saved ones.
    """
    with torch.enable_grad():
        # Aliases, as one input may have been computed from another.
        seen = [i.view_as(i) if isinstance(i, Tensor) and i.requires_grad else i for i in inputs]
        wanted = [index for index, i in enumerate(seen) if isinstance(i, Tensor) and i.requires_grad]
        out = function(*seen)
        found = torch.autograd.grad(out, [seen[i] for i in wanted], gradients, create_graph=True, allow_unused=True)
    by_index = dict(zip(wanted, found, strict=True))
    return tuple(by_index.get(index) for index in range(len(inputs)))


def once_differentiable(name: str, fix: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a backward pass that has no derivative: a second one raises :class:`DerivativeError`.

    The saved tensors must tell what the gradient depends on: among them is every input that it is not linear in, or an
    empty slice of it. (torch's decorator of that name cuts the graph, so that a second derivative may come out as 0.)
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def once(ctx: Any, *gradients: Tensor | None) -> Any:
            with torch.no_grad():
                found = backward(ctx, *gradients)
            if not torch.is_grad_enabled():
                return found
            return refuse_derivative(found, (*gradients, *ctx.saved_tensors), name, fix)

        return once

    return decorate


def refuse_derivative(gradients: Any, sources: Sequence[Tensor | None], name: str, fix: str = "") -> tuple[Any, ...]:
    """The same gradients, whose derivative by the ``sources`` raises :class:`DerivativeError`."""
    every = gradients if isinstance(gradients, tuple) else (gradients,)
    reached = [source for source in sources if source is not None and source.requires_grad]
    if not reached:
        return every
    return tuple(None if g is None else _Refused.apply(name, fix, g, *reached) for g in every)


class _Refused(torch.autograd.Function):
    """The sources are inputs so that the graph leads to them: torch skips what does not lead to what is asked for."""

    @staticmethod
    def forward(ctx: Any, name: str, fix: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.name, ctx.fix = name, fix
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        end = f": {ctx.fix}" if ctx.fix else ""
        raise DerivativeError(f"{ctx.name}: found a second derivative, expected a first one{end}")
