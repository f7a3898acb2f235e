"""FEDformer: Frequency Enhanced Decomposed Transformer for Long-term Series Forecasting (2201.12740): the
Fourier-enhanced block.

    Q = X W_q,   Q~[k] = sum_t Q[t] exp(-2 pi i k t / T)          for M fixed frequencies k
    Y~_h[k] = Q~_h[k] R_h[k],   R_h[k] complex, E x E, for each head h
    Y = (inverse transform of Y~, all other frequencies 0) W_o

Shapes: B batch, T tokens, D width, H heads, E = D / H head width, M frequencies.

Cost: time ``O(T M D + T D^2)``, memory ``O(T (M + D))``, linear in T. The M coefficients are a product with a T x 2M
matrix: for M below a few hundred it is faster than an FFT, and it is exact under padding.

Frequency k means k turns over the input, at every length. The M frequencies are chosen once, for inputs of ``length``
tokens, and kept in a buffer. A shorter input skips those above T / 2, which do not exist there. A longer input uses the
same numbers of turns, so a mode then stands for a longer period.

The layer keeps no state: it does not stream.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, attribute, heads_argument
from manyheads.core.functional.fourier_basis import fourier_basis
from manyheads.core.functional.packing import pack, pack_order, unpack
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, modes = config["dim"], config["modes"]
    return 4.0 * tokens * dim * dim + 8.0 * tokens * modes * dim + 8.0 * modes * dim * dim / config["heads"]


class FourierBlock(Layer):
    """Fourier-enhanced block; see the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, modes below 1 or above ``length // 2 + 1``, an unknown ``select``.
    """

    info = LayerInfo(
        name="fourier-block",
        title="FEDformer: Frequency Enhanced Decomposed Transformer for Long-term Series Forecasting",
        arxiv="2201.12740",
        formula=(
            r"\begin{aligned} \tilde Q_k &= \sum_{t} (x_t W_q)\, e^{-2 \pi i k t / T}"
            r" \quad \text{for } M \text{ fixed frequencies } k \\"
            r" \tilde Y_k &= \big[\tilde Q_{k,1} R_{1,k} \;\dots\; \tilde Q_{k,H} R_{H,k}\big],"
            r" \qquad R_{h,k} \in \mathbb{C}^{E \times E} \\"
            r" Y &= \mathcal{F}^{-1}(\tilde Y)\, W_o \end{aligned}"
        ),
        good_for="Smooth or periodic series of known length, at linear cost.",
        not_for="Looking up tokens by content, as its filters do not depend on the input, and inputs below 512 tokens: "
        "softmax trains as fast there.",
        cost="time N M D, memory N (M + D), M modes",
        flops=_flops,
        at_length=lambda n: {"plain": {"length": n, "modes": min(64, max(2, n // 4))}},
        masks=("padding",),
        positional=True,
        lengths="any: mode k is k turns over the input; modes above half its length are skipped",
        deviations=(
            "here the result of frequency k goes back to frequency k; the authors' code puts the i-th chosen "
            "frequency into place i, which moves a random choice to the lowest frequencies: no effect with "
            'select="lowest"',
            "here the result is transposed to (T, D); the authors' code reads (H, E, T) as (T, H E) without a "
            "transpose: it mixes time and channels",
            "here a seed chooses the frequencies from 0 … length // 2, and a buffer keeps them; the authors' code "
            "draws them with the global generator and leaves out length // 2",
            "here modes beyond length // 2 + 1 raise; the authors' code clamps the number",
            "other lengths are ours: frequency k is k turns over any input, and frequencies above T / 2 are skipped",
            "here the number of heads is an argument; the authors' code has eight",
            "here the frequency-enhanced cross-attention (fourier-cross), the wavelet form and the decomposition are "
            "no part of the layer",
            "padding is ours",
        ),
    )

    length: int = argument(least=1)
    """Tokens of the inputs for which the frequencies are chosen; other lengths are taken too."""
    modes: int = argument(factory=lambda layer: min(64, layer.length // 2 + 1))
    """M, at most ``length // 2 + 1``; by default 64, or all if there are fewer."""
    select: Literal["random", "lowest"] = "random"
    """Which frequencies are chosen."""
    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does."""
    seed: int = 0
    """Seed of the random choice."""
    bias: bool = True
    """Biases in the two projections."""

    # (M,) int64, ascending
    frequencies: Tensor = attribute()

    def setup(self) -> None:
        dim, heads, modes, available = self.dim, self.heads, self.modes, self.length // 2 + 1
        if not 1 <= modes <= available:
            raise ArgumentError(
                f"fourier-block: modes: found {modes}, expected 1 to length // 2 + 1 = {available} "
                f"at length {self.length}"
            )
        chosen = torch.arange(modes)
        if self.select == "random":
            generator = torch.Generator().manual_seed(self.seed)
            chosen = torch.randperm(available, generator=generator)[:modes].sort().values
        self.register_buffer("frequencies", chosen)
        self.query = nn.Linear(dim, dim, bias=self.bias)
        self.output = nn.Linear(dim, dim, bias=self.bias)
        # uniform on [0, 1 / D^2) as in the authors' code; (M, H, out, in)
        shape, scale = (modes, heads, dim // heads, dim // heads), dim**-2
        self.real = nn.Parameter(torch.rand(shape) * scale)
        self.imaginary = nn.Parameter(torch.rand(shape) * scale)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        q = self.query(x)
        if mask.padding is None:
            return LayerOutput(self.output(self._filtered(q, None)))
        order, real = pack_order(mask.padding)
        packed = torch.where(real.unsqueeze(-1), pack(q, order), 0.0)
        return LayerOutput(self.output(unpack(self._filtered(packed, mask.padding.sum(1)), order, real)))

    def _filtered(self, q: Tensor, lengths: Tensor | None) -> Tensor:
        """``Q (B, T, D)`` through the filters and back; ``lengths (B,)`` if rows are padded at the right."""
        wide = q.float() if q.dtype in (torch.bfloat16, torch.float16) else q
        basis, scale = fourier_basis(q.shape[1], self.frequencies, lengths=lengths, dtype=wide.dtype)
        # the coefficients Q~, (B, M, H, E) each
        re, im = (basis.mT @ wide).unflatten(-1, (self.heads, -1)).chunk(2, 1)
        weight_re, weight_im = self.real.to(wide.dtype), self.imaginary.to(wide.dtype)

        def times(coefficients: Tensor, weight: Tensor) -> Tensor:
            return torch.einsum("bmhi,mhoi->bmho", coefficients, weight)

        # Y~, a complex product in real parts
        filtered = torch.cat(
            [times(re, weight_re) - times(im, weight_im), times(re, weight_im) + times(im, weight_re)], 1
        )
        return (basis @ (filtered.flatten(2) * scale.unsqueeze(-1))).to(q.dtype)
