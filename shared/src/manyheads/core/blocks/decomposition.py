"""Series decomposition by a moving average, and a block that removes the trend after each sublayer (2106.13008).

    trend[t] = mean of x[t - (k-1)/2 … t + (k-1)/2], the ends repeated;   seasonal = x - trend

    y, _ = D(x + drop(F(x)));   y, t1 = D(y + drop(C(y, context)));   z, t2 = D(y + drop(G(y)));   trends t0 + t1 + t2

D gives the seasonal part and the trend, F is the layer, C an optional layer that reads a context, G the feed-forward
network. Axes: b batch, t tokens, d width, s context tokens, c context width; k window of the average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor
from manyheads.core.errors import ArgumentError
from manyheads.core.layer import Layer

if TYPE_CHECKING:
    from jaxtyping import Float


@checked_constructor
class SeriesDecomposition(nn.Module):
    """The seasonal part and the trend of a series.

    With several windows the trend is the mean of their moving averages. An even window has one step more on the left.

    Raises:
        ArgumentError: no window, or one below 1.
    """

    def __init__(self, *windows: int) -> None:
        super().__init__()
        if not windows or min(windows) < 1:
            raise ArgumentError(f"series decomposition: windows: found {windows}, expected one or more of 1 or more")
        self.windows = windows

    def forward(self, x: Float[Tensor, "b t d"]) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
        """The seasonal part and the trend."""
        trends = [self._average(x, window) for window in self.windows]
        trend = trends[0] if len(trends) == 1 else torch.stack(trends).mean(0)
        return x - trend, trend

    @staticmethod
    def _average(x: Tensor, window: int) -> Tensor:
        before, after = window // 2, (window - 1) // 2
        edges = x[:, :1].expand(-1, before, -1), x[:, -1:].expand(-1, after, -1)
        padded = torch.cat([edges[0], x, edges[1]], 1)
        return nn.functional.avg_pool1d(padded.transpose(1, 2), window, stride=1).transpose(1, 2)


@checked_constructor
class SeasonalNorm(nn.Module):
    """Layer norm of the seasonal part, minus its mean over time (2106.13008).

    Raises:
        ArgumentError: a width below 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ArgumentError(f"seasonal norm: dim: found {dim}, expected 1 or more")
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Normalise."""
        normed = self.norm(x)
        return normed - normed.mean(1, keepdim=True)


@checked_constructor
class DecompositionBlock(nn.Module):
    """A block with a decomposition after each residual sum instead of a norm; see the module for the equations.

    Args:
        layer: F, any layer.
        feed_forward: G, any module from ``(B, T, D)`` to ``(B, T, D)``.
        windows: k, of the moving average.
        cross: C, a layer that reads a context; None for none.
        dropout: share of the outputs of F, C and G that is set to 0 in training.
    """

    def __init__(
        self,
        layer: Layer,
        feed_forward: nn.Module,
        windows: tuple[int, ...] = (25,),
        *,
        cross: Layer | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layer, self.cross, self.feed_forward = layer, cross, feed_forward
        self.decompose = SeriesDecomposition(*windows)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b t d"], context: Float[Tensor, "b s c"] | None = None
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
        """The seasonal part and the sum of the removed trends."""
        x, removed = self.decompose(x + self.dropout(self.layer(x).y))
        if self.cross is not None:
            x, trend = self.decompose(x + self.dropout(self.cross(x, context=context).y))
            removed = removed + trend
        x, trend = self.decompose(x + self.dropout(self.feed_forward(x)))
        return x, removed + trend
