"""Stochastic depth (1603.09382): in training, whole residual branches are dropped, sample by sample.

Axes: b batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from manyheads.core.arguments import checked, checked_constructor
from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Float


@checked_constructor
class DropPath(nn.Module):
    """Set all values of a sample to 0 with probability ``rate`` in training, and divide the others by ``1 - rate``.

    Raises:
        ArgumentError: a rate outside [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ArgumentError(f"drop path: rate: found {rate}, expected 0 or more and below 1")
        self.rate = rate

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Drop the branch ``x`` of some samples."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


@checked
def drop_path_rates(last: float, depth: int) -> list[float]:
    """Return the rate of each of ``depth`` blocks, rising linearly from 0 to ``last``."""
    return [last * index / max(depth - 1, 1) for index in range(depth)]
