"""FEDformer: Frequency Enhanced Decomposed Transformer for Long-term Series Forecasting (2201.12740): the
frequency-enhanced attention in the Fourier form (FEA-f).

    Q = X W_q,  K = C W_k,  V = C W_v,   Q~[m] = sum_t Q[t] exp(-2 pi i f_m t / T)   for M fixed frequencies f_m
    A_h = s(Q~_h K~_h^T),   s(a + ib) = tanh a + i tanh b        (M x N complex weights between frequencies)
    Y~_h[m] = (A_h V~_h)[m] R_h[m],   R_h[m] complex, E x E
    Y = (inverse transform of Y~ at the frequencies f_m, all others 0) W_o

Shapes: B batch, T tokens, S context tokens, D width, H heads, E = D / H head width, M and N frequencies of the tokens
and of the context.

Cost: time ``O(T M D + S N D + M N D)``, memory ``O(T (M + D) + S (N + D) + M N H)``.

The frequencies are chosen once, for ``length`` tokens and ``context_length`` context tokens, and kept in buffers; those
above half of a shorter input are skipped.

Differs from the paper: R is in the authors' code only. Their code takes the keys for the values, uses the frequencies
``0 … length // 2 - 1`` (we include ``length // 2``), and divides the result by D^2 on top of weights that start at
1 / D^2; ours does not divide. Their tanh is that of a complex number in the first releases, which has poles, and the
tanh of both parts later, as here.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.functional.fourier_basis import fourier_basis
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput, head_count
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, modes = config["dim"], config["modes"]
    transforms = 12.0 * tokens * modes * dim
    return (
        8.0 * tokens * dim * dim + transforms + 16.0 * modes * modes * dim + 8.0 * modes * dim * dim / config["heads"]
    )


class FourierCrossAttention(Layer):
    """Frequency-enhanced attention; see the module for equation and shapes.

    Args:
        dim: width D.
        context_dim: width of the context.
        length: tokens of the inputs for which the frequencies are chosen; others are taken too.
        context_length: the same of the context; ``length`` by default.
        modes: M, at most ``length // 2 + 1``; the context has as many, or all that it has. None for 64, or as many as
            there are.
        select: frequencies at "random" or the "lowest".
        heads: H; divides ``dim``. None for the largest power of two up to 8 that does.
        seed: of the random choice.
        bias: biases in the four projections.

    Raises:
        ArgumentError: heads that do not divide, modes below 1 or above ``length // 2 + 1``, lengths below 1.
    """

    info = LayerInfo(
        name="fourier-cross",
        title="FEDformer: Frequency Enhanced Decomposed Transformer for Long-term Series Forecasting",
        arxiv="2201.12740",
        good_for="Reading a long, smooth or periodic history from a decoder, at linear cost.",
        cost="time N M D + M^2 D, memory N (M + D), M modes",
        flops=_flops,
        at_length=lambda n: {"plain": {"length": n, "context_dim": 16, "modes": min(64, n // 2 + 1)}},
        cross=True,
        positional=True,
        discontinuous=True,  # the tanh of sums over all tokens is a threshold in half precision
        lengths="any: mode k is k turns over the input; modes above half its length are skipped",
        deviations=(
            "the values are a projection of their own; the authors' code uses the keys",
            "the result is not divided by D^2 a second time",
            "tanh of the real and the imaginary part, as in the authors' later code",
        ),
    )

    frequencies: Tensor  # (M,) int64, ascending
    context_frequencies: Tensor  # (N,)

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int,
        length: int,
        context_length: int | None = None,
        modes: int | None = None,
        select: Literal["random", "lowest"] = "random",
        heads: int | None = None,
        seed: int = 0,
        bias: bool = True,
    ) -> None:
        name = "fourier-cross"
        heads = head_count(name, dim, heads)
        context_length = length if context_length is None else context_length
        available = length // 2 + 1
        modes = min(64, available) if modes is None else modes
        super().__init__(
            dim,
            context_dim=context_dim,
            length=length,
            context_length=context_length,
            modes=modes,
            select=select,
            heads=heads,
            seed=seed,
            bias=bias,
        )
        for argument, value in (("context_dim", context_dim), ("length", length), ("context_length", context_length)):
            if value < 1:
                raise ArgumentError(f"{name}: {argument}: found {value}, expected 1 or more")
        if not 1 <= modes <= available:
            raise ArgumentError(
                f"{name}: modes: found {modes}, expected 1 to length // 2 + 1 = {available} at length {length}"
            )
        self.heads, self.context_dim = heads, context_dim
        generator = torch.Generator().manual_seed(seed)
        for buffer, there in (("frequencies", available), ("context_frequencies", context_length // 2 + 1)):
            count = min(modes, there)
            drawn = torch.randperm(there, generator=generator)[:count].sort().values
            self.register_buffer(buffer, drawn if select == "random" else torch.arange(count))
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(context_dim, dim, bias=bias)
        self.value = nn.Linear(context_dim, dim, bias=bias)
        self.output = nn.Linear(dim, dim, bias=bias)
        # uniform on [0, 1 / D^2) as in the authors' code
        shape, scale = (modes, heads, dim // heads, dim // heads), dim**-2
        self.real = nn.Parameter(torch.rand(shape) * scale)  # (M, H, out, in)
        self.imaginary = nn.Parameter(torch.rand(shape) * scale)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        assert context is not None
        if context.shape[1] == 0:
            return LayerOutput(self.output(torch.zeros_like(x)))
        parts = self.query(x), self.key(context), self.value(context)
        with torch.autocast(x.device.type, enabled=False):  # there are no products of half precision complex numbers
            signal = self._mixed(*parts)
        return LayerOutput(self.output(signal.to(x.dtype)))

    def _mixed(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """``(B, T, D)``, ``(B, S, D)`` twice -> ``(B, T, D)``, in float32 at least."""
        q, back, scale = self._transformed(queries, self.frequencies)
        k, _, present = self._transformed(keys, self.context_frequencies)
        v, _, _ = self._transformed(values, self.context_frequencies)
        weights = torch.einsum("bmhe,bnhe->bhmn", q, k)
        weights = torch.complex(weights.real.tanh(), weights.imag.tanh())
        # frequencies that the context is too short for are skipped
        there = (present[: v.shape[1]] > 0).to(v.real.dtype)
        attended = torch.einsum("bhmn,bnhe->bmhe", weights, v * there.view(-1, 1, 1))
        weight = torch.complex(self.real.to(q.real.dtype), self.imaginary.to(q.real.dtype))
        filtered = torch.einsum("bmhi,mhoi->bmho", attended, weight).flatten(2)
        return back @ (torch.cat([filtered.real, filtered.imag], 1) * scale.unsqueeze(-1))

    def _transformed(self, part: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, T, D)`` -> coefficients ``(B, M, H, E)`` complex; the basis and the scale that lead back."""
        wide = part.float() if part.dtype in (torch.bfloat16, torch.float16) else part
        basis, scale = fourier_basis(part.shape[1], frequencies, dtype=wide.dtype)
        re, im = (basis.mT @ wide).unflatten(-1, (self.heads, -1)).chunk(2, 1)
        return torch.complex(re.contiguous(), im.contiguous()), basis, scale
