"""Attention Is All You Need (1706.03762): multi-head softmax attention.

    head_h = softmax(Q_h K_h' / sqrt(E)) V_h,   Q = X W_q,  K = C W_k,  V = C W_v,   Y = [head_1 … head_H] W_o

with ``C = X`` for self-attention, or a context. Shapes: B batch, T tokens, S context tokens, D width, H heads,
E = D / H head width, M slots of the state.

Cost: time ``O(T^2 D + T D^2)``, memory ``O(T D)`` (fused kernel; ``O(T^2)`` booleans where a mask is given); with a
window of W tokens time ``O(T W D + T D^2)`` and memory ``O(T W + T D)``; a streamed token ``O(M D + D^2)``.

With ``rotary``, queries and keys are turned by their positions (``functional.rotary``); the cache holds keys that are
not turned.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError, StateError
from manyheads.core.fields import attribute, heads_argument
from manyheads.core.functional.attention import attention
from manyheads.core.functional.packing import pack, pack_order, unpack
from manyheads.core.functional.rotary import rotate
from manyheads.core.functional.segments import same_segment, segment_ids, visible
from manyheads.core.functional.windowed_attention import windowed_attention
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput, StateKind
from manyheads.core.mask import Mask
from manyheads.core.state import State, may_overwrite


class KeyValueState(NamedTuple):
    """The tokens that later ones may still see. A window keeps them at the right end, a growing state at the left."""

    keys: Tensor  # (B, H, M, E)
    values: Tensor  # (B, H, M, E)
    used: Tensor  # (B,) int64: slots in use


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim = config["dim"]
    seen = (tokens + 1) / 2 if config.get("causal") else tokens  # on average
    seen = seen if config.get("window") is None else min(config["window"], seen)
    return 8.0 * tokens * dim * dim + 4.0 * tokens * seen * dim


class HeadAttention(Layer):
    """Projections, cache and stream of softmax attention, for every layer that attends so; see the module.

    A subclass declares ``window`` and ``context_dim`` as arguments if it has them.
    """

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does."""
    causal: bool = False
    """Each token sees itself and earlier tokens only."""
    max_len: int | None = None
    """Causal only: slots of the growing state; a longer stream raises :class:`StateError`."""
    bias: bool | Literal["output"] = False
    """Biases in the four projections, or in that of the output alone."""
    window: int | None = attribute(default=None)
    rotary: float | None = attribute(default=None)

    def setup(self) -> None:
        name, dim, causal = self.info.name, self.dim, self.causal
        for argument, value in (("window", self.window), ("max_len", self.max_len)):
            if value is not None and (value < 1 or not causal):
                raise ArgumentError(
                    f"{name}: {argument}: found {value} with causal={causal}, expected 1 or more and causal"
                )
        if self.window is not None and self.max_len is not None:
            raise ArgumentError(
                f"{name}: found window={self.window} and max_len={self.max_len}, expected one of them at most"
            )
        if self.context_dim is not None and self.context_dim < 1:
            raise ArgumentError(f"{name}: context_dim: found {self.context_dim}, expected 1 or more, or None")
        if causal and self.context_dim is not None:
            raise ArgumentError(f"{name}: context_dim: found {self.context_dim} with causal=True, expected None")
        if self.rotary is not None and (self.rotary <= 1 or dim // self.heads % 2 or self.context_dim is not None):
            raise ArgumentError(
                f"{name}: rotary: found {self.rotary} with heads of width {dim // self.heads} and "
                f"context_dim={self.context_dim}, expected None, or a base above 1, an even width and no context"
            )
        source = dim if self.context_dim is None else self.context_dim
        self.query = nn.Linear(dim, dim, bias=self.bias is True)
        self.key = nn.Linear(source, dim, bias=self.bias is True)
        self.value = nn.Linear(source, dim, bias=self.bias is True)
        self.output = nn.Linear(dim, dim, bias=bool(self.bias))

    @property
    def masks(self) -> tuple[str, ...]:
        if self.context_dim is not None:
            return ("padding", "context_padding")
        return ("padding", "reset") if self.state_kind != "none" else ("padding", "reset", "window", "blocks")

    @property
    def causality(self) -> Causality:
        return "strict" if self.causal else "no"

    @property
    def state_kind(self) -> StateKind:
        return "window" if self.window is not None else "growing" if self.max_len is not None else "none"

    @property
    def positional(self) -> bool:
        return self.rotary is not None

    @property
    def slots(self) -> int:
        """M: a window needs no slot for the token that it ends with."""
        return self.window - 1 if self.window is not None else self.max_len or 0

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        if self.state_kind == "none":
            return ()
        empty = torch.zeros(batch, self.heads, self.slots, self.dim // self.heads, device=device, dtype=dtype)
        return KeyValueState(empty, empty.clone(), torch.zeros(batch, dtype=torch.int64, device=device))

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        source = x if context is None else context
        q, k, v = self._split(self.query(x)), self._split(self.key(source)), self._split(self.value(source))
        if context is not None:
            allowed = None if mask.context_padding is None else mask.context_padding[:, None, None, :]
            mixed, state = attention(q, k, v, allowed=allowed), ()
        elif self.state_kind == "none":
            mixed, state = self._whole(q, k, v, mask), ()
        else:
            mixed, state = self._stream(q, k, v, state, mask)
        return LayerOutput(self.output(mixed.transpose(1, 2).flatten(2)), state)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        batch, _, tokens, _ = q.shape
        if self.rotary is not None:
            place = torch.arange(tokens, device=q.device) if mask.padding is None else mask.padding.cumsum(1)
            q, k = rotate(q, place, base=self.rotary), rotate(k, place, base=self.rotary)
        if not mask.names():
            return attention(q, k, v, causal=self.causal)
        real = torch.ones(batch, tokens, dtype=torch.bool, device=q.device) if mask.padding is None else mask.padding
        segment = torch.zeros_like(real, dtype=torch.int64) if mask.reset is None else segment_ids(mask.reset)
        allowed = visible(real, segment, real, segment, 0, causal=self.causal, window=mask.window)
        if mask.blocks is not None:
            allowed = allowed & same_segment(mask.blocks, mask.blocks)
        return attention(q, k, v, allowed=allowed.unsqueeze(1))

    def _stream(
        self, q: Tensor, k: Tensor, v: Tensor, state: KeyValueState, mask: Mask
    ) -> tuple[Tensor, KeyValueState]:
        batch, _, tokens, _ = q.shape
        slots = self.slots
        if self.window is None and not torch.compiler.is_compiling():
            least, most = torch.stack(state.used.aminmax()).tolist()
            if not mask.names() and most + tokens <= slots:
                return self._append(q, k, v, state, least, most)
            # Slots that no row uses are not attended to.
            slots = most
            state = KeyValueState(state.keys[:, :, :slots], state.values[:, :, :slots], state.used)
        slot = torch.arange(slots, device=q.device)
        held = slot >= slots - state.used[:, None] if self.window is not None else slot < state.used[:, None]
        real = torch.ones(batch, tokens, dtype=torch.bool, device=q.device) if mask.padding is None else mask.padding
        segment = torch.zeros_like(real, dtype=torch.int64) if mask.reset is None else segment_ids(mask.reset)
        last = segment[:, -1:]
        order = None
        if self.window is not None and mask.padding is not None:
            order, real = pack_order(mask.padding)
            q, k, v = (pack(part.transpose(1, 2), order).transpose(1, 2) for part in (q, k, v))
            segment = pack(segment, order)
        keys, values = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        usable = torch.cat([held, real], 1)
        segments = torch.cat([torch.zeros_like(held, dtype=torch.int64), segment], 1)
        seen = keys
        if self.rotary is not None:
            # only differences of positions count, so that the kept keys are turned from the first slot on
            place = usable.cumsum(1)
            q, seen = rotate(q, place[:, slots:], base=self.rotary), rotate(keys, place, base=self.rotary)
        if self.window is not None:
            mixed = windowed_attention(q, seen, values, window=self.window, usable=usable, segments=segments)
            if order is not None:
                mixed = unpack(mixed.transpose(1, 2), order, real).transpose(1, 2)
        else:
            allowed = visible(real, segment, usable, segments, slots, causal=True, window=None)
            mixed = attention(q, seen, values, allowed=allowed.unsqueeze(1))
        return mixed, self._keep(keys, values, usable & (segments == last))

    def _append(
        self, q: Tensor, k: Tensor, v: Tensor, state: KeyValueState, least: int, most: int
    ) -> tuple[Tensor, KeyValueState]:
        """A growing state and tokens that are all real: each row's tokens go to the slots after those in use.

        The rows use between ``least`` and ``most`` slots.
        """
        tokens = k.shape[2]
        place = state.used.unsqueeze(1) + torch.arange(tokens, device=k.device)
        if least == most:
            keys, values = _put(state.keys, k, most), _put(state.values, v, most)
        else:
            index = place[:, None, :, None].expand_as(k)
            keys, values = _scatter(state.keys, k, index), _scatter(state.values, v, index)
        after = KeyValueState(keys, values, state.used + tokens)
        keys, values = keys[:, :, : most + tokens], values[:, :, : most + tokens]
        slot = torch.arange(most + tokens, device=k.device)
        if self.rotary is not None:
            q, keys = rotate(q, place, base=self.rotary), rotate(keys, slot, base=self.rotary)
        if most == 0:
            return attention(q, keys, values, causal=True), after
        if least == most and tokens == 1:
            return attention(q, keys, values), after
        return attention(q, keys, values, allowed=(slot <= place.unsqueeze(2)).unsqueeze(1)), after

    def _keep(self, keys: Tensor, values: Tensor, kept: Tensor) -> KeyValueState:
        """The last (window) or all (growing) kept tokens, packed into the slots."""
        slots, count = self.slots, kept.sum(1)
        order = kept.cumsum(1) - 1
        if self.window is None:
            if not torch.compiler.is_compiling() and bool((count > slots).any()):
                raise StateError(
                    f"{self.info.name}: state: {int(count.max())} tokens do not fit into max_len = {slots}; raise it"
                )
            used = count
        else:
            used = count.clamp(max=slots)
            order = order + (slots - count).unsqueeze(1)
        target = torch.where(kept & (order >= 0), order, slots).clamp(max=slots)[:, None, :, None].expand_as(keys)
        room = (*keys.shape[:2], slots + 1, keys.shape[3])
        packed = (
            torch.zeros(room, device=part.device, dtype=part.dtype).scatter(2, target, part) for part in (keys, values)
        )
        new_keys, new_values = (part[:, :, :slots] for part in packed)
        return KeyValueState(new_keys, new_values, used)


def _put(room: Tensor, tokens: Tensor, first: int) -> Tensor:
    """``room (B, H, M, E)`` with ``tokens`` in the slots from ``first`` on."""
    end = first + tokens.shape[2]
    if not may_overwrite():
        return torch.cat([room[:, :, :first], tokens.to(room.dtype), room[:, :, end:]], 2)
    room[:, :, first:end] = tokens
    return room


def _scatter(room: Tensor, tokens: Tensor, index: Tensor) -> Tensor:
    """``room (B, H, M, E)`` with ``tokens`` in the slots ``index``."""
    tokens = tokens.to(room.dtype)
    return room.scatter_(2, index, tokens) if may_overwrite() else room.scatter(2, index, tokens)


class SoftmaxAttention(HeadAttention):
    """Multi-head softmax attention; see the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, a window or room below 1, both of them, or either without ``causal``.
    """

    info = LayerInfo(
        name="softmax",
        title="Attention Is All You Need",
        arxiv="1706.03762",
        formula=(
            r"Y = [\,\mathrm{head}_1 \dots \mathrm{head}_H\,]\, W_o, \qquad"
            r" \mathrm{head}_h = \operatorname{softmax}\!\left(\frac{Q_h K_h^\top}{\sqrt{E}}\right) V_h"
        ),
        good_for="The baseline for any sequence: exact attention by content. Long sequences take a window.",
        not_for="Many thousand tokens without a window: time grows with N^2. Take combiner-fixed or routing.",
        cost="time N^2 D, memory N D; with a window W time and memory N W D; a streamed token M D with M slots",
        flops=_flops,
        at_length=lambda n: {
            "plain": {"heads": 2},
            "causal": {"heads": 2, "causal": True},
            "window": {"heads": 2, "causal": True, "window": min(128, max(2, n // 2))},
        },
        causal=("no", "strict"),
        state=("none", "window", "growing"),
        streams_with=({"causal": True, "window": 128}, {"causal": True, "max_len": 1024}),
        cross=True,
        masks=("padding", "reset", "window", "blocks", "context_padding"),
        linear_in_value=True,
        deviations=(
            "here no biases by default",
            "padding, resets, windows and the streaming state are ours",
            "a window counts real tokens only, so that padding between them does not shorten it",
            "rotary positions (2104.09864) are an option",
        ),
    )

    window: int | None = None
    """Causal only: each token sees the latest ``window`` real tokens, itself too; the state is a window."""
    context_dim: int | None = None
    """Width of the context for cross-attention; not with ``causal``."""
    rotary: float | None = None
    """Base of rotary positions (2104.09864; 10,000 there), None for none; not with a context."""
