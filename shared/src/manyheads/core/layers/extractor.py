"""Attention Is Not All You Need Anymore (2308.07661): the Extractors, weighted running sums with a gate.

    s_t = t^(-1/2) sum_{i <= t} x_i W_i        y_t = (x_t W_adj) o s_t                  SHE, index by position
    s_t = t^(-1/2) sum_{i <= t} x_i W_{t-i+1}  y_t = (x_t W_adj) o s_t                  SHE, index by lag

The other three replace ``x_i W_i``:

    HE: (x_i W) o w_i, a vector for each position     WE: w_i (x_i W), a scalar for each position     ME: x_i W

There is no softmax and no norm, so ``y(a x) = a^2 y(x)``: put a norm before the layer and a residual around it.

Shapes: B batch, T tokens, D width, F extracted width (D unless given), M = ``max_len`` positions.

Cost: by position, time ``O(T D F)``; SHE reads its whole weight, ``M D F`` numbers, once a call. By lag, through the
FFT, HE and WE take ``O(T log T F)`` and SHE ``O(T log T D F)``. Chunks of up to 8 tokens and chunks with a reset are
summed directly: by position SHE then gathers one ``D F`` matrix for each token, by lag all forms sum ``O(T M)`` terms.

All four stream. By position the state is recurrent, a sum of F numbers. By lag the state grows to ``max_len`` inputs.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import StateError
from manyheads.core.fields import argument, attribute
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

if TYPE_CHECKING:
    from jaxtyping import Float

Index = Literal["absolute", "lag"]
Thinning = Literal["matrix", "vector", "scalar", "none"]
# tokens up to which a direct sum over the kept inputs is cheaper than a transform
_DIRECT = 8


class SumState(NamedTuple):
    """By position: the sum so far, in float32 or wider, and the number of tokens of the episode in it."""

    total: Tensor  # (B, F)
    count: Tensor  # (B,) int64


class InputState(NamedTuple):
    """By lag: the inputs of the episode's tokens, the oldest first."""

    inputs: Tensor  # (B, M, D) for SHE, (B, M, F) for the others
    used: Tensor  # (B,) int64: slots in use


def lag_convolution(x: Float[Tensor, "b t d"], weight: Float[Tensor, "k d f"]) -> Float[Tensor, "b t f"]:
    """Convolve with matrices: ``y[:, t] = sum_{j <= t} x[:, t - j] weight[j]``.

    It takes one matrix product for each frequency; half precision is computed in float32.
    """
    tokens, dtype = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    weight = weight[:tokens]
    length = fast_length(tokens + weight.shape[0] - 1)
    x_FBD = torch.fft.rfft(x.to(dtype), n=length, dim=1).transpose(0, 1)
    weight_FDE = torch.fft.rfft(weight.to(dtype), n=length, dim=0)
    return torch.fft.irfft((x_FBD @ weight_FDE).transpose(0, 1), n=length, dim=1)[:, :tokens].to(x.dtype)


class _Extractor(Layer):
    """The gate, the running sum or the convolution, and the states, for all four; see the module."""

    thinning: ClassVar[Thinning]

    width: int | None = argument(default=None, least=1)
    """F; None for D. A given width adds a projection back to D (``F D`` more parameters)."""

    # 0: there are no weights for positions
    max_len: int = attribute(default=0)
    index: Index = attribute(default="absolute")

    def setup(self) -> None:
        dim, max_len = self.dim, self.max_len
        inner = self.inner = dim if self.width is None else self.width
        self.adjust = nn.Linear(dim, inner, bias=False)
        self.extract = None if self.thinning == "matrix" else nn.Linear(dim, inner, bias=False)
        self.output = None if self.width is None else nn.Linear(inner, dim, bias=False)
        if max_len:
            shape = {"matrix": (max_len, dim, inner), "vector": (max_len, inner), "scalar": (max_len, 1)}[self.thinning]
            self.weight = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight from a normal with variance 1 / (number of inputs) (LeCun)."""
        for projection in (self.adjust, self.extract, self.output):
            if projection is not None:
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
        if self.max_len:
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
        return InputState(torch.zeros(batch, self.max_len, kept, device=device, dtype=dtype), count)

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
        """The number of positions in use. A compiled graph uses all positions, and cannot check an episode's length."""
        if not self.max_len:
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
        brought = self._weighted(source, place, real, reset, length) if self.max_len else source
        brought = brought.to(state.total.dtype)
        brought = torch.where(real.unsqueeze(-1), brought, 0.0) if padded else brought
        total = segment_cumsum(brought, reset, state.total)
        return total, SumState(total[:, -1], place[:, -1] + real[:, -1])

    def _weighted(self, source: Tensor, place: Tensor, real: Tensor, reset: Tensor | None, length: int) -> Tensor:
        """Each token times the weight of its position, ``(B, T, F)``."""
        place = place.clamp(max=length - 1)
        if self.thinning != "matrix":
            return source * functional.embedding(place, self.weight)
        batch, tokens, _ = source.shape
        # not in an exported graph: its batch may have any size
        few = not torch.compiler.is_compiling() and batch * tokens < length
        if reset is not None or few:
            return (source.unsqueeze(2) @ self.weight[place]).squeeze(2)
        # Scatter the tokens to their positions: then the weight is read once instead of gathered for every row.
        slot = torch.where(real, place, length).unsqueeze(-1)
        by_place = source.new_zeros(batch, length + 1, self.dim).scatter(1, slot.expand_as(source), source)
        # a slice only if needed: its gradient is a second copy of the weight
        weight = self.weight if length == self.max_len else self.weight[:length]
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
        """The sum over the lags inside each token's episode, with the inputs gathered by lag."""
        lag = torch.arange(min(self.weight.shape[0], packed.shape[1]), device=own.device)
        index = (own.unsqueeze(-1) - lag).clamp(min=0)
        there = (lag <= place.unsqueeze(-1)).unsqueeze(-1)
        batch = torch.arange(packed.shape[0], device=own.device).view(-1, 1, 1)
        seen = torch.where(there, packed[batch, index], 0.0)  # (B, T, K, D or F)
        weight = self.weight[: lag.shape[0]]
        if self.thinning == "matrix":
            return seen.flatten(2) @ weight.flatten(0, 1)
        return (seen * weight).sum(2)


class _Weighted(_Extractor):
    """An extractor with a weight for each position: SHE, HE and WE."""

    max_len: int = argument(default=512, least=1)
    """M, the largest number of tokens in an episode."""
    index: Index = "absolute"
    """The weight of a token is that of its position ("absolute", the third-party code) or of its distance ("lag")."""


def _flops(thinning: Thinning) -> Any:
    def flops(config: dict[str, Any], grid: Grid) -> float:
        dim, (tokens,) = config["dim"], grid
        width = config["width"] or dim
        back = 0 if config["width"] is None else 2 * dim * width
        shared = 2 * dim * width + back + 2 * width + (0 if thinning == "matrix" else 2 * dim * width)
        if config.get("index") != "lag":
            brought = {"matrix": 2 * dim * width, "vector": 2 * width, "scalar": 2 * width, "none": width}[thinning]
            return float(tokens * (shared + brought))
        length = fast_length(2 * tokens)
        # of real numbers
        transform = 2.5 * length * max(length.bit_length() - 1, 1)
        kernels = dim * width if thinning == "matrix" else width
        products = 4.0 * length * (dim * width if thinning == "matrix" else width)
        return tokens * shared + transform * (dim + width + kernels) + products

    return flops


def _at_length(thinning: Thinning) -> Any:
    def at_length(tokens: int) -> dict[str, dict[str, Any]]:
        if thinning == "none":
            return {"plain": {}}
        # 64 or more leave a short example room to stream on
        plain = {"max_len": max(64, tokens)}
        # SHE by lag transforms D F kernels: too slow to measure on long inputs
        affordable = thinning != "matrix" or tokens < 256
        return {"plain": plain} | ({"lag": {**plain, "index": "lag"}} if affordable else {})

    return at_length


def _formula(brought: str, by_lag: str) -> str:
    lag = rf" \quad \text{{or, by lag, }} \frac{{1}}{{\sqrt t}} \sum_{{i \le t}} {by_lag}" if by_lag else ""
    return (
        rf"\begin{{aligned}} s_t &= \frac{{1}}{{\sqrt t}} \sum_{{i \le t}} {brought}{lag} \\ "
        r"y_t &= (x_t W_\text{adj}) \odot s_t \end{aligned}"
    )


def _info(
    name: str,
    thinning: Thinning,
    *deviations: str,
    formula: str,
    good_for: str,
    not_for: str,
    cost: str,
) -> LayerInfo:
    lag = thinning != "none"
    return LayerInfo(
        name=name,
        title="Attention Is Not All You Need Anymore",
        arxiv="2308.07661",
        formula=formula,
        good_for=good_for,
        not_for=not_for,
        cost=cost,
        flops=_flops(thinning),
        at_length=_at_length(thinning),
        causal=("strict",),
        state=("recurrent", "growing") if lag else ("recurrent",),
        masks=("padding", "reset"),
        positional=True,
        lengths="an episode of at most max_len tokens; more raise" if lag else "any",
        deviations=(
            "the paper's text could not be obtained: only its abstract was read, and one third-party code that names "
            "the paper and its sequel (2311.12678)",
            *deviations,
            "here all four forms keep the root of t: ME is the running mean times the root",
            "here the weights start from a normal distribution; the third-party code truncates it (LeCun): the "
            "variance is the same",
            "a width F other than D, with D F more parameters for a projection back, is ours",
            "padding, resets and streaming are ours",
        ),
    )


_OURS = (
    "here this form is a reconstruction of ours, a vector (HE), a number (WE) or nothing (ME) for each position after "
    "one shared projection; the abstract says only that it is cheaper than SHE: our figures say nothing about the "
    "paper's form"
)
_LONG = "the limit of max_len tokens for an episode is ours: more raise"


class SuperHighPerformanceExtractor(_Weighted):
    """SHE, with a matrix for each position; see the module for equation and shapes. Parameters ``M D F + D F``.

    Raises:
        ArgumentError: a width or room below 1, or another index.
    """

    thinning = "matrix"
    info = _info(
        "extractor-she",
        "matrix",
        "here SHE by position follows the third-party code: the root of t may come from the sequel",
        "SHE by lag is a reconstruction of ours: a causal convolution with matrices",
        _LONG,
        formula=_formula("x_i W_i", "x_i W_{t-i+1}"),
        good_for="Causal models of bounded length without attention: each position has a matrix of its own.",
        not_for="Long episodes, as it stores M D F weights: extractor-he stores M F, and a training step of softmax is "
        "faster at every measured length (256 to 16,384 tokens).",
        cost="by position: time N D^2 and M D^2 to read the weight, state D; by lag: N log N D^2, state M D",
    )


class HigherPerformanceExtractor(_Weighted):
    """HE, a reconstruction that is not from the paper: one shared projection, and a vector for each position.

    Parameters ``M F + 2 D F``.

    Raises:
        ArgumentError: a width or room below 1, or another index.
    """

    thinning = "vector"
    info = _info(
        "extractor-he",
        "vector",
        _OURS,
        _LONG,
        formula=_formula(r"(x_i W) \odot w_i", r"(x_i W) \odot w_{t-i+1}"),
        good_for="Causal models of bounded length at linear cost: each position has a vector instead of SHE's matrix.",
        not_for="Looking up a past token by its content: no weight depends on the content, so take softmax.",
        cost="by position: time N D^2, state D; by lag: N D^2 + N log N D, state M D",
    )


class WorthwhileExtractor(_Weighted):
    """WE, a reconstruction that is not from the paper: one shared projection, and a number for each position.

    Parameters ``M + 2 D F``.

    Raises:
        ArgumentError: a width or room below 1, or another index.
    """

    thinning = "scalar"
    info = _info(
        "extractor-we",
        "scalar",
        _OURS,
        _LONG,
        formula=_formula("w_i (x_i W)", "w_{t-i+1} (x_i W)"),
        good_for="Causal models of bounded length with few parameters: each position has one number.",
        not_for="Features that need memories of different length: all share one number for a position, so take "
        "extractor-he.",
        cost="by position: time N D^2, state D; by lag: N D^2 + N log N D, state M D",
    )


class MinimalistExtractor(_Extractor):
    """ME, a reconstruction that is not from the paper: one shared projection and no weight for a position.

    Parameters ``2 D F``; any length.

    Raises:
        ArgumentError: a width below 1.
    """

    thinning = "none"
    info = _info(
        "extractor-me",
        "none",
        _OURS,
        formula=_formula("x_i W", ""),
        good_for="A running mean of projected tokens: the cheapest causal layer, a baseline for the others.",
        not_for="Tasks in which the order of the past matters: its sum ignores it, so take extractor-we or softmax.",
        cost="time N D^2, state D",
    )
