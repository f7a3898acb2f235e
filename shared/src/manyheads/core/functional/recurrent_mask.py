"""Padding and resets of recurrent layers, and the precision of their states.

Axes: b batch, t tokens; any axes after the tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from manyheads.core.functional.packing import pack, pack_order, unpack
from manyheads.core.functional.segments import segment_ids

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped


class RecurrentMask(NamedTuple):
    """Padding and resets in packed order: the result of :func:`recurrent_mask`.

    ``order`` and ``real`` are None without a padding mask, ``segments`` and ``begun`` without a reset mask. A reset at
    a padded token takes effect at the next real one.
    """

    order: Int[Tensor, "b t"] | None
    """The packed order, real tokens first."""
    real: Bool[Tensor, "b t"] | None
    """False for padding; in packed order."""
    segments: Int[Tensor, "b t"] | None
    """The number of resets up to and including each token; in packed order."""
    begun: Int[Tensor, "b"] | None
    """The number of resets in the whole row."""

    def pack(self, x: Shaped[Tensor, "b t *rest"]) -> Shaped[Tensor, "b t *rest"]:
        """The tokens in packed order."""
        return x if self.order is None else pack(x, self.order)

    def unpack(self, y: Shaped[Tensor, "b t *rest"]) -> Shaped[Tensor, "b t *rest"]:
        """The inverse of :meth:`pack`, 0 at the padding."""
        return y if self.order is None or self.real is None else unpack(y, self.order, self.real)

    def starts(self) -> Bool[Tensor, "b t"] | None:
        """True at the first token of an episode, in packed order."""
        if self.segments is None:
            return None
        return self.segments != torch.cat([torch.zeros_like(self.segments[:, :1]), self.segments[:, :-1]], 1)

    def last(self, states: Float[Tensor, "b t *rest"], initial: Float[Tensor, "b *rest"]) -> Float[Tensor, "b *rest"]:
        """The state after the last real token; 0 if the row ends in an episode without a real token.

        Args:
            states: the state after each token, in packed order.
            initial: the state before the first token.
        """
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


def recurrent_mask(padding: Bool[Tensor, "b t"] | None, reset: Bool[Tensor, "b t"] | None) -> RecurrentMask:
    """Padding and resets in packed order.

    Args:
        padding: True for a real token.
        reset: True at the first token of an episode.
    """
    order, real = (None, None) if padding is None else pack_order(padding)
    if reset is None:
        return RecurrentMask(order, real, None, None)
    segments = segment_ids(reset)
    return RecurrentMask(order, real, segments if order is None else pack(segments, order), segments[:, -1])


def carried(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of states that accumulate, for inputs of ``dtype``: float64 for float64, else float32."""
    return torch.float64 if (dtype or torch.get_default_dtype()) == torch.float64 else torch.float32
