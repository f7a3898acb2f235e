"""Support for autograd functions with their own backward pass: plain forms and second derivatives.

Such a function is fast because torch does not see inside it. For the same reason torch can neither trace nor transform
it, nor differentiate it twice. If torch must see inside (:func:`must_be_plain`), the same function runs in plain
operations. Second derivatives come from these too (:func:`plain_gradients`), or are refused
(:func:`once_differentiable`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from manyheads.core.errors import DerivativeError

if TYPE_CHECKING:
    from jaxtyping import Shaped

# Private to torch. Without them nothing counts as transformed, and torch raises its own errors.
is_transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_functorch = getattr(torch._C, "_functorch", None)


def must_be_plain() -> bool:
    """Return whether the call runs under ``torch.compile``, ``torch.export`` or a ``torch.func`` transform."""
    return torch.compiler.is_compiling() or is_transformed()


def differentiated_twice() -> bool:
    """Return whether ``torch.func`` derivatives are nested or forward-mode; fused kernels have neither."""
    if torch.compiler.is_compiling() or not is_transformed():
        return False
    kinds = [level.key() for level in getattr(_functorch, "get_interpreter_stack", list)() or []]
    types = getattr(_functorch, "TransformType", None)
    return types is not None and (types.Jvp in kinds or kinds.count(types.Grad) > 1)


def plain_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Any], gradients: Shaped[Tensor, "..."]
) -> tuple[Shaped[Tensor, "..."] | None, ...]:
    """Differentiable gradients of ``function(*inputs)``, for a backward pass under ``create_graph``.

    Args:
        function: the plain form.
        inputs: the saved inputs. Those that require no gradient get None.
        gradients: the gradient of the output.
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
    """Decorator of a backward pass without a derivative: a second derivative raises :class:`DerivativeError`.

    The saved tensors must include every input that the gradient is not linear in, or an empty slice of it. (torch's
    decorator of that name cuts the graph, so that a second derivative may come out as 0.)
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


def refuse_derivative(
    gradients: Any, sources: Sequence[Shaped[Tensor, "..."] | None], name: str, fix: str = ""
) -> tuple[Any, ...]:
    """The same gradients; their derivative with respect to ``sources`` raises :class:`DerivativeError`."""
    every = gradients if isinstance(gradients, tuple) else (gradients,)
    reached = [source for source in sources if source is not None and source.requires_grad]
    if not reached:
        return every
    return tuple(None if g is None else _Refused.apply(name, fix, g, *reached) for g in every)


class _Refused(torch.autograd.Function):
    """Identity whose backward raises. The sources are inputs because torch skips nodes that do not lead to them."""

    @staticmethod
    def forward(ctx: Any, name: str, fix: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.name, ctx.fix = name, fix
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        end = f": {ctx.fix}" if ctx.fix else ""
        raise DerivativeError(f"{ctx.name}: found a second derivative, expected a first one{end}")
