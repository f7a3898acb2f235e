"""FEDformer: Frequency Enhanced Decomposed Transformer for Long-term Series Forecasting (2201.12740): the
frequency-enhanced attention in the Fourier form (FEA-f).

    Q = X W_q,  K = C W_k,  V = C W_v,   Q~[m] = sum_t Q[t] exp(-2 pi i f_m t / T)   for M fixed frequencies f_m
    A_h = s(Q~_h K~_h^T),   s(a + ib) = tanh a + i tanh b        (M x N complex weights between frequencies)
    Y~_h[m] = (A_h V~_h)[m] R_h[m],   R_h[m] complex, E x E
    Y = (inverse transform of Y~ at the frequencies f_m, all others 0) W_o

Shapes: B batch, T tokens, S context tokens, D width, H heads, E = D / H head width, M and N frequencies of the tokens
and of the context.

Cost: time ``O(T M D + S N D + M N D)``, memory ``O(T (M + D) + S (N + D) + M N H)``.

The frequencies are chosen once, for ``length`` tokens and ``context_length`` context tokens, and kept in buffers. A
shorter input skips those above half its length. The layer keeps no state: it does not stream.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, attribute, heads_argument
from manyheads.core.functional.fourier_basis import fourier_basis
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
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

    Raises:
        ArgumentError: heads that do not divide, modes below 1 or above ``length // 2 + 1``, widths or lengths below 1.
    """

    info = LayerInfo(
        name="fourier-cross",
        title="FEDformer: Frequency Enhanced Decomposed Transformer for Long-term Series Forecasting",
        arxiv="2201.12740",
        formula=(
            r"\begin{aligned} \tilde Q &= \mathcal{F}_M(X W_q), \quad \tilde K = \mathcal{F}_N(C W_k),"
            r" \quad \tilde V = \mathcal{F}_N(C W_v) \\"
            r" A_h &= \sigma(\tilde Q_h \tilde K_h^\top), \qquad \sigma(a + ib) = \tanh a + i \tanh b \\"
            r" \tilde Y_{h,m} &= (A_h \tilde V_h)_m\, R_{h,m}, \qquad R_{h,m} \in \mathbb{C}^{E \times E} \\"
            r" Y &= \mathcal{F}_M^{-1}(\tilde Y)\, W_o \end{aligned}"
        ),
        good_for="Reading a long, smooth or periodic history from a decoder, at linear cost.",
        not_for="Looking up single tokens of the history: a frequency mixes all of them, so take softmax with "
        "context_dim.",
        cost="time N M D + M^2 D, memory N (M + D), M modes",
        flops=_flops,
        at_length=lambda n: {"plain": {"length": n, "context_dim": 16, "modes": min(64, max(2, n // 4))}},
        cross=True,
        positional=True,
        # the tanh of sums over all tokens is a threshold in half precision
        discontinuous=True,
        lengths="any: mode k is k turns over the input; modes above half its length are skipped",
        deviations=(
            "here weights R for each head and frequency, as in the authors' code; the paper has none",
            "here the values have a projection of their own, as in the paper; the authors' code uses the keys",
            "here a seed chooses the frequencies from 0 … length // 2, and a buffer keeps them; the authors' code "
            "draws them with the global generator and leaves out length // 2",
            "other lengths are ours: frequencies above half of a shorter input or context are skipped",
            "here the result is not divided by D^2; the authors' code divides it, on top of weights that start at 1 / "
            "D^2: the layer contributes from the start of training here",
            "here the tanh of the real and the imaginary part, as in the authors' later code; their first releases "
            "take the tanh of the complex number, which has poles",
        ),
    )

    context_dim: int = argument(least=1)  # ty: ignore[incompatible-mutable-override]
    """Width of the context."""
    length: int = argument(least=1)
    """Tokens of the inputs for which the frequencies are chosen; other lengths are taken too."""
    context_length: int = argument(factory=lambda layer: layer.length, least=1)
    """The same of the context; ``length`` by default."""
    modes: int = argument(factory=lambda layer: min(64, layer.length // 2 + 1))
    """M, at most ``length // 2 + 1``; by default 64, or all if there are fewer. The context has N = M, or all that it
    has if they are fewer."""
    select: Literal["random", "lowest"] = "random"
    """Which frequencies are chosen."""
    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does."""
    seed: int = 0
    """Seed of the random choice."""
    bias: bool = True
    """Biases in the four projections."""

    # (M,) and (N,) int64, ascending
    frequencies: Tensor = attribute()
    context_frequencies: Tensor = attribute()

    def setup(self) -> None:
        dim, heads, modes, available = self.dim, self.heads, self.modes, self.length // 2 + 1
        if not 1 <= modes <= available:
            raise ArgumentError(
                f"fourier-cross: modes: found {modes}, expected 1 to length // 2 + 1 = {available} "
                f"at length {self.length}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        for buffer, there in (("frequencies", available), ("context_frequencies", self.context_length // 2 + 1)):
            count = min(modes, there)
            drawn = torch.randperm(there, generator=generator)[:count].sort().values
            self.register_buffer(buffer, drawn if self.select == "random" else torch.arange(count))
        self.query = nn.Linear(dim, dim, bias=self.bias)
        self.key = nn.Linear(self.context_dim, dim, bias=self.bias)
        self.value = nn.Linear(self.context_dim, dim, bias=self.bias)
        self.output = nn.Linear(dim, dim, bias=self.bias)
        # uniform on [0, 1 / D^2) as in the authors' code; (M, H, out, in)
        shape, scale = (modes, heads, dim // heads, dim // heads), dim**-2
        self.real = nn.Parameter(torch.rand(shape) * scale)
        self.imaginary = nn.Parameter(torch.rand(shape) * scale)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        assert context is not None
        if context.shape[1] == 0:
            return LayerOutput(self.output(torch.zeros_like(x)))
        parts = self.query(x), self.key(context), self.value(context)
        # complex numbers of half precision have no products
        with torch.autocast(x.device.type, enabled=False):
            signal = self._mixed(*parts)
        return LayerOutput(self.output(signal.to(x.dtype)))

    def _mixed(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Q ``(B, T, D)``, K and V ``(B, S, D)`` -> ``(B, T, D)`` before the output projection, in float32 or wider."""
        q, back, scale = self._transformed(queries, self.frequencies)
        k, _, present = self._transformed(keys, self.context_frequencies)
        v, _, _ = self._transformed(values, self.context_frequencies)
        # A, (B, H, M, N)
        weights = torch.einsum("bmhe,bnhe->bhmn", q, k)
        weights = torch.complex(weights.real.tanh(), weights.imag.tanh())
        # skip the frequencies that the context is too short for
        there = (present[: v.shape[1]] > 0).to(v.real.dtype)
        attended = torch.einsum("bhmn,bnhe->bmhe", weights, v * there.view(-1, 1, 1))
        # Y~
        weight = torch.complex(self.real.to(q.real.dtype), self.imaginary.to(q.real.dtype))
        filtered = torch.einsum("bmhi,mhoi->bmho", attended, weight).flatten(2)
        return back @ (torch.cat([filtered.real, filtered.imag], 1) * scale.unsqueeze(-1))

    def _transformed(self, part: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The complex coefficients ``(B, M, H, E)`` of ``(B, T, D)``, and basis and scale of the inverse transform."""
        wide = part.float() if part.dtype in (torch.bfloat16, torch.float16) else part
        basis, scale = fourier_basis(part.shape[1], frequencies, dtype=wide.dtype)
        re, im = (basis.mT @ wide).unflatten(-1, (self.heads, -1)).chunk(2, 1)
        return torch.complex(re.contiguous(), im.contiguous()), basis, scale
