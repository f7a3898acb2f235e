"""What recurrences share: padding and resets (real tokens to the left, episodes counted, the last state picked), and
the precision of what they carry."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from manyheads.core.functional.packing import pack, pack_order, unpack
from manyheads.core.functional.segments import segment_ids


class RecurrentMask(NamedTuple):
    """What :func:`recurrent_mask` makes of a padding and a reset mask; each part is None where its mask is.

    A reset at a padded token takes effect at the next real one.
    """

    order: Tensor | None  # (B, T) int64: real tokens first
    real: Tensor | None  # (B, T) bool, in that order
    segments: Tensor | None  # (B, T) int64, in that order: episodes begun, this token's among them
    begun: Tensor | None  # (B,) int64: episodes begun in all

    def pack(self, x: Tensor) -> Tensor:
        """``x (B, T, …)`` with the real tokens first."""
        return x if self.order is None else pack(x, self.order)

    def unpack(self, y: Tensor) -> Tensor:
        """The inverse of :meth:`pack`, 0 at the padding."""
        return y if self.order is None or self.real is None else unpack(y, self.order, self.real)

    def starts(self) -> Tensor | None:
        """``(B, T)`` bool in packed order: an episode begins with this token."""
        if self.segments is None:
            return None
        return self.segments != torch.cat([torch.zeros_like(self.segments[:, :1]), self.segments[:, :-1]], 1)

    def last(self, states: Tensor, initial: Tensor) -> Tensor:
        """The state after the last token: of ``states (B, T, …)`` in packed order, ``initial (B, …)`` before them; 0
        where an episode has begun that has no token yet."""
        if self.real is None:
            return states[:, -1]
        every = torch.cat([initial.unsqueeze(1).to(states.dtype), states], 1)
        index = self.real.sum(1)
        shape = (-1, *[1] * (states.dim() - 1))
        found = every.gather(1, index.view(shape).expand(-1, 1, *states.shape[2:])).squeeze(1)
        if self.segments is None or self.begun is None:
            return found
        episode = torch.cat([torch.zeros_like(self.segments[:, :1]), self.segments], 1).gather(1, index[:, None])
        return torch.where((episode == self.begun[:, None]).view(shape[:-1]), found, 0.0)


def recurrent_mask(padding: Tensor | None, reset: Tensor | None) -> RecurrentMask:
    """``padding (B, T)`` bool, True for a real token; ``reset (B, T)`` bool, True where an episode begins."""
    order, real = (None, None) if padding is None else pack_order(padding)
    if reset is None:
        return RecurrentMask(order, real, None, None)
    segments = segment_ids(reset)
    return RecurrentMask(order, real, segments if order is None else pack(segments, order), segments[:, -1])


def carried(dtype: torch.dtype | None) -> torch.dtype:
    """What accumulating states are held in beside inputs of ``dtype``: float64 beside float64, else float32."""
    return torch.float64 if (dtype or torch.get_default_dtype()) == torch.float64 else torch.float32
