"""LARS (1708.03888): layer-wise adaptive rates for large batches, as VICReg and MoCo v3 use it.

    d = g + lambda w;   d <- trust |w| / |d| d;   m <- mu m + d;   w <- w - lr m

Weights and biases of one axis take neither weight decay nor the adaptive rate. A tensor whose weights or gradient are
zero keeps the rate 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from manyheads.core.errors import ArgumentError


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling; see the module for the step.

    Raises:
        ArgumentError: a negative rate, weight decay or trust, a momentum outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 1e-3,
    ) -> None:
        if min(lr, weight_decay, trust) < 0 or not 0 <= momentum < 1:
            raise ArgumentError(
                f"lars: found lr {lr}, weight_decay {weight_decay}, trust {trust} and momentum {momentum}, expected 0 "
                "or more, and a momentum below 1"
            )
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; ``closure`` computes the loss again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, change: Tensor, group: dict[str, Any]) -> None:
        if weight.dim() > 1:
            change = change + group["weight_decay"] * weight
            size, norm = weight.norm(), change.norm()
            change = change * torch.where((size > 0) & (norm > 0), group["trust"] * size / norm, 1.0)
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        state["momentum_buffer"].mul_(group["momentum"]).add_(change)
        weight.sub_(group["lr"] * state["momentum_buffer"])
