"""The interface of a layer: ``(B, *grid, D)`` in, :class:`LayerOutput` out, capabilities in :class:`LayerInfo`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from manyheads.core.arguments import check_names, checked, describe
from manyheads.core.errors import ArgumentError, MaskError, StateError
from manyheads.core.fields import Configured, argument, attribute
from manyheads.core.mask import MASK_RANKS, NO_MASK, Mask
from manyheads.core.state import State, tree_map

Causality = Literal["no", "weak", "strict"]
StateKind = Literal["none", "recurrent", "window", "growing"]
Grid = tuple[int, ...]


class LayerOutput(NamedTuple):
    """``y (B, *grid, D)``; ``state`` is ``()`` where none is kept; ``aux`` holds named losses and statistics."""

    y: Tensor
    state: State = ()
    aux: dict[str, Tensor] = {}  # noqa: RUF012 - never written to


@dataclass(frozen=True)
class LayerInfo:
    """Capabilities and source of a layer. If they depend on an argument, all choices are listed."""

    name: str
    title: str
    arxiv: str
    cost: str  # time and memory, N tokens, D width
    # (config, grid) -> multiply-adds times two of one forward pass of one row
    flops: Callable[[dict[str, Any], Grid], float]
    # tokens -> label -> usual configuration without dim: the benchmark, the pictures and the pages use them
    at_length: Callable[[int], Mapping[str, Mapping[str, Any]]] = lambda tokens: {"plain": {}}
    formula: str = ""  # LaTeX
    grid_ranks: tuple[int, ...] = (1,)
    causal: tuple[Causality, ...] = ("no",)
    state: tuple[StateKind, ...] = ("none",)
    streams_with: tuple[Mapping[str, Any], ...] = ()  # arguments that give a state where the defaults keep none
    lookahead: int = 0  # frames
    cross: bool = False  # takes a context
    good_for: str = ""  # one sentence: the task, and why this layer
    not_for: str = ""  # one sentence: when to take another layer, and which
    masks: tuple[str, ...] = ()  # fields of Mask that are honoured
    positional: bool = False  # False: without a mask, permuting the tokens permutes the output
    full_context: bool = True  # every output depends on every token that causality allows
    lengths: str = "any"  # or what is padded or refused
    sizes: tuple[str, ...] = ()  # arguments that fix the size of each grid axis; None there leaves the axis free
    linear_in_value: bool = (
        False  # methods.mixing_matrix recovers P: what ``output`` gets is P times what ``value`` gives
    )
    discontinuous: bool = False  # selects or thresholds, so that rounding can change the choice
    surrogate: bool = False  # the gradient is a surrogate, not the derivative
    compiles: bool = True  # torch.compile(fullgraph=True)
    exports: bool = True  # torch.export with a batch of any size
    vmaps: bool = True  # torch.func.vmap of torch.func.grad: a gradient for each sample
    second_derivatives: bool = True  # under create_graph; where not, they raise DerivativeError
    deviations: tuple[str, ...] = field(default=())

    @property
    def streaming(self) -> bool:
        """Whether a configuration keeps a state."""
        return any(kind != "none" for kind in self.state)


def _named(forward: Callable[..., LayerOutput]) -> Callable[..., LayerOutput]:
    """``forward``, with an :class:`ArgumentError` in place of the TypeError for arguments that it does not have."""

    @functools.wraps(forward)
    def run(self: Layer, *args: Any, **kwargs: Any) -> LayerOutput:
        try:
            return forward(self, *args, **kwargs)
        except TypeError as error:
            failure = error
        check_names(forward, (self, *args), kwargs)
        raise failure

    return run


class Layer(Configured):
    """Base of all layers. A subclass has ``info``, declares its arguments as fields, and implements :meth:`mix`.

    ``setup`` builds its parameters; ``config`` holds its arguments by name (:mod:`manyheads.core.fields`).

    ``forward`` checks what it is given in one place: rank, width, masks, context and state; ``mix`` may rely on it.
    It also handles padding on both sides: ``mix`` gets 0 in every padded token of ``x`` and ``context``, whatever the
    caller's tensor holds there, and its output at padded tokens of ``x`` is replaced by 0. No gradient passes there.
    An empty batch or sequence never reaches ``mix``.
    """

    info: ClassVar[LayerInfo]
    dim: int = argument(kw_only=False, least=1)
    """Width D."""
    config: dict[str, Any] = attribute()
    context_dim: int | None = attribute(default=None)  # width of the context, None for none

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """``init_state`` compares its arguments with their annotations, as constructors do."""
        super().__init_subclass__(**kwargs)
        if "init_state" in cls.__dict__:
            cls._initial = cls.init_state
            cls.init_state = checked(cls.init_state)  # ty: ignore[invalid-assignment]

    def __init__(self, dim: int, **config: Any) -> None:
        """For a layer with a constructor of its own instead of fields."""
        super().__init__()
        if dim < 1:
            raise ArgumentError(f"{self.info.name}: dim: found {dim}, expected 1 or more")
        self.dim = dim
        self.config = {"dim": dim, **config}

    @property
    def causality(self) -> Causality:
        """Causality as configured: no output depends on a later token ("strict"), or only which tokens it mixes
        does ("weak")."""
        return self.info.causal[0]

    @property
    def is_causal(self) -> bool:
        """Whether no output depends on a later token: ``causality`` is "strict"."""
        return self.causality == "strict"

    @property
    def state_kind(self) -> StateKind:
        """The state that is kept as configured."""
        return self.info.state[0]

    @property
    def masks(self) -> tuple[str, ...]:
        """The fields of :class:`Mask` that are honoured as configured."""
        return self.info.masks

    @property
    def grid_ranks(self) -> tuple[int, ...]:
        """The numbers of grid axes that are taken as configured."""
        return self.info.grid_ranks

    @property
    def linear_in_value(self) -> bool:
        """Whether ``methods.mixing_matrix`` recovers P as configured."""
        return self.info.linear_in_value

    @property
    def positional(self) -> bool:
        """Whether the output as configured depends on the order of the tokens, beyond causality."""
        return self.info.positional

    @property
    def grid(self) -> tuple[int | None, ...] | None:
        """The size of each grid axis that every input must have, None for a free axis; None if all axes are free."""
        sizes = tuple(self.config[name] for name in self.info.sizes)
        return sizes if any(size is not None for size in sizes) else None

    @property
    def state_carries_gradient(self) -> bool:
        """False where the definition stops the gradient at the state."""
        return True

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        """The state before the first token: neutral elements, batch first."""
        return ()

    _initial = init_state  # without the check, for forward

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        """The layer itself; everything it is given has been checked, and ``state`` is never None."""
        raise NotImplementedError(f"{type(self).__name__} does not implement mix")

    @_named
    def forward(
        self, x: Tensor, state: State | None = None, *, context: Tensor | None = None, mask: Mask | None = None
    ) -> LayerOutput:
        """``x (B, *grid, D)`` -> :class:`LayerOutput`.

        ``state=None`` starts afresh; any number of steps, zero included. Raises :class:`ArgumentError`,
        :class:`MaskError` and :class:`StateError` naming the argument, what was found and what was expected.
        """
        x, context, mask = self._admitted(x, context, mask)
        state = self._checked_state(x, state)
        if x.numel() == 0:
            return self._of_nothing(x, state)
        out = self.mix(x, state, context, mask)
        y = out.y if mask.padding is None else blank(out.y, mask.padding)
        # autocast may have changed the dtype under way: a state keeps the one that it came with
        return LayerOutput(y, tree_map(lambda new, old: new.to(old.dtype), out.state, state), out.aux)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One step ``(B, D)`` of a stream: ``forward`` on one token.

        Raises :class:`StateError` where the layer keeps no state as configured.
        """
        if self.state_kind == "none":
            raise self._no_state("step")
        if not isinstance(x_t, Tensor) or x_t.dim() - 1 not in self.grid_ranks:
            shape = "(B, D)" if self.grid_ranks == (1,) else "(B, *grid[1:], D)"
            raise ArgumentError(f"{self.info.name}: x_t: found {describe(x_t)}, expected a tensor {shape}, one step")
        y, state, _ = self(x_t.unsqueeze(1), state)
        return y.squeeze(1), state

    def aux_of_nothing(self, x: Tensor) -> dict[str, Tensor]:
        """The auxiliary losses and statistics of an empty ``x``."""
        return {}

    def _of_nothing(self, x: Tensor, state: State) -> LayerOutput:
        """Empty output for empty input, with a gradient of 0 for ``x`` and every parameter."""
        y = x
        for parameter in self.parameters():
            y = y + 0 * parameter.sum()
        return LayerOutput(y, state, self.aux_of_nothing(x))

    def _admitted(self, x: Tensor, context: Tensor | None, mask: Mask | None) -> tuple[Tensor, Tensor | None, Mask]:
        """Input, context and mask once they are checked, with 0 in the padding."""
        mask = NO_MASK if mask is None else mask
        self._check_input(x, context)
        self._check_mask(x, context, mask)
        if mask.padding is not None:
            x = blank(x, mask.padding)
        if context is not None and mask.context_padding is not None:
            context = blank(context, mask.context_padding)
        return x, context, mask

    def _check_input(self, x: Tensor, context: Tensor | None) -> None:
        name = self.info.name
        if not isinstance(x, Tensor) or x.dim() - 2 not in self.grid_ranks:
            axes = " or ".join(str(r) for r in self.grid_ranks)
            found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else describe(x)
            raise ArgumentError(f"{name}: x: found {found}, expected (B, *grid, D), a tensor with {axes} grid axes")
        if x.shape[-1] != self.dim:
            raise ArgumentError(f"{name}: x: found width {x.shape[-1]}, expected {self.dim}")
        self._check_kind(x)
        if self.grid is not None and not _fits(x.shape[1:-1], self.grid):
            sizes = ", ".join("any" if size is None else str(size) for size in self.grid)
            raise ArgumentError(f"{name}: x: found shape {tuple(x.shape)}, expected (B, {sizes}, {self.dim})")
        if context is None:
            if self.context_dim is not None:
                raise ArgumentError(
                    f"{name}: context: found none, expected a tensor ({x.shape[0]}, S, {self.context_dim}), as it is "
                    f"built with context_dim={self.context_dim}"
                )
            return
        if self.context_dim is None:
            fix = "build it with context_dim" if self.info.cross else "this layer takes none"
            raise ArgumentError(f"{name}: context: found one, expected None: {fix}")
        if not isinstance(context, Tensor) or context.dim() != 3 or context.shape[0] != x.shape[0]:
            raise ArgumentError(
                f"{name}: context: found {describe(context)}, expected a tensor ({x.shape[0]}, S, {self.context_dim})"
            )
        if context.shape[-1] != self.context_dim:
            raise ArgumentError(f"{name}: context: found width {context.shape[-1]}, expected {self.context_dim}")
        if context.dtype != x.dtype or context.device != x.device:
            raise ArgumentError(
                f"{name}: context: found {context.dtype} on {context.device}, expected {x.dtype} on {x.device} as x"
            )

    def _check_kind(self, x: Tensor) -> None:
        """The dtype and the device, which must be those of the weights; autocast takes any dtype but float64."""
        name = self.info.name
        if not x.is_floating_point():
            raise ArgumentError(f"{name}: x: found {x.dtype}, expected a floating point tensor")
        weight = next(self.parameters(), None)
        if weight is None or not weight.is_floating_point():
            return
        if x.device != weight.device:
            raise ArgumentError(f"{name}: x: found a tensor on {x.device}, expected one on {weight.device} as weights")
        if x.dtype != weight.dtype and (torch.float64 in (x.dtype, weight.dtype) or not _autocast(x)):
            raise ArgumentError(
                f"{name}: x: found {x.dtype}, expected {weight.dtype} as the weights: convert x or the layer"
            )

    def _check_mask(self, x: Tensor, context: Tensor | None, mask: Mask) -> None:
        if not isinstance(mask, Mask):
            fix = "Mask(padding=…) takes a tensor (B, T) that is True for real tokens"
            raise MaskError(f"{self.info.name}: mask: found {describe(mask)}, expected a Mask: {fix}")
        for field_name in mask.names():
            if field_name not in self.masks:
                honoured = ", ".join(self.masks) or "none"
                raise MaskError(
                    f"{self.info.name}: mask.{field_name} is not honoured as configured (honoured: {honoured})"
                )
            ranks = MASK_RANKS[field_name]
            if ranks is not None and x.dim() - 2 not in ranks:
                raise MaskError(
                    f"{self.info.name}: mask.{field_name}: found a grid of {x.dim() - 2} axes, expected "
                    f"{' or '.join(map(str, ranks))}: it has no meaning on others"
                )
        if mask.context_padding is not None and context is None:
            raise MaskError(f"{self.info.name}: mask.context_padding: found one without a context")
        mask.check(x.shape[0], math.prod(x.shape[1:-1]), None if context is None else context.shape[1], x.device)

    def _checked_state(self, x: Tensor, state: State | None) -> State:
        if self.state_kind == "none":
            if state is not None:
                raise self._no_state("state")
            return ()
        if state is None:
            return self._initial(x.shape[0], device=x.device, dtype=x.dtype)
        self._check_part(state, self._initial(0, device=x.device, dtype=x.dtype), x)
        return state

    def _check_part(self, found: State, expected: State, x: Tensor) -> None:
        """A state or a part of it against the one that :meth:`init_state` makes for no rows."""
        name, kind = self.info.name, type(expected)
        if not isinstance(expected, Tensor):
            if type(found) is not kind or len(found) != len(expected):
                what = "an empty state" if type(found) is tuple and not found else describe(found)
                raise StateError(f"{name}: state: found {what}, expected {kind.__name__} (init_state makes one)")
            for part, wanted in zip(found, expected, strict=True):
                self._check_part(part, wanted, x)
            return
        if not isinstance(found, Tensor):
            raise StateError(f"{name}: state: found {describe(found)} in it, expected a tensor")
        if found.dim() and found.shape[0] != x.shape[0]:
            raise StateError(f"{name}: state: found batch size {found.shape[0]}, expected {x.shape[0]}")
        if found.shape[1:] != expected.shape[1:] or not found.dim():
            raise StateError(
                f"{name}: state: found a part of shape {tuple(found.shape)}, expected (B, {_axes(expected)}): "
                "it is of a layer of another configuration"
            )
        if found.device == expected.device and found.dtype == expected.dtype:
            return
        if found.device != expected.device or not (found.is_floating_point() and _autocast(x)):
            raise StateError(
                f"{name}: state: found a part of {found.dtype} on {found.device}, expected {expected.dtype} on "
                f"{expected.device}: init_state(…, dtype=x.dtype, device=x.device) makes one"
            )

    def _no_state(self, argument: str) -> StateError:
        """The error for a stream through a layer that keeps no state, with the arguments that would give it one."""
        ways = []
        for wanted in self.info.streams_with:
            changed = {key: value for key, value in wanted.items() if self.config.get(key) != value}
            if self.config.get("context_dim") is not None:
                changed["context_dim"] = None
            ways.append(", ".join(f"{key}={value!r}" for key, value in changed.items()))
        fix = f"build it with {' or with '.join(ways)}" if ways else "it has no streaming form, so give whole inputs"
        found = "a step of a stream, expected whole inputs" if argument == "step" else "a state, expected None"
        return StateError(f"{self.info.name}: {argument}: found {found}: it keeps none as configured; {fix}")


def blank(x: Tensor, real: Tensor) -> Tensor:
    """``x (B, *grid, D)`` with 0 where ``real (B, T)`` is False, and no gradient there."""
    return torch.where(real.view(*x.shape[:-1], 1), x, x.new_zeros(()))


def _fits(found: Grid, expected: tuple[int | None, ...]) -> bool:
    return len(found) == len(expected) and all(e in (None, f) for f, e in zip(found, expected, strict=True))


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def _axes(leaf: Tensor) -> str:
    return ", ".join(str(size) for size in leaf.shape[1:])
