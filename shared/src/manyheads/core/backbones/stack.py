"""A stack of residual blocks around any registered layer, the body of every backbone.

    stack = build_stack("routing", 64, depth=2, options={"causal": True, "shared_qk": True})
    y, state, aux = stack(x)

Axes: b batch, d width, s context tokens, c context width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked
from manyheads.core.blocks.feed_forward import FeedForward, GatedFeedForward
from manyheads.core.blocks.residual import NormPlace, ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import REQUIRED
from manyheads.core.layer import Layer, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.registry import create, find_layer
from manyheads.core.state import State

if TYPE_CHECKING:
    from jaxtyping import Float

MakeLayer = Callable[[int], Layer]


class Stack(nn.Module):
    """Residual blocks and, after pre-norm blocks, a last norm; the state is the tuple of the blocks' states.

    Raises:
        ArgumentError: no block; in ``forward`` a state of another number of blocks.
    """

    def __init__(self, blocks: Sequence[ResidualBlock], *, norm: nn.Module | None = None) -> None:
        super().__init__()
        if not blocks:
            raise ArgumentError("stack: blocks: found none, expected one or more")
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm or nn.Identity()

    @property
    def residual_blocks(self) -> list[ResidualBlock]:
        """The blocks in order."""
        return list(self.blocks)  # ty: ignore[invalid-explicit-return]

    @property
    def layers(self) -> list[Layer]:
        """The layer of each block."""
        return [block.layer for block in self.residual_blocks]

    @property
    def streaming(self) -> bool:
        """Whether every layer, as configured, has a state."""
        return all(layer.state_kind != "none" for layer in self.layers)

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later token."""
        return all(layer.is_causal for layer in self.layers)

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        """The initial states of all layers."""
        return tuple(layer.init_state(batch, device=device, dtype=dtype) for layer in self.layers)

    def forward(
        self,
        x: Float[Tensor, "b *grid d"],
        state: State | None = None,
        *,
        context: Float[Tensor, "b s c"] | None = None,
        mask: Mask | None = None,
    ) -> LayerOutput:
        """Run all blocks; the names in ``aux`` of block n begin with ``n.``.

        A layer that takes sequences only gets the tokens of a grid in raster order.
        """
        given = (None,) * len(self.blocks) if state is None else state
        if len(given) != len(self.blocks):
            raise ArgumentError(f"stack: state: found {len(given)} parts, expected {len(self.blocks)} (init_state)")
        states, aux = [], {}
        for index, (block, before) in enumerate(zip(self.residual_blocks, given, strict=True)):
            own = before if block.layer.state_kind != "none" else None
            x, after, more = block(x, own, context=context, mask=mask)
            states.append(after)
            aux |= {f"{index}.{name}": value for name, value in more.items()}
        return LayerOutput(self.norm(x), tuple(states), aux)


@checked
def make_layers(layer: str | MakeLayer, dim: int, depth: int, options: Mapping[str, Any] | None = None) -> list[Layer]:
    """Build ``depth`` layers of width ``dim``: by registered name with ``options``, or by a function of the width.

    A layer with a seed gets another seed in each block unless ``options`` sets one.

    Raises:
        ArgumentError: a depth below 1, options beside a function, a layer of another width.
        UnknownNameError: a name that is not registered.
    """
    if depth < 1:
        raise ArgumentError(f"depth: found {depth}, expected 1 or more")
    made: list[Layer]
    if not isinstance(layer, str):
        if options:
            raise ArgumentError("options: found some beside a function, expected none: set them in the function")
        made = [layer(dim) for _ in range(depth)]
    else:
        chosen = dict(options or {})
        made = [create(layer, dim, **chosen) for _ in range(depth)]
        if "seed" in made[0].config and "seed" not in chosen:
            made = [create(layer, dim, **chosen, seed=index) for index in range(depth)]
    for one in made:
        if one.dim != dim:
            raise ArgumentError(f"layer: found width {one.dim}, expected {dim}")
    return made


@checked
def layer_for_grid(
    name: str,
    dim: int,
    grid: tuple[int, ...],
    *,
    heads: int,
    causal: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Layer:
    """Build a registered layer for a grid of known size, in a network round any layer.

    The arguments for the number of heads, for causality, for the number of axes and for the size of the grid are set if
    the layer has them. On
    a grid of several axes a layer for sequences is built for all tokens in raster order, as :class:`Stack` runs it.

    Args:
        name: a registered name.
        dim: width D.
        grid: size of each axis.
        heads: number of heads.
        causal: build the causal form of a layer that has one.
        options: further arguments of the layer; they override those set here.

    Raises:
        UnknownNameError: a name that is not registered.
        ArgumentError: a layer that takes neither this grid nor a sequence, or that needs a context; invalid arguments.
    """
    kind = find_layer(name)
    own = len(grid) in kind.info.grid_ranks
    arguments = {one.name: one for one in kind.arguments}
    context = arguments.get("context_dim")
    if not (own or 1 in kind.info.grid_ranks) or (context is not None and context.default is REQUIRED):
        expected = "a sequence" if len(grid) == 1 else f"a grid of {len(grid)} axes or a sequence"
        raise ArgumentError(f"layer: found {name!r}, expected one that takes {expected} alone (manyheads list)")
    tokens = math.prod(grid)
    sizes = {"length": tokens, "max_len": tokens, "fields": tokens, "axes": 1}
    if own and len(grid) > 1:
        sizes = {"axes": len(grid), **dict(zip(kind.info.sizes, grid, strict=False))}
    fixed = {key for key, one in arguments.items() if one.default is REQUIRED or isinstance(one.default, int)}
    chosen: dict[str, Any] = {key: value for key, value in sizes.items() if key in fixed}
    if "heads" in arguments:
        chosen["heads"] = heads
    if causal and "causal" in arguments:
        chosen["causal"] = True
    return kind(dim, **{**chosen, **(options or {})})


@checked
def build_stack(
    layer: str | MakeLayer,
    dim: int,
    *,
    depth: int = 2,
    options: Mapping[str, Any] | None = None,
    expansion: float = 4.0,
    gated: bool = False,
    activation: str = "gelu",
    norm: NormPlace = "pre",
    dropout: float = 0.0,
    cross: MakeLayer | None = None,
) -> Stack:
    """Build a stack of residual blocks around any layer.

    Args:
        layer: a registered name, or a function from the width to a layer.
        dim: width D.
        depth: number of blocks.
        options: arguments of a layer by name, such as ``{"heads": 4, "causal": True}``.
        expansion: width of the feed-forward network over D; 0 for none.
        gated: a gated feed-forward network (GEGLU, SwiGLU) instead of the plain one.
        activation: of the feed-forward network.
        norm: "pre" or "post"; pre-norm blocks are followed by a last norm.
        dropout: of the outputs of layer and feed-forward network.
        cross: makes the layer that reads the context in each block.

    Raises:
        ArgumentError, UnknownNameError: as :func:`make_layers`; a negative expansion.
    """
    if expansion < 0:
        raise ArgumentError(f"expansion: found {expansion}, expected 0 or more")
    feed_forward = GatedFeedForward if gated else FeedForward
    hidden = round(expansion * dim)
    blocks = [
        ResidualBlock(
            one,
            feed_forward(dim, hidden, activation=activation) if hidden else None,
            cross=None if cross is None else cross(dim),
            norm=norm,
            dropout=dropout,
        )
        for one in make_layers(layer, dim, depth, options)
    ]
    return Stack(blocks, norm=nn.LayerNorm(dim) if norm == "pre" else None)
