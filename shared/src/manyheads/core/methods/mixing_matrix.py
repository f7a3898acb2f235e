"""The unified template of token mixing, Y = P(X) V(X) (2302.06218): which tokens each output is made of.

For a layer that is linear in its values (``info.linear_in_value``), P is recovered exactly by feeding columns of the
identity as values. For any other layer :func:`influence` tells how strongly each output depends on each input.

Shapes: B batch, T tokens, S sources (T, or context tokens), H heads, E head width, D width.

Differs from the paper: P is recovered from the running layer; the paper derives it layer by layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked
from manyheads.core.blocks.shared_value import SharedValue
from manyheads.core.errors import ArgumentError
from manyheads.core.layer import Layer
from manyheads.core.mask import Mask


@checked
def mixing_matrix(layer: Layer, x: Tensor, *, context: Tensor | None = None, mask: Mask | None = None) -> Tensor:
    """``P (B, H, T, S)`` with ``mixed[b, t, h] = sum_s P[b, h, t, s] value[b, s, h]`` for this ``x (B, *grid, D)``.

    Raises :class:`ArgumentError` for a layer that is not linear in its values.
    """
    return recover(layer, x, context=context, mask=mask)[0]


def recover(
    layer: Layer, x: Tensor, *, context: Tensor | None = None, mask: Mask | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix ``(B, H, T, S)``, the values ``(B, S, H, E)`` and what they mix to, ``(B, T, H, E)``.

    The output of ``layer.value``, ``(B, S, H E)`` or, of a :class:`SharedValue`, ``(B, S, H, E)``, is replaced by E
    columns of the identity at a time, and the input of ``layer.output`` is read: S / E forward passes.
    """
    if not layer.linear_in_value:
        raise ArgumentError(
            f"{layer.info.name}: found a layer that is not linear in its values: it has no mixing matrix; "
            "methods.influence tells what its outputs depend on"
        )
    heads = layer.config["heads"]
    replaced: Tensor | None = None
    seen: dict[str, Tensor] = {}

    def give(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen["value"] = output
        return output if replaced is None else replaced.view_as(output)

    def take(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["mixed"] = inputs[0]

    def tokens_first(part: Tensor) -> Tensor:
        return part.flatten(1, -2).unflatten(-1, (heads, -1))

    module = layer.get_submodule("value")
    apart = isinstance(module, SharedValue)
    hooks = [
        module.register_forward_hook(give),
        layer.get_submodule("output").register_forward_pre_hook(take),
    ]
    try:
        with torch.no_grad():
            layer(x, context=context, mask=mask)
            values = seen["value"] if apart else tokens_first(seen["value"])
            mixed = tokens_first(seen["mixed"])
            sources, width = values.shape[1], values.shape[3]
            columns = []
            for start in range(0, sources, width):
                index = torch.arange(width, device=x.device) + start
                unit = (torch.arange(sources, device=x.device)[:, None] == index).to(values.dtype)
                replaced = unit[None, :, None, :].expand_as(values).contiguous()
                layer(x, context=context, mask=mask)
                columns.append(tokens_first(seen["mixed"]))
            return torch.cat(columns, -1)[..., :sources].transpose(1, 2), values, mixed
    finally:
        for hook in hooks:
            hook.remove()


@checked
def influence(layer: Layer, x: Tensor, *, context: Tensor | None = None, mask: Mask | None = None) -> Tensor:
    """``(B, T, T)``: sum over widths of the absolute derivatives of output token t by input token s; with a context of
    S tokens ``(B, T, S)``, the derivatives by these.

    Works for every differentiable layer, T D backward passes; grids are flattened.
    """
    source = (x if context is None else context).detach().clone().requires_grad_()
    given = {"x": source} if context is None else {"x": x, "context": source}
    y = layer(**given, mask=mask).y.flatten(1, -2)
    batch, tokens, width = y.shape
    total = torch.zeros(batch, tokens, source[..., 0].flatten(1).shape[1], dtype=x.dtype, device=x.device)
    for t in range(tokens):
        for d in range(width):
            (grad,) = torch.autograd.grad(y[:, t, d].sum(), source, retain_graph=True, materialize_grads=True)
            total[:, t] += grad.flatten(1, -2).abs().sum(-1)
    return total
