"""ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases (2103.10697): gated positional
self-attention (GPSA) on a grid of two axes.

    content_h    = softmax_j(q_i . k_j / sqrt(E))
    positional_h = softmax_j(w_h . (dx, dy, dx^2 + dy^2)),    (dx, dy) the place of the key minus that of the query
    y            = W_o [((1 - g_h) content_h + g_h positional_h) v]_h + b_o,    g_h = sigmoid(lambda_h)

Local initialisation with strength alpha: ``W_v = I`` and ``w_h = alpha (2 c_x, 2 c_y, -1)``, so that head h looks at
offset c_h with weights ``exp(-alpha |d - c_h|^2)``. The centres are a square of offsets around 0: with many heads and a
large alpha the layer begins as a convolution.

The positional logit is a sum over the two axes, and its softmax is a product of one softmax along each: it is applied
axis by axis, and the fused kernel computes the content part. Only padding needs the ``N x N`` map.

Shapes: B batch, ``(n, m)`` the grid, N = n m its tokens, D width, H heads, E = D / H head width.

Cost: time ``O(N^2 D + N (n + m) D + N D^2)``, memory ``O(N D)``; with padding ``O(B H N^2)``.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import heads_argument
from manyheads.core.functional.attention import attention
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    dim, tokens = config["dim"], math.prod(grid)
    return 8.0 * tokens * dim * dim + 4.0 * tokens * tokens * dim + 2.0 * tokens * sum(grid) * dim


class GatedPositionalAttention(Layer):
    """Gated positional self-attention; see the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, a negative alpha.
    """

    info = LayerInfo(
        name="gpsa",
        title="ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
        arxiv="2103.10697",
        formula=(
            r"\begin{aligned} A_h &= (1 - g_h) \operatorname{softmax}_j\!\left(\frac{q_i \cdot k_j}{\sqrt{E}}\right)"
            r" + g_h \operatorname{softmax}_j\big(w_h \cdot (\delta_x, \delta_y, \|\delta\|^2)\big), \quad"
            r" g_h = \sigma(\lambda_h) \\ y &= W_o\, [A_h v]_h + b_o \end{aligned}"
        ),
        good_for="Images with few training examples: it begins as a soft convolution and can learn to leave it.",
        not_for="Grids of many thousand cells: time grows with N^2. Take ffnified or axial.",
        cost="time N^2 D + N D^2, memory N D; with padding memory H N^2 a row of the batch",
        flops=_flops,
        at_length=lambda n: {"plain": {"heads": 4}},
        grid_ranks=(2,),
        masks=("padding",),
        positional=True,
        linear_in_value=True,
        deviations=(
            "here the positional softmax is applied as a product of one softmax along each axis: the same function, "
            "in time N (n + m) D in place of N^2 D",
            "here the bias of the positional logits is left out: softmax does not see it",
            "here any grid of two axes; the authors' code takes squares",
            "here heads beyond a square number get the nearest offsets of the next ring; in the authors' code their "
            "positional weights stay random",
            "rows of the mixed attention are not divided by their sum again, which is 1",
            "here weights other than W_v, w and lambda begin as in torch's linear layer",
            "padding is ours",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does; 4, 9 or 16 fill a square."""
    alpha: float | None = 1.0
    """Locality strength of the initialisation, 1 over twice the squared width of what a head looks at; None for no
    local initialisation: then ``w`` is small and random and ``W_v`` as in other layers."""
    gate: float = 1.0
    """Initial lambda of every head: the share ``sigmoid(lambda)`` of the attention is positional."""
    bias: bool = False
    """Biases of queries, keys and values; the output has one."""

    def setup(self) -> None:
        if self.alpha is not None and self.alpha < 0:
            raise ArgumentError(f"gpsa: alpha: found {self.alpha}, expected None or a number, 0 or more")
        self.query, self.key, self.value = (nn.Linear(self.dim, self.dim, bias=self.bias) for _ in range(3))
        self.output = nn.Linear(self.dim, self.dim)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.heads, 3), std=0.02))
        self.gates = nn.Parameter(torch.full((self.heads,), self.gate))
        if self.alpha is not None:
            centres = torch.tensor(head_centres(self.heads))
            local = torch.cat([2 * centres, -torch.ones(self.heads, 1)], 1)
            with torch.no_grad():
                self.position.copy_(self.alpha * local)
                nn.init.eye_(self.value.weight)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        allowed = None if mask.padding is None else mask.padding[:, None, None, :]
        content = attention(q, k, v, allowed=allowed)
        positional = self._by_position(v, x.shape[1:3], mask.padding)
        gate = torch.sigmoid(self.gates)[:, None, None]
        mixed = (1 - gate) * content + gate * positional
        return LayerOutput(self.output(mixed.transpose(1, 2).reshape(x.shape)))

    def _split(self, x: Tensor) -> Tensor:
        """``(B, n, m, D)`` -> ``(B, H, N, E)``."""
        return x.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _by_position(self, v: Tensor, grid: tuple[int, ...], real: Tensor | None) -> Tensor:
        """The positional attention of the values, ``(B, H, N, E)``."""
        height, width = grid
        across, down, curve = self.position.unbind(1)
        rows, columns = _logits(down, curve, height), _logits(across, curve, width)
        if real is None:
            lines = columns.softmax(-1).unsqueeze(1) @ v.unflatten(2, (height, width))
            return (rows.softmax(-1) @ lines.flatten(3)).view(v.shape)
        logits = rows[:, :, None, :, None] + columns[:, None, :, None, :]
        logits = logits.flatten(3, 4).flatten(1, 2).masked_fill(~real[:, None, None, :], -math.inf)
        # a row without a real token would give NaN
        some = real.any(1)[:, None, None, None]
        return torch.where(some, logits, 0.0).softmax(-1) @ v


def _logits(slope: Tensor, curve: Tensor, size: int) -> Tensor:
    """``(H, size, size)``: the share of one axis in the positional logits of each query and key."""
    place = torch.arange(size, device=slope.device, dtype=slope.dtype)
    offset = place - place[:, None]
    return slope[:, None, None] * offset + curve[:, None, None] * offset.square()


def head_centres(heads: int) -> list[tuple[float, float]]:
    """Return the offset (x, y) that each head looks at first: ring by ring around 0, the nearest first.

    With k the integer root of ``heads`` the offsets are whole numbers for an odd k and halves for an even one, so that
    k^2 heads fill a square.
    """
    side = math.isqrt(heads)
    first = -(side - 1) / 2 - 1
    line = [first + step for step in range(side + 2)]
    offsets = [(x, y) for y in line for x in line]
    return sorted(offsets, key=lambda o: (max(abs(o[0]), abs(o[1])), o[0] ** 2 + o[1] ** 2))[:heads]
