"""FEDformer: Frequency Enhanced Decomposed Transformer for Long-term Series Forecasting (2201.12740): the
Fourier-enhanced block.

    Q = X W_q,   Q~[k] = sum_t Q[t] exp(-2 pi i k t / T)          for M fixed frequencies k
    Y~_h[k] = Q~_h[k] R_h[k],   R_h[k] complex, E x E, for each head h
    Y = (inverse transform of Y~, all other frequencies 0) W_o

Shapes: B batch, T tokens, D width, H heads, E = D / H head width, M frequencies.

Cost: time ``O(T M D + T D^2)``, memory ``O(T (M + D))``: linear in T, as the M coefficients are a product with a T x 2M
matrix (for M below some hundred that is faster than an FFT, and exact under padding).

Frequency k means k turns over the input, whatever its length: the M frequencies are chosen once, for inputs of
``length`` tokens, and kept in a buffer; at a shorter input those above T / 2 do not exist and are skipped, at a longer
one the same numbers of turns are used, so that a mode stands for a longer period.

Differs from the paper: the result of frequency k goes back to frequency k; the authors' code puts the i-th chosen
frequency into place i, so that a random choice is moved to the lowest frequencies (the same for ``select="lowest"``).
Their code also reads the (H, E, T) result as (T, H E) without a transpose, which mixes time and channels; ours
transposes. They choose among ``0 … length // 2 - 1``, we include ``length // 2``, and clamp the number of modes where
we raise. The frequency-enhanced cross-attention, the wavelet form and the decomposition are no part of the layer.
Padding is ours.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.functional.fourier_basis import fourier_basis
from manyheads.core.functional.packing import pack, pack_order, unpack
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput, head_count
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, modes = config["dim"], config["modes"]
    return 4.0 * tokens * dim * dim + 8.0 * tokens * modes * dim + 8.0 * modes * dim * dim / config["heads"]


class FourierBlock(Layer):
    """Fourier-enhanced block; see the module for equation and shapes.

    Args:
        dim: width D.
        length: tokens of the inputs for which the frequencies are chosen; others are taken too.
        modes: M, at most ``length // 2 + 1``. None for 64, or as many as there are.
        select: frequencies at "random" or the "lowest".
        heads: H; divides ``dim``. None for the largest power of two up to 8 that does.
        seed: of the random choice.
        bias: biases in the two projections.

    Raises:
        ArgumentError: heads that do not divide, modes below 1 or above ``length // 2 + 1``, an unknown ``select``.
    """

    info = LayerInfo(
        name="fourier-block",
        title="FEDformer: Frequency Enhanced Decomposed Transformer for Long-term Series Forecasting",
        arxiv="2201.12740",
        good_for="Smooth or periodic series of known length, at linear cost.",
        cost="time N M D, memory N (M + D), M modes",
        flops=_flops,
        at_length=lambda n: {"plain": {"length": n, "modes": min(64, n // 2 + 1)}},
        masks=("padding",),
        positional=True,
        lengths="any: mode k is k turns over the input; modes above half its length are skipped",
        deviations=(
            "frequency k goes back to k; the authors' code moves random choices to the lowest frequencies",
            "the result is transposed to (T, D); the authors' code reinterprets it",
            "modes beyond length // 2 + 1 raise; the authors' code clamps",
        ),
    )

    frequencies: Tensor  # (M,) int64, ascending

    def __init__(
        self,
        dim: int,
        *,
        length: int,
        modes: int | None = None,
        select: Literal["random", "lowest"] = "random",
        heads: int | None = None,
        seed: int = 0,
        bias: bool = True,
    ) -> None:
        heads = head_count("fourier-block", dim, heads)
        available = length // 2 + 1
        modes = min(64, available) if modes is None else modes
        super().__init__(dim, length=length, modes=modes, select=select, heads=heads, seed=seed, bias=bias)
        if length < 1:
            raise ArgumentError(f"fourier-block: length: found {length}, expected 1 or more")
        if not 1 <= modes <= available:
            raise ArgumentError(
                f"fourier-block: modes: found {modes}, expected 1 to length // 2 + 1 = {available} at length {length}"
            )
        self.heads = heads
        chosen = torch.arange(modes)
        if select == "random":
            chosen = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:modes].sort().values
        self.register_buffer("frequencies", chosen)
        self.query = nn.Linear(dim, dim, bias=bias)
        self.output = nn.Linear(dim, dim, bias=bias)
        # uniform on [0, 1 / D^2) as in the authors' code
        shape, scale = (modes, heads, dim // heads, dim // heads), dim**-2
        self.real = nn.Parameter(torch.rand(shape) * scale)  # (M, H, out, in)
        self.imaginary = nn.Parameter(torch.rand(shape) * scale)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        q = self.query(x)
        if mask.padding is None:
            return LayerOutput(self.output(self._filtered(q, None)))
        order, real = pack_order(mask.padding)
        packed = torch.where(real.unsqueeze(-1), pack(q, order), 0.0)
        return LayerOutput(self.output(unpack(self._filtered(packed, mask.padding.sum(1)), order, real)))

    def _filtered(self, q: Tensor, lengths: Tensor | None) -> Tensor:
        wide = q.float() if q.dtype in (torch.bfloat16, torch.float16) else q
        basis, scale = fourier_basis(q.shape[1], self.frequencies, lengths=lengths, dtype=wide.dtype)
        re, im = (basis.mT @ wide).unflatten(-1, (self.heads, -1)).chunk(2, 1)  # (B, M, H, E)
        weight_re, weight_im = self.real.to(wide.dtype), self.imaginary.to(wide.dtype)

        def times(coefficients: Tensor, weight: Tensor) -> Tensor:
            return torch.einsum("bmhi,mhoi->bmho", coefficients, weight)

        filtered = torch.cat(
            [times(re, weight_re) - times(im, weight_im), times(re, weight_im) + times(im, weight_re)], 1
        )
        return (basis @ (filtered.flatten(2) * scale.unsqueeze(-1))).to(q.dtype)
