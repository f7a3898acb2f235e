"""The linear memory of a Legendre memory unit (LMU): constants, no trained weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked_constructor
from manyheads.core.errors import ArgumentError
from manyheads.core.functional.legendre import LegendreSystem, legendre_memory, legendre_system
from manyheads.core.functional.recurrent_mask import carried

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@checked_constructor
class LegendreMemory(nn.Module):
    """The memory ``m[t] = A' m[t - 1] + B' u[t]`` of :mod:`manyheads.core.functional.legendre`.

    The constants are computed in float64. They are stored in float64 if the module is, else in float32: a transition
    rounded to 8 bits would be another system. They are not in the state_dict.

    Axes: b batch, t tokens, q order, c tokens of a block.

    Args:
        order: q, coefficients of the memory.
        window: theta in tokens.
        owner: the name at the start of errors and warnings.

    Raises:
        ArgumentError: order or window below 1.
    """

    transition: Float[Tensor, "q q"]
    drive: Float[Tensor, "q"]
    powers: Float[Tensor, "q c*q"]
    responses: Float[Tensor, "c q"]

    def __init__(self, order: int, window: int, *, owner: str = "legendre-memory") -> None:
        super().__init__()
        for name, value in (("order", order), ("window", window)):
            if value < 1:
                raise ArgumentError(f"{owner}: {name}: found {value}, expected 1 or more")
        if order > window:
            warnings.warn(
                f"{owner}: order: found {order} with window {window}: orders above the window add no linear "
                "information about it, only cost",
                stacklevel=3,
            )
        self.order, self.window = order, window
        for name, value in legendre_system(order, window)._asdict().items():
            self.register_buffer(name, value.to(torch.get_default_dtype(), copy=True), persistent=False)
        self._make_exact()

    @property
    def system(self) -> LegendreSystem:
        """The constants."""
        return LegendreSystem(self.transition, self.drive, self.powers, self.responses)

    def initial(self, *rows: int, device: torch.device | None, dtype: torch.dtype | None) -> Float[Tensor, "*rows q"]:
        """The empty memory: zeros, in float32 for half precision."""
        return torch.zeros(*rows, self.order, device=device, dtype=carried(dtype))

    def forward(
        self, u: Float[Tensor, "b t"], initial: Float[Tensor, "b q"], segments: Int[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b t q"]:
        """The memory after every token; arguments as in :func:`legendre_memory`."""
        if u.shape[1] == 1 and segments is None:
            return self.step(u, initial.unsqueeze(1))
        return legendre_memory(u.to(self.drive.dtype), self.system, initial, segments)

    def step(self, u_t: Float[Tensor, "*rows"], memory: Float[Tensor, "*rows q"]) -> Float[Tensor, "*rows q"]:
        """The memory after one more token."""
        moved = functional.linear(memory, self.transition)
        return torch.addcmul(moved, u_t.to(self.drive.dtype).unsqueeze(-1), self.drive)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        done = super()._apply(fn, recurse)
        self._make_exact()
        return done

    def _make_exact(self) -> None:
        """Recompute the constants in the new dtype; a cast would keep the old rounding."""
        dtype, device = carried(self.drive.dtype), self.drive.device
        for name, value in legendre_system(self.order, self.window)._asdict().items():
            setattr(self, name, value.to(device=device, dtype=dtype, copy=True))
