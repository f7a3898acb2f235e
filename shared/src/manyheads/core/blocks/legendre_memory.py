"""The linear memory of a Legendre memory unit: constants, nothing trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked_constructor
from manyheads.core.errors import ArgumentError
from manyheads.core.functional.legendre import LegendreSystem, legendre_memory, legendre_system
from manyheads.core.functional.recurrent_mask import carried


@checked_constructor
class LegendreMemory(nn.Module):
    """``m[t] = A' m[t - 1] + B' u[t]``, see :mod:`manyheads.core.functional.legendre`.

    The constants are exact in float64 and are held in float64 beside float64 weights, in float32 beside any other, as
    a transition rounded to 8 bits would be another system. They are no part of the state_dict.

    Args:
        order: q, numbers that are remembered.
        window: theta in tokens.
        owner: the name that errors and warnings begin with.

    Raises:
        ArgumentError: order or window below 1.
    """

    transition: Tensor
    drive: Tensor
    powers: Tensor
    responses: Tensor

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
        return LegendreSystem(self.transition, self.drive, self.powers, self.responses)

    def initial(self, *rows: int, device: torch.device | None, dtype: torch.dtype | None) -> Tensor:
        """The empty memory; float32 under lower precision."""
        return torch.zeros(*rows, self.order, device=device, dtype=carried(dtype))

    def forward(self, u: Tensor, initial: Tensor, segments: Tensor | None = None) -> Tensor:
        """``u (B, T)``, ``initial (B, q)`` -> ``(B, T, q)``; ``segments`` as in :func:`legendre_memory`."""
        if u.shape[1] == 1 and segments is None:
            return self.step(u, initial.unsqueeze(1))
        return legendre_memory(u.to(self.drive.dtype), self.system, initial, segments)

    def step(self, u_t: Tensor, memory: Tensor) -> Tensor:
        """``u_t (…)``, ``memory (…, q)`` -> the next memory."""
        moved = functional.linear(memory, self.transition)
        return torch.addcmul(moved, u_t.to(self.drive.dtype).unsqueeze(-1), self.drive)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        done = super()._apply(fn, recurse)
        self._make_exact()
        return done

    def _make_exact(self) -> None:
        """Casting has rounded the constants: they are taken from their source again."""
        dtype, device = carried(self.drive.dtype), self.drive.device
        for name, value in legendre_system(self.order, self.window)._asdict().items():
            setattr(self, name, value.to(device=device, dtype=dtype, copy=True))
