"""A residual block around any layer: residual connections, norms, a feed-forward network.

    pre    y = x + drop(F(N(x)));   y = y + drop(C(N(y), context));   z = y + drop(G(N(y)))
    post   y = N(x + drop(F(x)));   y = N(y + drop(C(y, context)));   z = N(y + drop(G(y)))

F is the layer, C an optional layer that reads a context, G the feed-forward network, N a norm. Post-norm is 1706.03762;
pre-norm trains without warm-up (2002.04745). F, C and G are arguments: this block imports no layer. A layer for
sequences gets a grid of several axes as all its tokens in raster order.

Axes: b batch, d width, s context tokens, c context width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor
from manyheads.core.blocks.batch_norm import SequenceBatchNorm
from manyheads.core.blocks.drop_path import DropPath
from manyheads.core.errors import ArgumentError
from manyheads.core.layer import Layer, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State

if TYPE_CHECKING:
    from jaxtyping import Float

NormPlace = Literal["pre", "post"]


@checked_constructor
class ResidualBlock(nn.Module):
    """A residual block; see the module for the equations.

    Args:
        layer: F, any layer; its state is the state of the block.
        feed_forward: G, any module from ``(…, D)`` to ``(…, D)``; None for none.
        cross: C, a layer that reads a context; None for none.
        norm: "pre" or "post", the place of the norms.
        make_norm: makes a norm of width D; layer norm by default.
        dropout: share of the outputs of F, C and G that is set to 0 in training.
        drop_path: probability with which F, C or G is left out in training, sample by sample (stochastic depth).

    Raises:
        ArgumentError: layers of unequal width, a ``cross`` without a context, a dropout or drop_path outside [0, 1).
    """

    def __init__(
        self,
        layer: Layer,
        feed_forward: nn.Module | None,
        *,
        cross: Layer | None = None,
        norm: NormPlace = "pre",
        make_norm: Callable[[int], nn.Module] = nn.LayerNorm,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if cross is not None and (cross.dim != layer.dim or cross.context_dim is None):
            raise ArgumentError(
                f"residual block: cross: found width {cross.dim} and context_dim {cross.context_dim}, expected width "
                f"{layer.dim} and a context_dim"
            )
        if not 0 <= dropout < 1:
            raise ArgumentError(f"residual block: dropout: found {dropout}, expected 0 or more and below 1")
        self.layer, self.cross, self.feed_forward = layer, cross, feed_forward
        self.pre = norm == "pre"
        self.layer_norm = make_norm(layer.dim)
        self.cross_norm = None if cross is None else make_norm(layer.dim)
        self.feed_forward_norm = None if feed_forward is None else make_norm(layer.dim)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        """The initial state of the layer."""
        return self.layer.init_state(batch, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "b *grid d"],
        state: State | None = None,
        *,
        context: Float[Tensor, "b s c"] | None = None,
        mask: Mask | None = None,
    ) -> LayerOutput:
        """Run the block; ``cross`` reads the context, or the layer does if there is no ``cross``."""
        own = None if self.cross is not None else context
        real = None if mask is None else mask.padding
        out = in_raster_order(self.layer, self._normed(self.layer_norm, x, real), state, context=own, mask=mask)
        x = self._added(self.layer_norm, x, out.y, real)
        if self.cross is not None and self.cross_norm is not None:
            padded = None if real is None else Mask(padding=real)
            read = in_raster_order(self.cross, self._normed(self.cross_norm, x, real), context=context, mask=padded)
            x = self._added(self.cross_norm, x, read.y, real)
        return LayerOutput(self._widened(x, real), out.state, out.aux)

    def last(self, x: Float[Tensor, "b t d"], count: int) -> Float[Tensor, "b count d"]:
        """``(B, T, D)`` to ``(B, count, D)``: the last ``count`` tokens of a block that attends to itself.

        The layer takes a context: all tokens of ``x``, normed as those that read them are. Raises
        :class:`ArgumentError` for a block with ``cross``.
        """
        if self.cross is not None:
            raise ArgumentError("residual block: last: found a cross layer, expected a block that reads x alone")
        source, first = self._normed(self.layer_norm, x, None), x.shape[1] - count
        mixed = self.layer(source[:, first:], context=source).y
        return self._widened(self._added(self.layer_norm, x[:, first:], mixed, None), None)

    def _widened(self, x: Tensor, real: Tensor | None) -> Tensor:
        if self.feed_forward is None or self.feed_forward_norm is None:
            return x
        y = self.feed_forward(self._normed(self.feed_forward_norm, x, real))
        return self._added(self.feed_forward_norm, x, y, real)

    def _normed(self, norm: nn.Module, x: Tensor, real: Tensor | None) -> Tensor:
        return _over_real(norm, x, real) if self.pre else x

    def _added(self, norm: nn.Module, x: Tensor, y: Tensor, real: Tensor | None) -> Tensor:
        added = x + self.drop_path(self.dropout(y))
        return added if self.pre else _over_real(norm, added, real)


def in_raster_order(
    layer: Layer,
    x: Float[Tensor, "b *grid d"],
    state: State | None = None,
    *,
    context: Float[Tensor, "b s c"] | None = None,
    mask: Mask | None = None,
) -> LayerOutput:
    """Run a layer on a grid; one for sequences gets a grid of several axes as all tokens in raster order."""
    if x.dim() <= 3 or x.dim() - 2 in layer.grid_ranks:
        return layer(x, state, context=context, mask=mask)
    out = layer(x.flatten(1, -2), state, context=context, mask=mask)
    return LayerOutput(out.y.view(x.shape), out.state, out.aux)


def _over_real(norm: nn.Module, x: Tensor, real: Tensor | None) -> Tensor:
    """``norm(x)``; of a batch norm with the statistics of the real tokens."""
    return norm(x.flatten(1, -2), real).view_as(x) if isinstance(norm, SequenceBatchNorm) else norm(x)
