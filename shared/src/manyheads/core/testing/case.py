"""The case of the test battery: one layer in one configuration, its inputs, and the comparisons of the points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manyheads.core import state as trees
from manyheads.core.layer import Layer
from manyheads.core.mask import MASK_RANKS, Mask

Oracle = Callable[[Mapping[str, Tensor], Mapping[str, Any], Tensor, "Tensor | None", Mask], Tensor]


@dataclass(frozen=True)
class Case:
    """One layer in one configuration, with the inputs of the points.

    ``grid`` is the size of each grid axis. The default is the layer's own size along a fixed axis and a small odd size
    along the others. Tokens are counted in raster order; the last axis is the fastest. A stream runs along the first
    axis: one step is one token of a sequence or one row of an image.

    ``oracle(parameters, config, x, context, mask) -> y`` is the slow reference in float64, differentiable and without
    state. ``parameters`` also contains the buffers of the layer.
    """

    layer_class: type[Layer]
    config: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 6
    batch: int = 3
    grid: tuple[int, ...] = ()
    context_tokens: int = 5
    seed: int = 0
    oracle: Oracle | None = None

    def __post_init__(self) -> None:
        if not self.grid:
            layer = self.layer()
            rank = min(layer.grid_ranks)
            usual = {1: (7,), 2: (3, 4)}.get(rank, (2,) * rank)
            fixed = layer.grid or usual
            object.__setattr__(self, "grid", tuple(f or u for f, u in zip(fixed, usual, strict=True)))

    def generator(self, offset: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + offset)

    def layer(self, dtype: torch.dtype = torch.float64) -> Layer:
        """Build the layer in evaluation mode with large random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            made = self.layer_class(self.dim, **self.config)
        generator = self.generator(1)
        with torch.no_grad():
            for parameter in made.parameters():
                fan = parameter.shape[-1] if parameter.dim() > 1 else 1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.7 / math.sqrt(fan))
        return made.to(dtype).eval()

    def x(self, *, batch: int | None = None, grid: tuple[int, ...] | None = None, offset: int = 2) -> Tensor:
        shape = (self.batch if batch is None else batch, *(self.grid if grid is None else grid), self.dim)
        return torch.randn(shape, generator=self.generator(offset), dtype=torch.float64)

    def context(self, *, batch: int | None = None) -> Tensor | None:
        width = self.config.get("context_dim")
        if width is None:
            return None
        shape = (self.batch if batch is None else batch, self.context_tokens, width)
        return torch.randn(shape, generator=self.generator(3), dtype=torch.float64)

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def free(self) -> tuple[bool, ...]:
        """For each grid axis: whether the layer accepts any size."""
        fixed = self.layer().grid
        return (True,) * len(self.grid) if fixed is None else tuple(size is None for size in fixed)

    @property
    def steps(self) -> int:
        """Number of steps of a stream: the size of the first grid axis."""
        return self.grid[0]

    @property
    def row(self) -> int:
        """Number of tokens per step."""
        return math.prod(self.grid[1:])

    def masks(self) -> dict[str, Mask]:
        """Return one mask for each kind that the configuration supports, and one with padding and reset together."""
        layer = self.layer()
        reset = torch.rand(self.batch, self.tokens, generator=self.generator(4)) < 0.3
        padding = torch.rand(self.batch, self.tokens, generator=self.generator(5)) < 0.7
        padding[:, 0] = True
        padding[-1] = False
        blocks = torch.randint(0, 2, (self.batch, self.tokens), generator=self.generator(6))
        context = self.config.get("context_dim") is not None
        made = {"padding": Mask(padding=padding)}
        if context:
            kept = torch.rand(self.batch, self.context_tokens, generator=self.generator(7)) < 0.6
            kept[0] = False
            made["context_padding"] = Mask(context_padding=kept)
        else:
            made |= {"reset": Mask(reset=reset), "padding and reset": Mask(padding=padding, reset=reset)}
            made |= {"blocks": Mask(blocks=blocks), "window": Mask(window=3)}
        meant = {name for name in layer.masks if len(self.grid) in (MASK_RANKS[name] or (len(self.grid),))}
        return {name: m for name, m in made.items() if set(m.names()) <= meant}


def close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    assert not found.isnan().any(), f"{what}: NaN"
    if found.numel():
        error = (found - expected).abs().max().item()
        scale = max(1.0, expected.abs().max().item())
        assert error <= tolerance * scale, f"{what}: off by {error:.3g}, allowed {tolerance * scale:.3g}"


def close_states(found: Any, expected: Any, what: str, tolerance: float = 1e-10) -> None:
    for a, b in zip(trees.leaves(found), trees.leaves(expected), strict=True):
        close(a.to(torch.float64), b.to(torch.float64), f"{what}: state", tolerance)


def refuses(kind: type[Exception], call: Callable[[], Any], part: str, what: str) -> None:
    found: Exception | None = None
    try:
        call()
    except Exception as error:
        found = error
    message = str(found)
    assert found is not None, f"{what} is accepted"
    assert isinstance(found, kind), f"{what} raises {type(found).__name__}, expected {kind.__name__}: {message}"
    assert part in message, f"{what} is refused, but the message does not name {part!r}: {message}"
    assert "\n" not in message, f"{what}: the message has more than one line"
