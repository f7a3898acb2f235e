"""SG-Former: Self-guided Transformer with Evolving Token Reallocation (2308.12216): hybrid-scale, then self-guided
attention.

    u, S = hybrid(x),   y = u + guided(LN(x + u), S)

**Hybrid-scale.** Half of the heads (rounded up) see the whole grid coarsely, the others a window of w x w cells finely:

    c = GELU(LN(Conv_{r x r, stride r}(x))),  A_1 = softmax(q_1 . K_1 c / sqrt(E)),  A_2 = softmax(q_2 . k_2 / sqrt(E))
    u = W_o ([A_1 V_1 c, A_2 v_2] + L(x)),   L local positions (LePE)

The significance of a cell is the attention that it gets, the mean over heads and queries:

    S = up(mean A_1) + mean A_2   without a gradient;   sum of S = r^2 + number of windows, on whole blocks and windows

**Self-guided.** Every cell sees keys of unequal grain. The cells z are sorted by S (stable) and split into a quarter, a
half and a quarter, or two halves. Each g consecutive cells of a part are merged into one token; g is large where S is
small:

    t_m = sum_i w_i z_{o(m g + i)} + b;   guided = W_o (softmax(q . K t / sqrt(E)) V t + L(z))

Shapes: B batch, ``(n, m)`` the grid, N its cells, D width, H heads, E = D / H head width, M merged tokens.

Cost: time ``O(N D^2 + N (N / r^2 + w^2 + M) D)``, memory ``O(N D + N (N / r^2 + w^2) H)``; M is about ``N / r^2``.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.depthwise import LocalPositions
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, heads_argument
from manyheads.core.functional.attention import attention
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def group_sizes(ratio: int) -> tuple[int, ...]:
    """Cells that are merged into one token, of the least to the most significant part, for a reduction by ``ratio``.

    The paper's 196, 56, 28 for 8; 49, 14, 7 for 4; 2, 1 for 2.
    """
    return (2, 1) if ratio < 4 else tuple(round(size * ratio**2 / 16) for size in (49, 14, 7))


def part_bounds(cells: int, parts: int) -> list[int]:
    """The ranks at which the parts begin and end: a quarter, a half and a quarter, or two halves."""
    quarters = (0, 1, 3, 4) if parts == 3 else (0, 2, 4)
    return [quarter * cells // 4 for quarter in quarters]


class HybridScaleAttention(nn.Module):
    """Attention to the whole grid coarsely and to windows finely, ``(B, n, m, D)`` to the same and the significance."""

    def __init__(self, dim: int, *, heads: int, ratio: int, window: int = 7, bias: bool = True) -> None:
        super().__init__()
        self.coarse_heads, self.fine_heads = heads - heads // 2, heads // 2
        self.ratio, self.window = ratio, window
        far, near = (dim // heads * count for count in (self.coarse_heads, self.fine_heads))
        self.coarse, self.coarse_norm = nn.Conv2d(dim, dim, ratio, stride=ratio), nn.LayerNorm(dim)
        self.coarse_query, self.coarse_key, self.coarse_value = (nn.Linear(dim, far, bias=bias) for _ in range(3))
        if near:
            self.fine_query, self.fine_key, self.fine_value = (nn.Linear(dim, near, bias=bias) for _ in range(3))
        self.positions = LocalPositions(dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed cells ``(B, n, m, D)`` and their significance ``(B, n, m)``, without a gradient."""
        mixed, significance = self._coarse(x)
        if self.fine_heads:
            fine, near = self._fine(x)
            mixed, significance = torch.cat([mixed, fine], -1), significance + near
        return self.output(mixed + self.positions(x)), significance

    def _coarse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        down, right = (-size % self.ratio for size in x.shape[1:3])
        reduced = self.coarse(functional.pad(x, (0, 0, 0, right, 0, down)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = functional.gelu(self.coarse_norm(reduced)).flatten(1, 2)
        q, k, v = (
            part(source).unflatten(-1, (self.coarse_heads, -1)).transpose(1, 2)
            for part, source in (
                (self.coarse_query, x.flatten(1, 2)),
                (self.coarse_key, tokens),
                (self.coarse_value, tokens),
            )
        )
        mixed, weights = _attended(q, k, v)
        received = weights.detach().mean((1, 2)).view(reduced.shape[:3])
        spread = received.repeat_interleave(self.ratio, 1).repeat_interleave(self.ratio, 2)
        return mixed.transpose(1, 2).flatten(2).view(*x.shape[:3], -1), spread[:, : x.shape[1], : x.shape[2]]

    def _fine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[1:3]
        tall, wide = min(self.window, height), min(self.window, width)
        down, right = -height % tall, -width % wide
        rows, columns = (height + down) // tall, (width + right) // wide

        def windows(part: Tensor) -> Tensor:
            """``(B, n, m, F)`` -> ``(B, rows, columns, cells, F)``."""
            padded = functional.pad(part, (0, 0, 0, right, 0, down))
            return padded.unflatten(2, (columns, wide)).unflatten(1, (rows, tall)).transpose(2, 3).flatten(3, 4)

        def grid(part: Tensor) -> Tensor:
            whole = part.unflatten(3, (tall, wide)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
            return whole[:, :height, :width]

        q, k, v = (
            windows(part(x)).unflatten(-1, (self.fine_heads, -1)).transpose(3, 4)
            for part in (self.fine_query, self.fine_key, self.fine_value)
        )
        inside = windows(x.new_ones(1, height, width, 1)).squeeze(-1) if down or right else None
        mixed, weights = _attended(q, k, v, None if inside is None else inside[..., None, None, :] > 0)
        weights = weights.detach().mean(3)
        if inside is None:
            received = weights.mean(3)
        else:
            received = (weights * inside.unsqueeze(-1)).sum(3) / inside.sum(-1, keepdim=True)
        return grid(mixed.transpose(3, 4).flatten(4)), grid(received.unsqueeze(-1)).squeeze(-1)


class SelfGuidedAttention(nn.Module):
    """Attention to tokens that are merged from few significant or many insignificant cells, ``(B, n, m, D)`` to the
    same."""

    def __init__(self, dim: int, *, heads: int, groups: tuple[int, ...], bias: bool = True) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        self.merges = nn.ModuleList(nn.Linear(size, 1) for size in groups)
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=bias) for _ in range(3))
        self.positions = LocalPositions(dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, significance: Tensor) -> Tensor:
        """Mix the cells; no gradient goes through ``significance (B, n, m)``."""
        tokens = self.merged(x, significance)
        q, k, v = (
            part(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, source in ((self.query, x.flatten(1, 2)), (self.key, tokens), (self.value, tokens))
        )
        mixed = attention(q, k, v).transpose(1, 2).flatten(2).view(x.shape)
        return self.output(mixed + self.positions(x))

    def merged(self, x: Tensor, significance: Tensor) -> Tensor:
        """The tokens ``(B, M, D)``, the least significant first. The last group of a part may be short."""
        order = significance.flatten(1).argsort(stable=True, dim=1)
        ranked = x.flatten(1, 2).gather(1, order.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        tokens = []
        bounds = part_bounds(ranked.shape[1], len(self.merges))
        for (start, end), size, merge in zip(pairwise(bounds), self.groups, self.merges, strict=True):
            part = functional.pad(ranked[:, start:end], (0, 0, 0, -(end - start) % size)).unflatten(1, (-1, size))
            tokens.append((merge.weight @ part).squeeze(2) + merge.bias)
        return torch.cat(tokens, 1)


def _attended(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Softmax attention and its weights, in float32 at least; the fused kernels do not give the weights."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.to(wide) * q.shape[-1] ** -0.5) @ k.to(wide).transpose(-1, -2)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        weights = scores.softmax(-1)
        return (weights @ v.to(wide)).to(v.dtype), weights


def _flops(config: dict[str, Any], grid: Grid) -> float:
    dim, ratio, cells = config["dim"], config["ratio"], math.prod(grid)
    coarse = math.prod(-(-size // ratio) for size in grid)
    window = math.prod(min(config["window"], size) for size in grid)
    bounds = part_bounds(cells, len(config["groups"]))
    tokens = sum(
        -(-(end - start) // size) for (start, end), size in zip(pairwise(bounds), config["groups"], strict=True)
    )
    projections = 16.0 * cells * dim * dim + (2.0 * coarse + 4.0 * tokens) * dim * dim
    return projections + 38.0 * cells * dim + cells * (2.0 * coarse + 2.0 * window + 4.0 * tokens) * dim


def _at_length(tokens: int) -> dict[str, dict[str, Any]]:
    ratio = 2 if tokens < 256 else 4 if tokens < 4096 else 8
    return {"plain": {"heads": 2, "ratio": ratio, "window": min(7, max(2, round(tokens**0.5) // 4))}}


class SGAttention(Layer):
    """Hybrid-scale attention, then self-guided attention by its significance; see the module for the equations.

    ``aux["significance"]`` is S, ``(B, n, m)``, without a gradient.

    Raises:
        ArgumentError: heads that do not divide, a reduction below 2, a window or group below 1, other than two or three
            groups.
    """

    info = LayerInfo(
        name="sg-attention",
        title="SG-Former: Self-guided Transformer with Evolving Token Reallocation",
        arxiv="2308.12216",
        formula=(
            r"\begin{aligned} u &= W_o\big([\operatorname{softmax}(q_1 \cdot K_1 c) V_1 c,"
            r"\ \operatorname{softmax}(q_2 \cdot k_2) v_2] + L(x)\big), \quad"
            r" S = \operatorname{up}(\overline{A_1}) + \overline{A_2} \\"
            r" t_m &= \sum_{i < g} w_i z_{o(m g + i)} + b, \quad z = \mathrm{LN}(x + u),"
            r"\ o = \operatorname{argsort} S \\"
            r" y &= u + W'_o\big(\operatorname{softmax}(q \cdot K t) V t + L'(z)\big) \end{aligned}"
        ),
        good_for="Images in which little matters: small objects get fine tokens, the background few.",
        not_for="Grids of some hundred cells, where softmax sees every cell; or causal models and padded batches.",
        cost="time N D^2 + N (N / r^2 + w^2 + M) D for a reduction by r, windows of w x w cells and M merged tokens, "
        "about N / r^2; memory N D + N (N / r^2 + w^2) H",
        flops=_flops,
        at_length=_at_length,
        grid_ranks=(2,),
        positional=True,
        lengths="any; the last blocks, windows and groups are padded inside",
        discontinuous=True,
        deviations=(
            "here one layer does both: in SG-Former each is the layer of a residual block of its own, as in "
            "backbones/sg_former.py; here the second reads LN(x + u)",
            "here one order of the cells for all heads; the authors' code sorts the significance twice, row by row and "
            "column by column, for two halves of the heads: the same cells in the same order unless two "
            "significances are equal",
            "here the sort is stable, so that equal significances keep their raster order; the authors' code does not "
            "say so",
            "here any grid: blocks of the reduction beyond the border hold 0, windows there are masked, and the last "
            "group of a part may be short; the authors' code needs sides that 7 and the groups divide (images of 224)",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does. A single head is coarse."""
    ratio: int = argument(default=8, least=2)
    """r, the reduction of the coarse keys along each axis: in SG-Former 8 on grids of 56 x 56, 4 on 28 x 28, 2 on
    14 x 14."""
    window: int = argument(default=7, least=1)
    """w, the side of a window."""
    groups: tuple[int, ...] = argument(factory=lambda layer: group_sizes(layer.ratio))
    """Cells of a merged token, from the least significant part to the most: three for a quarter, a half and a quarter,
    two for halves. By default those of the paper for the reduction."""
    bias: bool = True
    """Biases of queries, keys and values."""

    def setup(self) -> None:
        if len(self.groups) not in (2, 3) or min(self.groups) < 1:
            raise ArgumentError(f"sg-attention: groups: found {self.groups}, expected two or three sizes of 1 or more")
        shared = {"heads": self.heads, "bias": self.bias}
        self.hybrid = HybridScaleAttention(self.dim, ratio=self.ratio, window=self.window, **shared)
        self.norm = nn.LayerNorm(self.dim)
        self.guided = SelfGuidedAttention(self.dim, groups=self.groups, **shared)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        u, significance = self.hybrid(x)
        return LayerOutput(u + self.guided(self.norm(x + u), significance), aux={"significance": significance})
