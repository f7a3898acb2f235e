"""Move real tokens to the left, so that a layer handles padding on the right only.

Axes: b batch, t or s tokens, n slots; any axes after the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.errors import StateError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, Shaped


def pack_order(padding: Bool[Tensor, "b t"]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """The order that puts real tokens first and keeps their order, and the padding mask in that order.

    ``padding`` is True for a real token; the returned mask is True at the first ``padding.sum(1)`` places.
    """
    order = torch.argsort((~padding).to(torch.int8), dim=1, stable=True)
    return order, padding.gather(1, order)


def pack(x: Shaped[Tensor, "b t *rest"], order: Int[Tensor, "b t"]) -> Shaped[Tensor, "b t *rest"]:
    """The tokens in the given order."""
    return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x))


def unpack(
    y: Shaped[Tensor, "b t *rest"], order: Int[Tensor, "b t"], real: Bool[Tensor, "b t"]
) -> Shaped[Tensor, "b t *rest"]:
    """The inverse of :func:`pack`, with 0 at the padding."""
    axes = [1] * (y.dim() - 2)
    kept = torch.where(real.view(*real.shape, *axes), y, 0.0)
    return torch.zeros_like(y).scatter(1, order.view(*order.shape, *axes).expand_as(y), kept)


def take_along(x: Shaped[Tensor, "b s *rest"], index: Int[Tensor, "b t"]) -> Shaped[Tensor, "b t *rest"]:
    """The tokens at these indices."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def keep_first(x: Shaped[Tensor, "b s *rest"], used: Int[Tensor, "b"]) -> Shaped[Tensor, "b s *rest"]:
    """The first ``used`` tokens of each row, then 0."""
    held = torch.arange(x.shape[1], device=x.device) < used.unsqueeze(1)
    return torch.where(held.view(*held.shape, *[1] * (x.dim() - 2)), x, 0.0)


def require_room(name: str, position: Int[Tensor, "b"], max_len: int) -> None:
    """Raise :class:`StateError` for layer ``name`` if a row has more than ``max_len`` tokens."""
    if not torch.compiler.is_compiling() and bool((position > max_len).any()):
        raise StateError(f"{name}: state: {int(position.max())} tokens do not fit into max_len = {max_len}; raise it")


def hold_first(x: Shaped[Tensor, "b s *rest"], kept: Bool[Tensor, "b s"], slots: int) -> Shaped[Tensor, "b n *rest"]:
    """The first ``slots`` tokens among those marked by ``kept``, in order, then 0."""
    order, real = pack_order(kept)
    axes = [1] * (x.dim() - 2)
    packed = torch.where(real.view(*real.shape, *axes), pack(x, order), 0.0)[:, :slots]
    missing = slots - packed.shape[1]
    if missing > 0:
        packed = torch.cat([packed, packed.new_zeros(packed.shape[0], missing, *packed.shape[2:])], 1)
    return packed


def hold_last(x: Shaped[Tensor, "b s *rest"], kept: Bool[Tensor, "b s"], slots: int) -> Shaped[Tensor, "b n *rest"]:
    """The last ``slots`` tokens among those marked by ``kept``, in order and aligned to the left, then 0."""
    # Kept tokens from here to the end.
    left = kept.to(torch.int64).flip(1).cumsum(1).flip(1)
    return hold_first(x, kept & (left <= slots), slots)
