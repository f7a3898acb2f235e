"""Mesa (2111.11124): train with the activations of the forward pass kept as 8-bit codes.

    keep       c = floor((x - b_g) 255 / a_g + u),   u ~ U(0, 1)
    backward   x' = b_g + c a_g / 255,   E[x'] = x

for a saved activation x of group g, with b_g the lowest value of the group and a_g its range (highest less lowest). The
forward pass computes with x itself, so that outputs and loss do not change; only gradients see x'. Stochastic rounding
keeps a gradient unbiased if it is linear in x.

    compress = Mesa(model)
    for batch in batches:
        with compress:
            loss = loss_of(model(batch))
        loss.backward()

:class:`Mesa` compresses for any module what autograd saves. :class:`MesaLinear`, :class:`MesaLayerNorm`,
:class:`MesaGELU`, :class:`MesaSoftmax` and :class:`MesaMatMul` are the layers of the paper, which compress one
operation each; :func:`use_mesa_modules` puts them into a model.

Ranges are "exact", those of the tensor itself: no value lies outside, and nothing is kept between steps. Or they are
"running", the averages of the paper over the steps, ``a <- decay a + (1 - decay) (max - min)`` and b likewise; values
outside are clamped. Both read the tensor once for its extremes, so that running ranges are not cheaper.

Cost: a byte for each saved value instead of four; six passes over the values in the forward pass and two in the
backward pass, and some thirty calls of torch for each tensor, which cost more than the passes below about 100,000
values.

Axes: B batch, H heads, N tokens, E head width, C channels, G groups.

Differs from the paper: exact ranges by default. Values outside running ranges are clamped; the authors' kernel wraps
them around. Ranges are no parameters, and each call keeps its own. Softmax keeps its output only, as its gradient does
not need the input. A tensor that two operations save is kept once. If a tensor has zeros and no negative value, its
zeros stay zeros and no other value becomes zero, because the gradient of ReLU depends on which outputs are zero.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from manyheads.core.arguments import checked, checked_constructor
from manyheads.core.errors import ArgumentError

if TYPE_CHECKING:
    from jaxtyping import Float

# Steps between the lowest value and the end of its code: more than rounding, and the code of the smallest values above
# zero stands for one that does not vanish in half precision.
_MARGIN = 2.0**-8
# Steps from the lowest to the highest value.
_LEVELS = 255 - 2 * _MARGIN
# Beyond this number of ranges from zero, rounding may reach the margin.
_FAR = 16
# A step that is smaller, as a share of the lowest value, is rounding.
_NO_STEP = 1e-12
# Values that are quantised at a time on a CPU. A chunk bounds the memory of a step; smaller ones cost more in calls
# than they save in the cache.
_CHUNK = 1 << 18
# Values of a row; in shorter rows the loop over rows costs more than the arithmetic, and in longer ones their factors.
_ROW = 1024
# Numbers in the dither, and how far each row of a chunk begins behind the row before.
_DITHERS, _JUMP = 1 << 16, 257
# Tensors saved before a log-sum-exp, among which is one with its batch and heads.
_RECENT = 6
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_seeds = itertools.count()


class SavedBytes(NamedTuple):
    """Bytes that autograd keeps for the backward pass; each storage once, parameters and buffers excluded."""

    before: int
    """Without compression."""
    after: int
    """With it: codes, ranges, and the tensors that stay as they are."""


class _Layout(NamedTuple):
    """A block of memory as ``outer`` times ``groups`` slices of ``inner`` values, and as rows of ``width`` values.

    A row is one slice, or short slices of all groups in turn.
    """

    outer: int
    groups: int
    inner: int
    width: int

    @classmethod
    def of(cls, outer: int, groups: int, inner: int) -> _Layout:
        if inner >= _ROW:
            return cls(outer, groups, inner, inner)
        turn = groups * inner
        joined = next(n for n in range(max(_ROW // turn, 1), 0, -1) if outer % n == 0)
        return cls(outer, groups, inner, joined * turn)

    def extremes(self, rows: Tensor) -> tuple[list[float], list[float]]:
        """The lowest and the highest value of each group."""
        if self.inner >= _ROW:
            low, high = (part.view(-1, self.groups) for part in (rows.amin(1), rows.amax(1)))
            return low.amin(0).tolist(), high.amax(0).tolist()
        low, high = (part.view(-1, self.groups, self.inner) for part in (rows.amin(0), rows.amax(0)))
        return low.amin((0, 2)).tolist(), high.amax((0, 2)).tolist()

    def spread(self, of_groups: Tensor) -> tuple[Tensor, ...]:
        """Each row of ``(n, G)`` as a factor: ``(rows, 1)``, or ``(width,)`` if the groups take turns in a row."""
        factors = of_groups.index_select(1, _turns(self, of_groups.device))
        return (factors.unsqueeze(2) if self.inner >= _ROW else factors).unbind()


@functools.lru_cache(maxsize=256)
def _turns(layout: _Layout, device: torch.device) -> Tensor:
    """The group of each row, or of each value of a row."""
    turn = torch.arange(layout.groups, device=device)
    if layout.inner >= _ROW:
        return turn.repeat(layout.outer)
    return turn.repeat_interleave(layout.inner).repeat(layout.width // (layout.groups * layout.inner))


class _Ranges(NamedTuple):
    """Lowest value and range of each group.

    ``positive`` if the lowest value of all is 0; ``exact`` if no value lies outside.
    """

    low: list[float]
    span: list[float]
    positive: bool
    exact: bool = True


class _Codes:
    """A block of memory in 8 bits: ``x' = low + c step``, with the ranges of each group."""

    def __init__(self, rows: Tensor, layout: _Layout, ranges: _Ranges, dither: _Dither) -> None:
        self.layout, self.dtype, self.positive = layout, rows.dtype, ranges.positive
        # 256 codes; zeros take the first one if the others stand for values above them
        first, levels, bottom = (-127, 254, -127 - _MARGIN) if self.positive else (-128, _LEVELS, -128 + _MARGIN)
        steps = [span / levels for span in ranges.span]
        # equal values have no range, and the first code
        scales = [1 / step if step > _NO_STEP * abs(low) else 0.0 for low, step in zip(ranges.low, steps, strict=True)]
        lows = [low - step * bottom for low, step in zip(ranges.low, steps, strict=True)]
        # one less if a nonzero value adds one in the end
        shifts = [bottom - self.positive - low * scale for low, scale in zip(ranges.low, scales, strict=True)]
        # no code needs a clamp if all values are inside by a margin that is far above rounding
        far = any(_FAR * span < abs(low) for low, span in zip(ranges.low, ranges.span, strict=True))
        clamped = far or self.positive or not ranges.exact
        wide = torch.float64 if rows.dtype is torch.float64 else torch.float32
        self.factors = torch.tensor([scales, shifts, steps, lows], dtype=wide, device=rows.device)
        found = []
        for part, scale, shift in _chunks(rows, *layout.spread(self.factors)[:2]):
            code = torch.addcmul(shift, part.to(wide), scale)
            code.add_(dither.draw(code)).floor_()
            if clamped:
                code.clamp_(first - self.positive, 127 - self.positive)
            kept = code.to(torch.int8)
            found.append(kept.add_(part.to(torch.bool).view(torch.int8)) if self.positive else kept)
        self.codes = found[0] if len(found) == 1 else torch.cat(found)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.factors.nbytes

    def decode(self) -> Tensor:
        """The values of the block in one row."""
        values = self.codes.to(self.factors.dtype)
        for part, step, low in _chunks(values, *self.layout.spread(self.factors)[2:]):
            torch.addcmul(low, part, step, out=part)
            if self.positive:
                part.clamp_(min=0)
        return values.view(-1).to(self.dtype)


class _Dither:
    """Numbers from U(0, 1) with a generator of their own, for all values of a chunk.

    On a CPU a draw is a place in a shuffled grid over (0, 1), which is made once; each row of the chunk begins a bit
    behind the row before. Each value gets every number of the grid with the same probability, and a draw costs nothing.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.place = seed, random.Random(seed)
        self.generators: dict[torch.device, torch.Generator] = {}

    def draw(self, like: Tensor) -> Tensor:
        if like.device.type != "cpu":
            if like.device not in self.generators:
                self.generators[like.device] = torch.Generator(like.device).manual_seed(self.seed)
            return torch.rand(like.shape, device=like.device, generator=self.generators[like.device])
        count, width = like.shape
        grid = _grid(-(-((count - 1) * _JUMP + width) // _DITHERS))
        return grid.as_strided((count, width), (_JUMP, 1), int(self.place.random() * _DITHERS))


@functools.cache
def _grid(times: int) -> Tensor:
    """The midpoints of equal parts of (0, 1) in random order, several times, and once more for a start inside."""
    order = torch.randperm(_DITHERS, generator=torch.Generator().manual_seed(0))
    return ((order + 0.5) / _DITHERS).to(torch.float32).repeat(times + 1)


def _chunks(rows: Tensor, *factors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The rows and the factors of each, a chunk at a time; a factor with one row is the same in every chunk."""
    size = max(_CHUNK // rows.shape[1], 1)
    if rows.shape[0] <= size or rows.device.type != "cpu":
        return [(rows, *factors)]
    parts = (factor.split(size) if factor.dim() == 2 else itertools.repeat(factor) for factor in factors)
    return zip(rows.split(size), *parts, strict=False)


class _Averages:
    """Running ranges, told apart by the order in which tensors are saved; another shape begins anew."""

    def __init__(self, decay: float) -> None:
        self.decay, self.ranges, self.next = decay, [], 0

    def take(self, new: _Ranges) -> _Ranges:
        index, self.next = self.next, self.next + 1
        if index == len(self.ranges):
            self.ranges.append(new)
        old = self.ranges[index]
        if len(old.low) != len(new.low):
            old = new
        low, span = (
            [self.decay * before + (1 - self.decay) * after for before, after in zip(*pair, strict=True)]
            for pair in zip(old[:2], new[:2], strict=True)
        )
        self.ranges[index] = _Ranges(low, span, old.positive and new.positive, exact=False)
        return self.ranges[index]


class _Compressed(NamedTuple):
    """A saved tensor as a view of a block of codes."""

    codes: _Codes
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Place(NamedTuple):
    """Where the values of a tensor lie, each once and in the order of the memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    layout: _Layout
    key: tuple[Any, ...]
    """The same for all views of a block without gaps."""
    restored: tuple[int, ...]
    """The strides of the tensor in a block without gaps."""


@functools.lru_cache(maxsize=1024)
def _place(size: tuple[int, ...], stride: tuple[int, ...], heads: frozenset[int], groups: int) -> _Place:
    """Groups of the block are slices of the axis of the heads, or of the channels, at its place in memory."""
    shared = [axis for axis, step in enumerate(stride) if step == 0 and size[axis] > 1]
    order = sorted(
        (axis for axis in range(len(size)) if axis not in shared), key=lambda axis: (-stride[axis], -size[axis])
    )
    block, strides = tuple(size[axis] for axis in order), tuple(stride[axis] for axis in order)
    by_head = len(size) == 4 and size[1] in heads and 1 not in shared
    axis = 1 if by_head else len(size) - 1
    place = len(block) - 1 if axis in shared else order.index(axis)
    channels = block[place]
    count = channels if by_head else next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)
    inner = channels // count * math.prod(block[place + 1 :])
    dense = [math.prod(block[index + 1 :]) for index in range(len(block))]
    gapless = all(step == one for step, one, length in zip(strides, dense, block, strict=True) if length > 1)
    restored = (
        stride if gapless else tuple(dict(zip(order, dense, strict=True)).get(axis, 0) for axis in range(len(size)))
    )
    key = (math.prod(block),) if gapless else (size, stride)
    layout = _Layout.of(math.prod(block[:place]), count, inner)
    if gapless:
        return _Place((math.prod(block) // layout.width, layout.width), (layout.width, 1), layout, key, restored)
    return _Place(block, strides, layout, key, restored)


class _Kept(NamedTuple):
    """A saved tensor as it is."""

    tensor: Tensor
    version: int

    def restore(self) -> Tensor:
        # autograd leaves this check to the hooks
        if self.tensor._version != self.version:
            raise ArgumentError(
                f"mesa: found a tensor of shape {tuple(self.tensor.shape)} that was changed in place after it had been "
                "saved, expected it unchanged until the backward pass"
            )
        return self.tensor


class Mesa(AbstractContextManager["Mesa"]):
    """Keep what autograd saves inside ``with`` as 8-bit codes; see the module for the equations.

    Codes are float tensors of ``least`` values or more. Kept as they are: parameters and buffers of the model and their
    views, integers and booleans, tensors with a value that is not finite (a mask of minus infinity), one number that is
    spread over all axes, and one number for each token: a tensor whose last axis is 1 (mean and deviation of a norm),
    or the log-sum-exp of attention, which is recognised as a tensor ``(B, H, …)`` of three axes saved soon after one of
    four axes ``(B, H, N, E)``.

    Groups: of a tensor ``(B, H, N, E)`` whose second axis is a number of heads in the model, a group is a head. Of any
    other tensor it is one of G slices of the last axis, G the largest divisor up to ``groups``.

    The backward pass may run inside or outside ``with``. Compute the loss outside if it has a log-softmax over many
    classes: its gradient is not linear in what it saves.

    An activation that saves its input and has a kink (LeakyReLU, ReLU6) gets a noisy slope within a step of the kink.

    Args:
        model: any module.
        groups: G; by default the largest number of heads in the model, 8 without any.
        ranges: "exact" or "running". Running ranges are told apart by the order of saving, so that a ``with`` should
            hold one forward pass, always with the same operations.
        decay: lambda of the running ranges.
        least: smaller tensors are kept as they are.
        seed: of the stochastic rounding; by default another one for each object. torch's generators are not used.

    Raises:
        ArgumentError: fewer than one group or value, a decay outside [0, 1); in the backward pass a tensor that was
            kept as it is and has been changed in place.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        groups: int | None = None,
        ranges: Literal["exact", "running"] = "exact",
        decay: float = 0.9,
        least: int = 1024,
        seed: int | None = None,
    ) -> None:
        for name, value in (("groups", groups), ("least", least)):
            if value is not None and value < 1:
                raise ArgumentError(f"mesa: {name}: found {value}, expected 1 or more")
        if not 0 <= decay < 1:
            raise ArgumentError(f"mesa: decay: found {decay}, expected 0 or more and below 1")
        self.model, self.least = model, least
        self.heads = frozenset(heads_of(model))
        self.groups = groups or max(self.heads, default=8)
        self._averages = _Averages(decay) if ranges == "running" else None
        self._dither = _Dither(next(_seeds) if seed is None else seed)
        self._begin()

    def _begin(self) -> None:
        """Nothing saved yet."""
        self._blocks: weakref.WeakValueDictionary[tuple[Any, ...], _Codes] = weakref.WeakValueDictionary()
        self._decoded: tuple[weakref.ref[_Codes], Tensor] | None = None
        self._recent: deque[tuple[int, ...]] = deque(maxlen=_RECENT)
        self._own: set[int] = set()
        self._storages: set[StorageWeakRef] = set()
        self._kept: set[StorageWeakRef] = set()
        self._before = self._after = 0
        self._active: list[saved_tensors_hooks] = []
        self._entered: list[bool] = []

    def __getstate__(self) -> dict[str, Any]:
        """What a copy shares: weak references to storages must not be copied."""
        names = ("model", "least", "heads", "groups", "_averages", "_dither")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._begin()

    @property
    def saved_bytes(self) -> SavedBytes:
        """What the latest ``with`` has saved."""
        return SavedBytes(self._before, self._after)

    def attach(self) -> ExitStack:
        """Compress every forward pass of the model in training mode; ``close()`` of the result ends it.

        For a training loop that calls the model itself. The loss is outside.
        """
        hooks = ExitStack()
        hooks.callback(self.model.register_forward_pre_hook(self._enter_forward).remove)
        hooks.callback(self.model.register_forward_hook(self._leave_forward, always_call=True).remove)
        return hooks

    def _enter_forward(self, module: nn.Module, inputs: Any) -> None:
        self._entered.append(module.training and torch.is_grad_enabled())
        if self._entered[-1]:
            self.__enter__()

    def _leave_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._entered and self._entered.pop():
            self.__exit__(None, None, None)

    def __enter__(self) -> Mesa:
        own = itertools.chain(self.model.parameters(), self.model.buffers())
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        if not self._active:
            self._storages.clear()
            self._kept.clear()
            self._before = self._after = 0
            if self._averages is not None:
                self._averages.next = 0
        hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._active.append(hooks)
        hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._active.pop().__exit__(*error)
        if not self._active:
            self._recent.clear()

    def _pack(self, tensor: Tensor) -> _Compressed | _Kept:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            return _Kept(tensor.detach(), tensor._version)
        storage = tensor.untyped_storage()
        if storage._cdata in self._own:
            return _Kept(tensor.detach(), tensor._version)
        reference = StorageWeakRef(storage)
        if reference not in self._storages:
            self._storages.add(reference)
            self._before += storage.nbytes()
        compressed = self._compress(tensor, reference) if self._worth_it(tensor) else None
        if tensor.dim() == 4:
            self._recent.append(tuple(tensor.shape))
        return self._keep(tensor, reference) if compressed is None else compressed

    def _unpack(self, packed: _Compressed | _Kept) -> Tensor:
        if isinstance(packed, _Kept):
            return packed.restore()
        codes = packed.codes
        # queries, keys and values read the same input one after another: the latest block is at hand while it is needed
        if self._decoded is None or self._decoded[0]() is not codes:
            self._decoded = weakref.ref(codes, self._forget), codes.decode()
        return self._decoded[1].as_strided(packed.size, packed.stride)

    def _forget(self, reference: weakref.ref[_Codes]) -> None:
        if self._decoded is not None and self._decoded[0] is reference:
            self._decoded = None

    def _worth_it(self, tensor: Tensor) -> bool:
        if tensor.dtype not in _FLOATS or tensor.numel() < max(self.least, 1):
            return False
        # a number by itself or spread over axes has no stride
        if not any(tensor.stride()) or tensor.shape[-1] == 1:
            return False
        return tensor.dim() != 3 or tuple(tensor.shape[:2]) not in {shape[:2] for shape in self._recent}

    def _keep(self, tensor: Tensor, reference: StorageWeakRef) -> _Kept:
        kept, size = tensor.detach(), tensor.untyped_storage().nbytes()
        if 4 * tensor.nbytes <= size and reference not in self._kept:
            # a small view would keep all of its storage
            kept = kept.clone()
            self._after += kept.nbytes
        elif reference not in self._kept:
            self._kept.add(reference)
            self._after += size
        return _Kept(kept, kept._version)

    def _compress(self, tensor: Tensor, reference: StorageWeakRef) -> _Compressed | None:
        """The codes of the tensor; None if a value is not finite."""
        place = _place(tensor.shape, tensor.stride(), self.heads, self.groups)
        key = (reference, tensor._version, tensor.dtype, tensor.storage_offset(), place.key)
        codes = self._blocks.get(key)
        if codes is None:
            rows = tensor.detach().as_strided(place.size, place.stride).reshape(-1, place.layout.width)
            ranges = self._ranges(*place.layout.extremes(rows))
            if ranges is None:
                return None
            codes = self._blocks[key] = _Codes(rows, place.layout, ranges, self._dither)
            self._after += codes.nbytes
        return _Compressed(codes, tensor.shape, place.restored)

    def _ranges(self, low: list[float], high: list[float]) -> _Ranges | None:
        if not all(map(math.isfinite, low)) or not all(map(math.isfinite, high)):
            return None
        positive = min(low) == 0
        if positive:
            low = [0.0] * len(low)
        new = _Ranges(low, [most - least for most, least in zip(high, low, strict=True)], positive)
        return new if self._averages is None else self._averages.take(new)


@checked
def heads_of(model: nn.Module) -> list[int]:
    """Numbers of heads in the model: ``heads`` of its layers, ``num_heads`` of torch's."""
    found = (getattr(module, name, None) for module in model.modules() for name in ("heads", "num_heads"))
    return sorted({value for value in found if isinstance(value, int) and value > 1})


def _own_ranges(module: nn.Module, groups: int, decay: float) -> Mesa:
    mesa = Mesa(module, groups=groups, ranges="running", decay=decay, least=1)
    mesa.heads = frozenset({groups})
    return mesa


def _inside(module: nn.Module) -> AbstractContextManager[Any]:
    """The compression of the module in training, nothing in evaluation."""
    return module.mesa if module.training and torch.is_grad_enabled() else nullcontext()  # ty: ignore[invalid-explicit-return]


@checked_constructor
class MesaLinear(nn.Linear):
    """A linear map whose input is kept in 8 bits.

    Args:
        groups: G slices of the channels, or heads of an input ``(B, G, N, E)``.
        decay: lambda of the running ranges.

    Other arguments, and errors, are those of ``nn.Linear`` and :class:`Mesa`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        groups: int = 8,
        decay: float = 0.9,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.mesa = _own_ranges(self, groups, decay)

    def forward(self, input: Float[Tensor, "*grid c"]) -> Float[Tensor, "*grid d"]:
        """Map the last axis."""
        with _inside(self):
            return super().forward(input)


@checked_constructor
class MesaLayerNorm(nn.LayerNorm):
    """A layer norm of the last axis whose input is kept in 8 bits, its means and deviations as they are."""

    def __init__(
        self,
        width: int,
        *,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        groups: int = 8,
        decay: float = 0.9,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(width, eps, elementwise_affine, bias, device=device, dtype=dtype)
        self.mesa = _own_ranges(self, groups, decay)

    def forward(self, input: Float[Tensor, "*grid c"]) -> Float[Tensor, "*grid c"]:
        """Norm the last axis."""
        with _inside(self):
            return super().forward(input)


@checked_constructor
class MesaGELU(nn.GELU):
    """GELU whose input is kept in 8 bits."""

    def __init__(self, approximate: Literal["none", "tanh"] = "none", *, groups: int = 8, decay: float = 0.9) -> None:
        super().__init__(approximate)
        self.mesa = _own_ranges(self, groups, decay)

    def forward(self, input: Float[Tensor, "*grid c"]) -> Float[Tensor, "*grid c"]:
        """``input Phi(input)``."""
        with _inside(self):
            return super().forward(input)


@checked_constructor
class MesaSoftmax(nn.Softmax):
    """Softmax whose output is kept in 8 bits; with ``groups`` heads, those of ``(B, H, N, N)`` are the groups."""

    def __init__(self, dim: int = -1, *, groups: int = 8, decay: float = 0.9) -> None:
        super().__init__(dim)
        self.mesa = _own_ranges(self, groups, decay)

    def forward(self, input: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Softmax over ``dim``."""
        with _inside(self):
            return super().forward(input)


@checked_constructor
class MesaMatMul(nn.Module):
    """``a @ b`` with both factors kept in 8 bits."""

    def __init__(self, *, groups: int = 8, decay: float = 0.9) -> None:
        super().__init__()
        self.mesa = _own_ranges(self, groups, decay)

    def forward(self, a: Float[Tensor, "*batch n e"], b: Float[Tensor, "*batch e m"]) -> Float[Tensor, "*batch n m"]:
        """The product of the last two axes."""
        with _inside(self):
            return a @ b


@checked
def use_mesa_modules(model: nn.Module, *, groups: int | None = None, decay: float = 0.9) -> int:
    """Replace the Linear, LayerNorm, GELU and Softmax modules inside the model by those above; return their number.

    Parameters stay the same objects, names and ``state_dict`` do not change. Calls of functions
    (``functional.gelu``, fused attention) stay as they are: :class:`Mesa` reaches them. ``groups`` as there. A layer
    norm over several axes stays too.

    Raises:
        ArgumentError: fewer than one group, a decay outside [0, 1), no module to replace.
    """
    chosen = groups or max(heads_of(model), default=8) if groups != 0 else 0
    options: dict[str, Any] = {"groups": chosen, "decay": decay}
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            made = _counterpart(child, options)
            if made is not None:
                setattr(parent, name, made.train(child.training))
                count += 1
    if not count:
        raise ArgumentError(
            f"mesa: model: found {type(model).__name__}, expected one with a Linear, LayerNorm, GELU or Softmax inside"
        )
    return count


def _counterpart(module: nn.Module, options: dict[str, Any]) -> nn.Module | None:
    made: nn.Module
    if type(module) is nn.Linear:
        made = MesaLinear(module.in_features, module.out_features, module.bias is not None, device=_META, **options)
    elif type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        made = MesaLayerNorm(
            module.normalized_shape[0], eps=module.eps, elementwise_affine=False, device=_META, **options
        )
        made.elementwise_affine = module.elementwise_affine
    elif type(module) is nn.GELU:
        made = MesaGELU(module.approximate, **options)  # ty: ignore[invalid-argument-type]
    elif type(module) is nn.Softmax:
        made = MesaSoftmax(-1 if module.dim is None else module.dim, **options)
    else:
        return None
    for name, parameter in module.named_parameters(recurse=False):
        setattr(made, name, parameter)
    return made


_META = torch.device("meta")
