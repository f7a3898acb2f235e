"""Attention Is Not All You Need Anymore (2308.07661): the Extractors, running weighted sums with a gate.

    s_t = t^(-1/2) sum_{i <= t} x_i W_i        y_t = (x_t W_adj) o s_t                  SHE, index by position
    s_t = t^(-1/2) sum_{i <= t} x_i W_{t-i+1}  y_t = (x_t W_adj) o s_t                  SHE, index by lag

    HE: x_i W_i becomes (x_i W) o w_i, a vector a position     WE: w_i (x_i W), a scalar a position     ME: x_i W

Shapes: B batch, T tokens, D width, F extracted width (D unless given), M = ``max_len`` positions.

Cost: by position, time ``O(T D F)`` and a state of F numbers (SHE reads its whole weight, ``M D F`` numbers, once a
call); by lag, HE and WE ``O(T log T F)``, SHE ``O(T log T D F)`` through the FFT, and a state of ``max_len`` inputs.
Chunks of up to 8 tokens and chunks with a reset are summed directly: by position SHE then gathers one ``D F`` matrix a
token, by lag all take ``O(T M)`` terms.

Differs from the paper: its text could not be had. SHE by position follows the one third-party code that was read, which
also names the sequel (2311.12678), so that the root of t may come from there. SHE by lag, and HE, WE and ME altogether,
are reconstructions of ours: the abstract says only that they are cheaper. All keep the root of t, so that ME is the
running mean times the root of t. A width other than D and the projection back from it, padding, resets and streaming
are ours. There is no softmax and no norm: ``y(a x) = a^2 y(x)``, which wants a norm before and a residual around it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError, StateError, UnknownNameError
from manyheads.core.functional import (
    fast_length,
    fft_convolution,
    hold_first,
    pack,
    pack_order,
    segment_cumsum,
    segment_ids,
)
from manyheads.core.functional import positions as episode_positions
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput, StateKind
from manyheads.core.mask import Mask
from manyheads.core.state import State

INDICES = ("absolute", "lag")
_DIRECT = 8  # tokens up to which a direct sum over the kept inputs is cheaper than a transform


class SumState(NamedTuple):
    """By position: the sum so far, in float32 at least, and how many tokens of the episode it holds."""

    total: Tensor  # (B, F)
    count: Tensor  # (B,) int64


class InputState(NamedTuple):
    """By lag: what the tokens of the episode brought in, the oldest first."""

    inputs: Tensor  # (B, M, D) for SHE, (B, M, F) for the others
    used: Tensor  # (B,) int64: slots in use


def lag_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """``y[:, t] = sum_{j <= t} x[:, t - j] weight[j]``: ``x (B, T, D)``, ``weight (K, D, F)`` -> ``(B, T, F)``.

    One matrix product a frequency; half precision is computed in float32.
    """
    tokens, dtype = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    weight = weight[:tokens]
    length = fast_length(tokens + weight.shape[0] - 1)
    x_FBD = torch.fft.rfft(x.to(dtype), n=length, dim=1).transpose(0, 1)
    weight_FDE = torch.fft.rfft(weight.to(dtype), n=length, dim=0)
    return torch.fft.irfft((x_FBD @ weight_FDE).transpose(0, 1), n=length, dim=1)[:, :tokens].to(x.dtype)


class _Extractor(Layer):
    """What the four share: the gate, the running sum or the convolution, and the states."""

    thinning: ClassVar[Literal["matrix", "vector", "scalar", "none"]]

    def __init__(self, dim: int, *, width: int | None, max_len: int | None, index: str, config: dict[str, Any]) -> None:
        super().__init__(dim, **config)
        name = self.info.name
        if index not in INDICES:
            raise UnknownNameError(f"index of {name}", index, INDICES)
        for argument, value in (("width", width), ("max_len", max_len)):
            if value is not None and value < 1:
                raise ArgumentError(f"{name}: {argument}: found {value}, expected 1 or more")
        inner = dim if width is None else width
        self.inner, self.max_len, self.index = inner, max_len, index
        self.adjust = nn.Linear(dim, inner, bias=False)
        self.extract = None if self.thinning == "matrix" else nn.Linear(dim, inner, bias=False)
        self.output = None if width is None else nn.Linear(inner, dim, bias=False)
        if max_len is not None:
            shape = {"matrix": (max_len, dim, inner), "vector": (max_len, inner), "scalar": (max_len, 1)}[self.thinning]
            self.weight = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with variance one over the number of inputs (LeCun)."""
        for projection in (self.adjust, self.extract, self.output):
            if projection is not None:
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        if self.max_len is not None:
            nn.init.normal_(self.weight, std=self.dim**-0.5 if self.thinning == "matrix" else 1.0)

    @property
    def causality(self) -> Causality:
        return "strict"

    @property
    def state_kind(self) -> StateKind:
        return "growing" if self.index == "lag" else "recurrent"

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        dtype = torch.get_default_dtype() if dtype is None else dtype
        count = torch.zeros(batch, dtype=torch.int64, device=device)
        if self.index == "absolute":
            wide = torch.promote_types(dtype, torch.float32)
            return SumState(torch.zeros(batch, self.inner, device=device, dtype=wide), count)
        kept = self.dim if self.thinning == "matrix" else self.inner
        return InputState(torch.zeros(batch, self.max_len or 0, kept, device=device, dtype=dtype), count)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask.padding is None else mask.padding
        place = episode_positions(real, mask.reset, state[1])
        length = self._length(place, real)
        source = x if self.extract is None else self.extract(x)
        if self.index == "absolute":
            padded = mask.padding is not None
            total, state = self._running_sum(source, state, place, real, mask.reset, length, padded=padded)
        else:
            total, state = self._convolution(source, state, place, real, mask.reset)
        root = (place + 1).to(total.dtype).rsqrt().unsqueeze(-1)
        y = self.adjust(x) * (total * root).to(x.dtype)
        if self.output is not None:
            y = self.output(y)
        return LayerOutput(y, state)

    def _length(self, place: Tensor, real: Tensor) -> int:
        """Positions in use. A compiled graph takes all there are, and cannot tell when an episode is too long."""
        if self.max_len is None:
            return 0
        if torch.compiler.is_compiling():
            return self.max_len
        length = int(torch.where(real, place, -1).max()) + 1
        if length > self.max_len:
            raise StateError(
                f"{self.info.name}: state: found an episode of {length} tokens, expected at most max_len = "
                f"{self.max_len}; raise it"
            )
        return max(length, 1)

    def _running_sum(
        self,
        source: Tensor,
        state: SumState,
        place: Tensor,
        real: Tensor,
        reset: Tensor | None,
        length: int,
        *,
        padded: bool,
    ) -> tuple[Tensor, SumState]:
        brought = source if self.max_len is None else self._weighted(source, place, real, reset, length)
        brought = brought.to(state.total.dtype)
        brought = torch.where(real.unsqueeze(-1), brought, 0.0) if padded else brought
        total = segment_cumsum(brought, reset, state.total)
        return total, SumState(total[:, -1], place[:, -1] + real[:, -1])

    def _weighted(self, source: Tensor, place: Tensor, real: Tensor, reset: Tensor | None, length: int) -> Tensor:
        """Each token with the weight of its position, ``(B, T, F)``."""
        place = place.clamp(max=length - 1)
        if self.thinning != "matrix":
            return source * functional.embedding(place, self.weight)
        batch, tokens, _ = source.shape
        few = not torch.compiler.is_compiling() and batch * tokens < length  # an exported batch may have any size
        if reset is not None or few:
            return (source.unsqueeze(2) @ self.weight[place]).squeeze(2)
        # Tokens go to their positions, so that the weight is read once instead of gathered for every row.
        slot = torch.where(real, place, length).unsqueeze(-1)
        by_place = source.new_zeros(batch, length + 1, self.dim).scatter(1, slot.expand_as(source), source)
        weight = self.weight if length == self.max_len else self.weight[:length]  # a slice's gradient is a second copy
        brought = torch.bmm(by_place[:, :length].transpose(0, 1), weight).transpose(0, 1)
        return brought.gather(1, place.unsqueeze(-1).expand(-1, -1, self.inner))

    def _convolution(
        self, source: Tensor, state: InputState, place: Tensor, real: Tensor, reset: Tensor | None
    ) -> tuple[Tensor, InputState]:
        slots, device = state.inputs.shape[1], source.device
        held = torch.arange(slots, device=device) < state.used.unsqueeze(1)
        inputs, usable = torch.cat([state.inputs, source], 1), torch.cat([held, real], 1)
        order, filled = pack_order(usable)
        packed = torch.where(filled.unsqueeze(-1), pack(inputs, order), 0.0)
        own = (usable.cumsum(1)[:, slots:] - 1).clamp(min=0)
        if source.shape[1] <= _DIRECT or reset is not None:
            total = self._direct(packed, own, place)
        else:
            length = slots + source.shape[1] if torch.compiler.is_compiling() else int(own.max()) + 1
            mixed = self._transformed(packed[:, :length])
            total = mixed.gather(1, own.unsqueeze(-1).expand(-1, -1, self.inner))
        segment = torch.zeros_like(real, dtype=torch.int64) if reset is None else segment_ids(reset)
        kept = usable & (torch.cat([torch.zeros_like(held, dtype=torch.int64), segment], 1) == segment[:, -1:])
        return total, InputState(hold_first(inputs, kept, slots), kept.sum(1))

    def _transformed(self, packed: Tensor) -> Tensor:
        if self.thinning == "matrix":
            return lag_convolution(packed, self.weight)
        return fft_convolution(packed.mT, self.weight[: packed.shape[1]].mT).mT

    def _direct(self, packed: Tensor, own: Tensor, place: Tensor) -> Tensor:
        """The sum over the lags that each token's episode has, inputs gathered by lag."""
        lag = torch.arange(min(self.weight.shape[0], packed.shape[1]), device=own.device)
        index = (own.unsqueeze(-1) - lag).clamp(min=0)
        there = (lag <= place.unsqueeze(-1)).unsqueeze(-1)
        batch = torch.arange(packed.shape[0], device=own.device).view(-1, 1, 1)
        seen = torch.where(there, packed[batch, index], 0.0)  # (B, T, K, D or F)
        weight = self.weight[: lag.shape[0]]
        if self.thinning == "matrix":
            return seen.flatten(2) @ weight.flatten(0, 1)
        return (seen * weight).sum(2)


def _flops(per_position: Literal["matrix", "vector", "scalar", "none"]) -> Any:
    def flops(config: dict[str, Any], grid: Grid) -> float:
        dim, (tokens,) = config["dim"], grid
        width = config.get("width") or dim
        back = 0 if config.get("width") is None else 2 * dim * width
        shared = 2 * dim * width + back + 2 * width + (0 if per_position == "matrix" else 2 * dim * width)
        if config.get("index") != "lag":
            brought = {"matrix": 2 * dim * width, "vector": 2 * width, "scalar": 2 * width, "none": width}[per_position]
            return float(tokens * (shared + brought))
        length = fast_length(2 * tokens)
        transform = 2.5 * length * max(length.bit_length() - 1, 1)  # of real numbers
        kernels = dim * width if per_position == "matrix" else width
        products = 4.0 * length * (dim * width if per_position == "matrix" else width)
        return tokens * shared + transform * (dim + width + kernels) + products

    return flops


def _at_length(per_position: Literal["matrix", "vector", "scalar", "none"]) -> Any:
    def at_length(tokens: int) -> dict[str, dict[str, Any]]:
        if per_position == "none":
            return {"plain": {}}
        plain = {"max_len": tokens}
        return {"plain": plain} if per_position == "matrix" else {"plain": plain, "lag": {**plain, "index": "lag"}}

    return at_length


def _info(
    name: str,
    good_for: str,
    cost: str,
    thinning: Literal["matrix", "vector", "scalar", "none"],
    *deviations: str,
) -> LayerInfo:
    lag = thinning != "none"
    return LayerInfo(
        name=name,
        title="Attention Is Not All You Need Anymore",
        arxiv="2308.07661",
        good_for=good_for,
        cost=cost,
        flops=_flops(thinning),
        at_length=_at_length(thinning),
        causal=("strict",),
        state=("recurrent", "growing") if lag else ("recurrent",),
        masks=("padding", "reset"),
        positional=True,
        lengths="an episode of at most max_len tokens; more raise" if lag else "any",
        deviations=("the paper's text could not be had", *deviations, "padding, resets and streaming are ours"),
    )


_OURS = "a reconstruction of ours, not from the paper: only that it is cheaper is known"


class SuperHighPerformanceExtractor(_Extractor):
    """SHE: one matrix a position; see the module for equation and shapes. Parameters ``M D F + D F``.

    Args:
        dim: width D.
        max_len: M, the most tokens that an episode may have.
        index: "absolute": the matrix of a token is that of its position, as read; "lag": that of its distance (ours).
        width: F; None for D. Given, a projection back to D follows (``F D`` parameters more; ours).

    Raises:
        ArgumentError: widths or room below 1.
        UnknownNameError: another index.
    """

    thinning = "matrix"
    info = _info(
        "extractor-she",
        "Causal models of bounded length without attention: each position brings a matrix of its own.",
        "by position: time N D^2 and M D^2 to read the weight, state D; by lag: N log N D^2, state M D",
        "matrix",
        "by position as in a third-party code that was read; by lag a reconstruction of ours",
    )

    def __init__(self, dim: int, *, max_len: int = 512, index: str = "absolute", width: int | None = None) -> None:
        config = {"max_len": max_len, "index": index, "width": width}
        super().__init__(dim, width=width, max_len=max_len, index=index, config=config)


class HigherPerformanceExtractor(_Extractor):
    """HE, a reconstruction that is not from the paper: one shared projection, one vector a position.

    Parameters ``M F + 2 D F``. Arguments and errors as for :class:`SuperHighPerformanceExtractor`.
    """

    thinning = "vector"
    info = _info(
        "extractor-he",
        "The same as extractor-she with far fewer weights: each position brings a vector.",
        "by position: time N D^2, state D; by lag: N D^2 + N log N D, state M D",
        "vector",
        _OURS,
    )

    def __init__(self, dim: int, *, max_len: int = 512, index: str = "absolute", width: int | None = None) -> None:
        config = {"max_len": max_len, "index": index, "width": width}
        super().__init__(dim, width=width, max_len=max_len, index=index, config=config)


class WorthwhileExtractor(_Extractor):
    """WE, a reconstruction that is not from the paper: one shared projection, one number a position.

    Parameters ``M + 2 D F``. Arguments and errors as for :class:`SuperHighPerformanceExtractor`.
    """

    thinning = "scalar"
    info = _info(
        "extractor-we",
        "The same with hardly any weights of the position: each brings a number.",
        "by position: time N D^2, state D; by lag: N D^2 + N log N D, state M D",
        "scalar",
        _OURS,
    )

    def __init__(self, dim: int, *, max_len: int = 512, index: str = "absolute", width: int | None = None) -> None:
        config = {"max_len": max_len, "index": index, "width": width}
        super().__init__(dim, width=width, max_len=max_len, index=index, config=config)


class MinimalistExtractor(_Extractor):
    """ME, a reconstruction that is not from the paper: one shared projection and no weight of the position at all.

    Parameters ``2 D F``; any length.

    Args:
        dim: width D.
        width: F; None for D. Given, a projection back to D follows.

    Raises:
        ArgumentError: a width below 1.
    """

    thinning = "none"
    info = _info(
        "extractor-me",
        "A running mean of projected tokens: the cheapest causal mixer, a baseline for the others.",
        "time N D^2, state D",
        "none",
        _OURS,
    )

    def __init__(self, dim: int, *, width: int | None = None) -> None:
        super().__init__(dim, width=width, max_len=None, index="absolute", config={"width": width})
