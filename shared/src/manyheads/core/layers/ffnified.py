"""MetaMixer Is All You Need (2406.02021): FFNified attention, whose keys and values are depthwise convolutions.

    q = N(W_q x),   a = GELU(K * q + b_k),   y = V * a + b_v

``*`` is a depthwise convolution with zeros outside the grid: queries meet the keys K, one k1 x k1 kernel for each
channel, and the activation, in place of a softmax, weighs the values V, one k2 x k2 kernel for each channel. Keys and
values are the same at every place. An output sees ``k1 + k2 - 1`` tokens along each axis.

In training a kernel larger than ``small_kernel`` is the sum of two branches, the large and the small one, each with its
own batch norm; :meth:`FFNified.fused` folds them, and the norm of the queries, into one convolution each (RepVGG).

``ffnified`` works on grids of two axes, ``ffnified-sequence`` on sequences. Its causal form pads on the left only. Away
from the start it is the centred form, ``(k1 + k2) / 2 - 1`` tokens later. Its state holds the last ``k1 - 1`` queries
and the last ``k2 - 1`` activations.

Which norm: "batch" (as published) is an affine map in evaluation, so that rows and tokens are independent there and the
layer can be folded; in training its statistics couple all rows and tokens, later ones included. "layer" norms each
token on its own, in training too.

Shapes: B batch, ``(n, m)`` or T tokens, N of them, D width.

Cost: time ``O(N D^2 + N D (k1^2 + k2^2))`` on a grid, ``O(N D^2 + N D (k1 + k2))`` on a sequence, memory ``O(N D)``; a
streamed token ``O(D^2 + D (k1 + k2))``, the state has ``D (k1 + k2 - 2)`` numbers.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.batch_norm import SequenceBatchNorm, affine_of
from manyheads.core.blocks.depthwise import DepthwiseConvolution
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument
from manyheads.core.functional.episode_rows import by_episode
from manyheads.core.functional.packing import take_along
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput, StateKind, blank
from manyheads.core.mask import Mask
from manyheads.core.state import State


class FFNifiedState(NamedTuple):
    queries: Tensor  # (B, k1 - 1, D), the latest ones
    activations: Tensor  # (B, k2 - 1, D), the latest ones


def _flops(config: dict[str, Any], grid: Grid) -> float:
    dim, tokens, taps = config["dim"], math.prod(grid), 0
    kernel, small = config.get("kernel", 7), config.get("small_kernel", 3)
    for side in (kernel, config.get("value_kernel") or kernel):
        taps += side ** len(grid) + (small ** len(grid) if small and small < side else 0)
    return 2.0 * tokens * dim * (dim + taps)


class FFNified(Layer):
    """FFNified attention on grids of two axes; see the module for equation and shapes.

    Raises:
        ArgumentError: an even kernel.
    """

    info = LayerInfo(
        name="ffnified",
        title="MetaMixer Is All You Need",
        arxiv="2406.02021",
        formula=(
            r"q = \mathrm{N}(W_q x), \qquad y = V \circledast \operatorname{GELU}(K \circledast q + b_K) + b_V, \qquad"
            r" \circledast \text{ depthwise}"
        ),
        good_for="Large images, feature maps and phones: attention's shape at the cost of two depthwise convolutions.",
        not_for="Relations between distant tokens, or by content: it sees k1 + k2 - 1 along an axis. Take axial.",
        cost="time N D^2 + N D (k1^2 + k2^2), memory N D",
        flops=_flops,
        at_length=lambda n: {"plain": {}, "small": {"kernel": 3}},
        grid_ranks=(2,),
        masks=("padding",),
        positional=True,
        full_context=False,
        deviations=(
            "the residual connection, layer scale and drop path of the paper's block are not part of the layer",
            "here norm='layer' and norm='none' beside the batch norm of the paper",
            "here batch norm leaves padding out of its statistics",
            "padding is ours: it is 0 for both convolutions, as is the outside of the grid",
        ),
    )

    kernel: int = argument(default=7, least=1)
    """k1, the side of the keys; odd."""
    value_kernel: int = argument(factory=lambda layer: layer.kernel, least=1)
    """k2, the side of the values; odd, by default ``kernel``."""
    small_kernel: int | None = argument(default=3, least=1)
    """The side of the second branch of a kernel that is larger than it; odd. None for one branch."""
    norm: Literal["batch", "layer", "none"] = "batch"
    """N, of the queries; "batch", as published, is also that of the branches of a pair."""

    def setup(self) -> None:
        for name in ("kernel", "value_kernel", "small_kernel"):
            side = getattr(self, name)
            if side is not None and side % 2 == 0:
                raise ArgumentError(f"{self.info.name}: {name}: found {side}, expected an odd number")
        self.query = nn.Linear(self.dim, self.dim, bias=self.norm == "none")
        norms = {"batch": SequenceBatchNorm, "layer": nn.LayerNorm, "none": nn.Identity}
        self.query_norm = norms[self.norm](self.dim)
        self.keys, self.values = self._convolution(self.kernel), self._convolution(self.value_kernel)

    def _convolution(self, side: int) -> DepthwiseConvolution:
        small = self.small_kernel if self.small_kernel is not None and self.small_kernel < side else None
        return DepthwiseConvolution(
            self.dim,
            self._sides(side),
            small=None if small is None else self._sides(small),
            norm=small is not None and self.norm == "batch",
        )

    def _sides(self, side: int) -> tuple[int, int]:
        return side, side

    def fused(self) -> FFNified:
        """Return a layer with one convolution for each pair that computes the same in evaluation.

        Its queries have a bias in place of a batch norm; a layer norm stays.
        """
        norm = "layer" if self.norm == "layer" else "none"
        config: dict[str, Any] = {**self.config, "small_kernel": None, "norm": norm}
        made = type(self)(**config)
        made.keys, made.values = self.keys.fused(), self.values.fused()
        if isinstance(self.query_norm, SequenceBatchNorm):
            scale, shift = affine_of(self.query_norm)
            made.query.weight = nn.Parameter(self.query.weight.detach() * scale.unsqueeze(1))
            made.query.bias = nn.Parameter(shift)
        else:
            made.query, made.query_norm = copy.deepcopy(self.query), copy.deepcopy(self.query_norm)
        return made.train(self.training)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        real = mask.padding
        q = self._queries(x.flatten(1, 2), real).view(x.shape)
        a = functional.gelu(self.keys(q if real is None else blank(q, real), real))
        return LayerOutput(self.values(a if real is None else blank(a, real), real))

    def _queries(self, x: Tensor, real: Tensor | None) -> Tensor:
        """``(B, T, D)``"""
        q = self.query(x)
        return self.query_norm(q, real) if isinstance(self.query_norm, SequenceBatchNorm) else self.query_norm(q)


class FFNifiedSequence(FFNified):
    """FFNified attention on sequences, centred or causal; see the module for equation and shapes.

    Raises:
        ArgumentError: an even kernel.
    """

    info = LayerInfo(
        name="ffnified-sequence",
        title="MetaMixer Is All You Need",
        arxiv="2406.02021",
        formula=(
            r"q = \mathrm{N}(W_q x), \qquad y_t = b_V + \sum_{j} V_j\, \operatorname{GELU}\!\Big(b_K +"
            r" \sum_i K_i\, q_{t - j - i}\Big)"
        ),
        good_for="Streams of audio and sensors on small devices: a state of constant size, two short convolutions.",
        not_for="Relations between distant tokens: it sees k1 + k2 - 1 of them. Take lmu, or softmax with a window.",
        cost="time N D^2 + N D (k1 + k2), memory N D; a streamed token D^2 + D (k1 + k2), state D (k1 + k2 - 2)",
        flops=_flops,
        at_length=lambda n: {"plain": {}, "causal": {"causal": True}},
        causal=("no", "strict"),
        state=("none", "window"),
        streams_with=({"causal": True},),
        masks=("padding", "reset"),
        positional=True,
        full_context=False,
        deviations=(
            "the paper's forecaster mixes variables in place of W_q, and adds its residual connections",
            "here the queries have a layer norm by default, which keeps training causal; the paper has batch norm",
            "the causal form, its state, padding and resets are ours",
        ),
    )

    norm: Literal["batch", "layer", "none"] = "layer"
    """N, of the queries; "batch", as published, is also that of the branches of a pair."""
    causal: bool = False
    """Each token sees itself and earlier tokens only."""

    def _sides(self, side: int) -> tuple[int, int]:
        return 1, side

    @property
    def causality(self) -> Causality:
        return "strict" if self.causal else "no"

    @property
    def state_kind(self) -> StateKind:
        return "window" if self.causal else "none"

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        if not self.causal:
            return ()
        sizes = (self.kernel - 1, self.value_kernel - 1)
        return FFNifiedState(*(torch.zeros(batch, size, self.dim, device=device, dtype=dtype) for size in sizes))

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        return LayerOutput(*by_episode(self._run, x, state, self.init_state, mask.padding, mask.reset))

    def _run(self, x: Tensor, lengths: Tensor | None, state: State) -> tuple[Tensor, State]:
        """The layer on rows with ``lengths`` real tokens each, on the left."""
        real = None if lengths is None else torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
        q = self._queries(x, real)
        q = q if real is None else blank(q, real)
        a, queries = self._convolved(self.keys, q, state.queries if self.causal else None, lengths, real)
        a = functional.gelu(a)
        a = a if real is None else blank(a, real)
        y, activations = self._convolved(self.values, a, state.activations if self.causal else None, lengths, real)
        return y, FFNifiedState(queries, activations) if self.causal else ()

    def _convolved(
        self, part: DepthwiseConvolution, x: Tensor, before: Tensor | None, lengths: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The convolution of a sequence, a grid of one row, and the last frames of the input."""
        if before is None:
            return part(x.unsqueeze(1), real).squeeze(1), x[:, :0]
        seen, held = torch.cat([before.to(x.dtype), x], 1), before.shape[1]
        if lengths is None:
            last = seen[:, x.shape[1] :]
        else:
            last = take_along(seen, lengths.unsqueeze(1) + torch.arange(held, device=x.device))
        return part(seen.unsqueeze(1), real, pad=False).squeeze(1), last
