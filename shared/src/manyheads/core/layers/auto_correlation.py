"""Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting (2106.13008).

    R(tau) = mean_d sum_t Q[t + tau, d] K[t, d]                      all delays by FFT, t + tau on a circle of T tokens
    tau_1 … tau_k = the k delays with the largest R,   k = factor ln T
    y[t] = sum_i softmax(R(tau_1) … R(tau_k))_i V[t + tau_i]

Shapes: B batch, T tokens, S context tokens, D width, H heads, E = D / H head width, k delays.

With a context (``context_dim``) K and V come from it, with zeros after its end if S < T and without its tokens from T
on if S > T, as in the authors' decoder.

Cost: time ``O(T log T D + T D^2)``, memory ``O(T D)``. Rolling and summing is a correlation of the values with
weights at the delays: a second FFT for any k.

In evaluation each sample selects its own delays. In training the batch shares the delays with the largest mean R, and
each sample keeps its own weights: rows of a batch then depend on each other. With padding the circles of the rows have
different lengths, so that each sample selects its own delays in training too.

The layer keeps no state: it does not stream.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import heads_argument
from manyheads.core.functional.circular_correlation import circular_correlation
from manyheads.core.functional.packing import pack, pack_order, unpack
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim = config["dim"]
    transform = 2.5 * tokens * max(1.0, math.log2(tokens))  # of one real channel
    return 8.0 * tokens * dim * dim + 4.0 * dim * transform + 8.0 * tokens * dim


class AutoCorrelation(Layer):
    """Auto-Correlation; see the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, a factor that is not above 0, a ``context_dim`` below 1.
    """

    info = LayerInfo(
        name="auto-correlation",
        title="Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting",
        arxiv="2106.13008",
        formula=(
            r"\begin{aligned} R(\tau) &= \tfrac{1}{D} \sum_d \sum_t Q_{t + \tau, d} K_{t, d}, \qquad"
            r" \{\tau_1, \dots, \tau_k\} = \operatorname{top}_k R, \quad k = \lfloor c \ln T \rfloor \\"
            r" y_t &= W_o \sum_i \operatorname{softmax}(R(\tau_1), \dots, R(\tau_k))_i\, V_{t + \tau_i} \end{aligned}"
        ),
        good_for="Series with strong periods: it aligns whole cycles instead of single steps.",
        not_for="Causal models and look-ups of single tokens by content: take softmax.",
        cost="time N log N D, memory N D",
        flops=_flops,
        at_length=lambda n: {"plain": {}},
        cross=True,
        masks=("padding",),
        positional=True,
        linear_in_value=True,
        discontinuous=True,
        deviations=(
            "here one set of delays for all heads, from R averaged over heads and channels, as in the authors' code; "
            "the paper's equation gives each head its own (per_head=True)",
            "here R is a sum over time, as in the authors' code; the paper's equation (3) is a mean: the softmax "
            "sharpens with T",
            "here the batch shares the delays with the largest mean R in training, as in the authors' code, except "
            "with padding",
            "here no causal form, as a roll brings the end of the series to its start; the authors' code takes a mask "
            "and ignores it",
            "here series decomposition is no part of the layer (blocks.decomposition)",
            "padding is ours",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does. Without ``per_head`` it
    changes only what ``mixing_matrix`` shows."""
    factor: float = 1.0
    """c of ``k = c ln T``, rounded down, at least 1 and at most T."""
    per_head: bool = False
    """Each head selects its own delays."""
    context_dim: int | None = None
    """Width of the context for cross-correlation, which takes no padding."""
    bias: bool = True
    """Biases in the four projections."""

    def setup(self) -> None:
        dim, context_dim, bias = self.dim, self.context_dim, self.bias
        if not 0 < self.factor < math.inf:
            raise ArgumentError(f"auto-correlation: factor: found {self.factor}, expected a number above 0")
        if context_dim is not None and context_dim < 1:
            raise ArgumentError(f"auto-correlation: context_dim: found {context_dim}, expected 1 or more, or None")
        source = dim if context_dim is None else context_dim
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(source, dim, bias=bias)
        self.value = nn.Linear(source, dim, bias=bias)
        self.output = nn.Linear(dim, dim, bias=bias)

    @property
    def masks(self) -> tuple[str, ...]:
        return ("padding",) if self.context_dim is None else ()

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        if context is not None:
            room = x.shape[1] - context.shape[1]
            k, v = (nn.functional.pad(part(context), (0, 0, 0, room)) for part in (self.key, self.value))
            return LayerOutput(self.output(self._mixed(self.query(x), k, v, None)))
        parts = (self.query(x), self.key(x), self.value(x))
        if mask.padding is None:
            return LayerOutput(self.output(self._mixed(*parts, None)))
        order, real = pack_order(mask.padding)
        packed = (torch.where(real.unsqueeze(-1), pack(part, order), 0.0) for part in parts)
        return LayerOutput(self.output(unpack(self._mixed(*packed, mask.padding.sum(1)), order, real)))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        batch, tokens, _ = q.shape
        groups = self.heads if self.per_head else 1

        def channels_first(part: Tensor) -> Tensor:
            # torch copies a transposed matrix in tiles, but a batch of them element by element: nine times slower;
            # a correlation of half-precision values may exceed their range
            wide = part.to(torch.promote_types(part.dtype, torch.float32))
            return wide.flatten(0, 1).T.contiguous().view(groups, -1, batch, tokens)

        dtype = v.dtype
        q, k, v = (channels_first(part) for part in (q, k, v))
        correlation = circular_correlation(q, k, lengths=lengths, mean=-3)
        weights = self._weights(correlation, lengths).unsqueeze(1)
        rolled = circular_correlation(v, weights, lengths=lengths)
        return rolled.flatten(0, 1).permute(1, 2, 0).to(dtype)

    def _weights(self, correlation: Tensor, lengths: Tensor | None) -> Tensor:
        """``(G, B, T)`` -> the same shape: softmax at the selected delays, 0 elsewhere."""
        tokens = correlation.shape[-1]
        count = min(tokens, max(1, int(self.factor * math.log(tokens))))
        if lengths is not None:
            delay, n = torch.arange(tokens, device=correlation.device), lengths.clamp(min=1).unsqueeze(1)
            found, index = correlation.masked_fill(delay >= n, float("-inf")).topk(count)
            own = torch.minimum((self.factor * n.to(torch.float64).log()).to(torch.int64).clamp(min=1), n)
            found = torch.where(delay[:count] < own, found, float("-inf"))
        elif self.training:
            index = correlation.mean(1, keepdim=True).topk(count).indices.expand(-1, correlation.shape[1], -1)
            found = correlation.gather(-1, index)
        else:
            found, index = correlation.topk(count)
        return torch.zeros_like(correlation).scatter(-1, index, found.softmax(-1))
