"""Padding anywhere becomes padding on the right, so that a layer has to handle only that."""

from __future__ import annotations

import torch
from torch import Tensor

from manyheads.core.errors import StateError


def pack_order(padding: Tensor) -> tuple[Tensor, Tensor]:
    """``padding (B, T)``, True for a real token -> ``order (B, T)`` int64, real tokens first and in order, and
    ``real (B, T)``, True at the first ``padding.sum(1)`` places."""
    order = torch.argsort((~padding).to(torch.int8), dim=1, stable=True)
    return order, padding.gather(1, order)


def pack(x: Tensor, order: Tensor) -> Tensor:
    """``x (B, T, …)`` in that order."""
    return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x))


def unpack(y: Tensor, order: Tensor, real: Tensor) -> Tensor:
    """The inverse of :func:`pack`, with 0 at the padding."""
    axes = [1] * (y.dim() - 2)
    kept = torch.where(real.view(*real.shape, *axes), y, 0.0)
    return torch.zeros_like(y).scatter(1, order.view(*order.shape, *axes).expand_as(y), kept)


def take_along(x: Tensor, index: Tensor) -> Tensor:
    """``x (B, S, …)`` at ``index (B, T)`` -> ``(B, T, …)``."""
    return x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


def keep_first(x: Tensor, used: Tensor) -> Tensor:
    """``x (B, S, …)`` with 0 from place ``used (B,)`` on."""
    held = torch.arange(x.shape[1], device=x.device) < used.unsqueeze(1)
    return torch.where(held.view(*held.shape, *[1] * (x.dim() - 2)), x, 0.0)


def require_room(name: str, position: Tensor, max_len: int) -> None:
    """Raises :class:`StateError` for layer ``name`` where ``position (B,)`` tokens are more than ``max_len``."""
    if not torch.compiler.is_compiling() and bool((position > max_len).any()):
        raise StateError(f"{name}: state: {int(position.max())} tokens do not fit into max_len = {max_len}; raise it")


def hold_first(x: Tensor, kept: Tensor, slots: int) -> Tensor:
    """The first ``slots`` tokens of ``x (B, S, …)`` among those that ``kept (B, S)`` marks, in order, then 0."""
    order, real = pack_order(kept)
    axes = [1] * (x.dim() - 2)
    packed = torch.where(real.view(*real.shape, *axes), pack(x, order), 0.0)[:, :slots]
    missing = slots - packed.shape[1]
    if missing > 0:
        packed = torch.cat([packed, packed.new_zeros(packed.shape[0], missing, *packed.shape[2:])], 1)
    return packed


def hold_last(x: Tensor, kept: Tensor, slots: int) -> Tensor:
    """As :func:`hold_first`, the last ``slots`` tokens; they stand at the left too."""
    left = kept.to(torch.int64).flip(1).cumsum(1).flip(1)  # kept tokens from here on
    return hold_first(x, kept & (left <= slots), slots)
