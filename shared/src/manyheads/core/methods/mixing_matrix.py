"""Mixing matrices P of the unified template of token mixing, Y = P(X) V(X) (2302.06218).

For a layer that is linear in its values (``info.linear_in_value``), P is recovered exactly by feeding columns of the
identity as values. For any other layer :func:`influence` measures how strongly each output depends on each input.

Axes: b batch, t tokens, s sources (T, or context tokens), h heads, e head width, d width, n context tokens, c context
width.

Differs from the paper: P is recovered from the running layer; the paper derives it layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked
from manyheads.core.blocks.shared_value import SharedValue
from manyheads.core.errors import ArgumentError
from manyheads.core.layer import Layer
from manyheads.core.mask import Mask

if TYPE_CHECKING:
    from jaxtyping import Float


@checked
def mixing_matrix(
    layer: Layer,
    x: Float[Tensor, "b *grid d"],
    *,
    context: Float[Tensor, "b n c"] | None = None,
    mask: Mask | None = None,
) -> Float[Tensor, "b h t s"]:
    """P for this input, with ``mixed[b, t, h] = sum_s P[b, h, t, s] value[b, s, h]``.

    Raises :class:`ArgumentError` for a layer that is not linear in its values.
    """
    return recover(layer, x, context=context, mask=mask)[0]


def recover(
    layer: Layer,
    x: Float[Tensor, "b *grid d"],
    *,
    context: Float[Tensor, "b n c"] | None = None,
    mask: Mask | None = None,
) -> tuple[Float[Tensor, "b h t s"], Float[Tensor, "b s h e"], Float[Tensor, "b t h e"]]:
    """The mixing matrix, the values, and the mixed values.

    The output of ``layer.value``, ``(B, S, H E)`` or, of a :class:`SharedValue`, ``(B, S, H, E)``, is replaced by E
    columns of the identity at a time, and the input of ``layer.output`` is read: S / E forward passes.

    Raises:
        ArgumentError: a layer that is not linear in its values.
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


def mixing_matrices(network: nn.Module, run: Callable[[], object]) -> dict[str, Float[Tensor, "b h t s"]]:
    """P of every layer of a network that has one, by the name of its module, for the inputs it gets in ``run()``.

    A layer that stands inside another one with a mixing matrix is left out. The sources of a layer with a memory of its
    inputs (``transformer-xl``) are the slots of the empty memory, which get 0, and then the T tokens.

    Args:
        network: the network, or the part of it whose layers are wanted.
        run: a call of the whole network from the initial states.
    """
    layers: dict[str, Layer] = {}
    for name, module in network.named_modules():
        if isinstance(module, Layer) and module.linear_in_value and not any(name.startswith(f"{n}.") for n in layers):
            layers[name] = module
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, options: given.update({name: (inputs, options)})

    hooks = [layer.register_forward_pre_hook(keep(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    found = {}
    for name, (inputs, options) in given.items():
        wanted = {key: options[key] for key in ("context", "mask") if key in options}
        found[name] = mixing_matrix(layers[name], inputs[0], **wanted)
    return found


@checked
def influence(
    layer: Layer,
    x: Float[Tensor, "b *grid d"],
    *,
    context: Float[Tensor, "b n c"] | None = None,
    mask: Mask | None = None,
) -> Float[Tensor, "b t s"]:
    """The sum over widths of the absolute derivatives of output token t by input token s, or by context token s.

    Works for every differentiable layer, with T D backward passes; grids are flattened.
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
