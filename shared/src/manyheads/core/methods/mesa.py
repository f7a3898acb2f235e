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

Cost: a byte for each saved value instead of four; about six passes over the value in the forward pass and three in the
backward pass, in chunks that stay in the cache.

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
from collections.abc import Iterator
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
# Values that are quantised at a time on a CPU: they stay in the cache of a core, with their dither.
_CHUNK = 1 << 17
# Values of a row; in shorter rows the loop over rows costs more than the arithmetic.
_ROW = 4096
# Numbers in the dither.
_DITHERS = 1 << 16
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
    """A block of memory as ``outer`` times ``groups`` slices of ``inner`` values."""

    outer: int
    groups: int
    inner: int

    @property
    def rows(self) -> tuple[int, int]:
        """The block as rows, each with one range, or short ones with the ranges of all groups, several joined."""
        if self.inner >= _ROW:
            return self.outer * self.groups, self.inner
        width = self.groups * self.inner
        joined = next(n for n in range(max(_ROW // width, 1), 0, -1) if self.outer % n == 0)
        return self.outer // joined, joined * width

    def spread(self, of_groups: Tensor) -> tuple[Tensor, ...]:
        """Each row of ``(n, G)`` as a factor: ``(rows, 1)``, or ``(1, width)`` if the groups take turns in a row."""
        n, groups = of_groups.shape
        if self.inner >= _ROW:
            return of_groups.unsqueeze(1).expand(n, self.outer, groups).reshape(n, -1, 1).unbind()
        joined = self.rows[1] // (groups * self.inner)
        return of_groups.view(n, 1, groups, 1).expand(n, joined, groups, self.inner).reshape(n, 1, -1).unbind()

    def extremes(self, values: Tensor) -> tuple[list[float], list[float]]:
        """The lowest and the highest value of each group."""
        if self.inner >= _ROW:
            values, first, last = values.view(self.outer, self.groups, self.inner), 2, 0
            return values.amin(first).amin(last).tolist(), values.amax(first).amax(last).tolist()
        # the reduction over rows is the fast one
        values = values.view(self.outer, -1)
        low, high = (part.view(self.groups, self.inner) for part in (values.amin(0), values.amax(0)))
        return low.amin(1).tolist(), high.amax(1).tolist()


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

    def __init__(self, values: Tensor, layout: _Layout, ranges: _Ranges, dither: _Dither) -> None:
        self.layout, self.dtype, self.positive = layout, values.dtype, ranges.positive
        # 256 codes; zeros take the first one if the others stand for values above them
        first, levels, bottom = (-127, 254, -127 - _MARGIN) if self.positive else (-128, _LEVELS, -128 + _MARGIN)
        steps = [span / levels for span in ranges.span]
        # equal values have no range, and the first code
        scales = [1 / step if step > _NO_STEP * abs(low) else 0.0 for low, step in zip(ranges.low, steps, strict=True)]
        lows = [low - step * bottom for low, step in zip(ranges.low, steps, strict=True)]
        shifts = [bottom - low * scale for low, scale in zip(ranges.low, scales, strict=True)]
        # no code needs a clamp if all values are inside by a margin that is far above rounding
        far = any(_FAR * span < abs(low) for low, span in zip(ranges.low, ranges.span, strict=True))
        clamped = far or self.positive or not ranges.exact
        wide = torch.promote_types(values.dtype, torch.float32)
        factors = torch.tensor([scales, shifts, steps, lows], dtype=wide, device=values.device)
        self.decoder = factors[2:]
        self.codes = torch.empty(layout.rows, dtype=torch.int8, device=values.device)
        chunk = torch.empty(_chunk(self.codes), dtype=wide, device=values.device)
        for part, kept, scale, shift in _chunks(values.view(layout.rows), self.codes, *layout.spread(factors[:2])):
            code = chunk if len(part) == len(chunk) else chunk[: len(part)]
            torch.addcmul(dither.draw(code) + shift, part.to(wide), scale, out=code).floor_()
            if clamped:
                code.clamp_(first, 127)
            kept.copy_(code.masked_fill_(part == 0, -128) if self.positive else code)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.decoder.nbytes

    def decode(self) -> Tensor:
        """The values of the block in one row."""
        values = torch.empty(self.codes.shape, dtype=self.decoder.dtype, device=self.codes.device)
        for part, kept, step, low in _chunks(values, self.codes, *self.layout.spread(self.decoder)):
            torch.addcmul(low, part.copy_(kept), step, out=part)
            if self.positive:
                part.clamp_(min=0)
        return values.view(-1).to(self.dtype)


class _Dither:
    """Numbers from U(0, 1) with a generator of their own, for all values of a chunk, or for a row of it on a CPU.

    There a draw is a slice at a random place of a shuffled grid over (0, 1), which is made once. Each place of a slice
    gets every number of the grid with the same probability, and a draw costs nothing.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.place = seed, random.Random(seed)
        self.generators: dict[torch.device, torch.Generator] = {}

    def draw(self, like: Tensor) -> Tensor:
        if like.device.type != "cpu":
            if like.device not in self.generators:
                self.generators[like.device] = torch.Generator(like.device).manual_seed(self.seed)
            return torch.rand(like.shape, device=like.device, generator=self.generators[like.device])
        start, width = self.place.randrange(_DITHERS), like.shape[1]
        return _grid(-(-width // _DITHERS))[start : start + width]


@functools.cache
def _grid(times: int) -> Tensor:
    """The midpoints of equal parts of (0, 1) in random order, several times, and once more for a start inside."""
    order = torch.randperm(_DITHERS, generator=torch.Generator().manual_seed(0))
    return ((order + 0.5) / _DITHERS).to(torch.float32).repeat(times + 1)


def _chunk(rows: Tensor) -> tuple[int, int]:
    """The shape of a chunk of the rows."""
    count, width = rows.shape
    return (min(max(_CHUNK // width, 1), count) if rows.device.type == "cpu" else count), width


def _chunks(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each tensor, a chunk at a time; a tensor with one row is the same in every chunk."""
    size = _chunk(rows[0])[0]
    if size == len(rows[0]):
        return iter([rows])
    parts = [part.split(size) if len(part) == len(rows[0]) else itertools.repeat(part) for part in rows]
    return zip(*parts, strict=False)


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
    views, integers and booleans, tensors with a value that is not finite (a mask of minus infinity), and one number for
    each token: a tensor whose last axis is 1 (mean and deviation of a norm), or the log-sum-exp of attention, which is
    recognised as a tensor ``(B, H, …)`` of three axes saved soon after one of four axes ``(B, H, N, E)``.

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
        if tensor.dtype not in _FLOATS or tensor.numel() < max(self.least, 1) or tensor.shape[-1] == 1:
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
        view = tensor.detach()
        shared = [axis for axis in range(view.dim()) if view.stride(axis) == 0 and view.shape[axis] > 1]
        for axis in reversed(shared):
            view = view.select(axis, 0)
        order = sorted(range(view.dim()), key=lambda axis: (-view.stride(axis), -view.shape[axis]))
        block = view.permute(order)
        dense = block.is_contiguous()
        place = (block.numel(),) if dense else (tuple(tensor.shape), tensor.stride())
        key = (reference, tensor._version, tensor.dtype, tensor.storage_offset(), *place)
        codes = self._blocks.get(key)
        if codes is None:
            layout = self._layout(tensor, shared, order, block.shape)
            block = block.contiguous().view(-1)
            ranges = self._ranges(*layout.extremes(block))
            if ranges is None:
                return None
            codes = self._blocks[key] = _Codes(block, layout, ranges, self._dither)
            self._after += codes.nbytes
        if dense:
            return _Compressed(codes, tuple(tensor.shape), tensor.stride())
        strides, width = dict.fromkeys(range(view.dim()), 0), 1
        for axis in reversed(order):
            strides[axis], width = width, width * view.shape[axis]
        remaining = iter(strides[axis] for axis in range(view.dim()))
        stride = tuple(0 if axis in shared else next(remaining) for axis in range(tensor.dim()))
        return _Compressed(codes, tuple(tensor.shape), stride)

    def _layout(self, tensor: Tensor, shared: list[int], order: list[int], block: torch.Size) -> _Layout:
        """Groups of the block: the axis of the heads, or of the channels, at its place in memory."""
        by_head = tensor.dim() == 4 and tensor.shape[1] in self.heads and 1 not in shared
        axis = 1 if by_head else tensor.dim() - 1
        place = -1 if axis in shared else order.index(axis - sum(one < axis for one in shared))
        place %= len(block)
        size = block[place]
        groups = size if by_head else next(g for g in range(min(self.groups, size), 0, -1) if size % g == 0)
        return _Layout(math.prod(block[:place]), groups, size // groups * math.prod(block[place + 1 :]))

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

    Parameters stay the same objects, names and ``state_dict`` do not change. Functions that are no modules
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
