"""Masks: which tokens a layer may read, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from manyheads.core.arguments import checked_constructor
from manyheads.core.errors import MaskError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@checked_constructor
@dataclass(frozen=True)
class Mask:
    """Masks of one call. Each may be None; a layer raises for a mask that it cannot honour.

    Axes: b batch, t tokens, s context tokens.
    """

    padding: Bool[Tensor, "b t"] | None = None
    """True for a real token; padding is neither read nor kept in the state."""
    reset: Bool[Tensor, "b t"] | None = None
    """True at the first token of an episode, which sees nothing before it."""
    window: int | None = None
    """Each token sees at most this many of the latest tokens, itself included."""
    blocks: Int[Tensor, "b t"] | None = None
    """The block of each token (int64), which sees only tokens of its own block."""
    context_padding: Bool[Tensor, "b s"] | None = None
    """True for a real context token."""

    def names(self) -> tuple[str, ...]:
        """Names of the masks that are set."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def check(self, batch: int, tokens: int, context_tokens: int | None, device: torch.device) -> None:
        """Raise :class:`MaskError` for a wrong shape, dtype or device, or a window below 1."""
        expected = {
            "padding": ((batch, tokens), torch.bool),
            "reset": ((batch, tokens), torch.bool),
            "blocks": ((batch, tokens), torch.int64),
            "context_padding": ((batch, context_tokens), torch.bool),
        }
        for name, (shape, dtype) in expected.items():
            value = getattr(self, name)
            if value is not None and (tuple(value.shape) != shape or value.dtype != dtype):
                raise MaskError(
                    f"mask.{name}: found shape {tuple(value.shape)} of {value.dtype}, expected {shape} of {dtype}"
                )
            if value is not None and value.device != device:
                raise MaskError(f"mask.{name}: found a tensor on {value.device}, expected one on {device} as x")
        if self.window is not None and self.window < 1:
            raise MaskError(f"mask.window: found {self.window}, expected 1 or more")


NO_MASK = Mask()

# grid ranks on which each restriction has a meaning; None for all: tokens are counted in raster order
MASK_RANKS: Mapping[str, tuple[int, ...] | None] = {
    "padding": None,
    "reset": None,  # a step of the first axis starts the episode
    "window": (1,),
    "blocks": None,
    "context_padding": None,
}
