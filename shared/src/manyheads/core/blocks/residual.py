"""A residual block around any layer: residual connections, norms, a feed-forward network.

    pre    y = x + drop(F(N(x)));   y = y + drop(C(N(y), context));   z = y + drop(G(N(y)))
    post   y = N(x + drop(F(x)));   y = N(y + drop(C(y, context)));   z = N(y + drop(G(y)))

F is the layer, C an optional layer that reads a context, G the feed-forward network, N a norm. Post-norm is 1706.03762;
pre-norm trains without warm-up (2002.04745). F, C and G are arguments: this block imports no layer.

Axes: b batch, d width, s context tokens, c context width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked_constructor
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

    Raises:
        ArgumentError: layers of unequal width, a ``cross`` without a context, a dropout outside [0, 1).
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
        out = self.layer(self._before(self.layer_norm, x), state, context=own, mask=mask)
        x = self._after(self.layer_norm, x, out.y)
        if self.cross is not None and self.cross_norm is not None:
            real = None if mask is None or mask.padding is None else Mask(padding=mask.padding)
            read = self.cross(self._before(self.cross_norm, x), context=context, mask=real)
            x = self._after(self.cross_norm, x, read.y)
        if self.feed_forward is not None and self.feed_forward_norm is not None:
            x = self._after(self.feed_forward_norm, x, self.feed_forward(self._before(self.feed_forward_norm, x)))
        return LayerOutput(x, out.state, out.aux)

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.pre else x

    def _after(self, norm: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        added = x + self.dropout(y)
        return added if self.pre else norm(added)
