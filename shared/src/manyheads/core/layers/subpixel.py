"""SpecDETR: A Transformer-based Hyperspectral Point Object Detection Network (2405.10148): self-excited subpixel-scale
attention, deformable attention of every pixel to a few points around it and to a token of the whole image.

    y_q = W_o concat_h sum_{l, k} A[q, h, l, k] sample(W_v X_l, p_q + D[q, h, l, k])
    A   = softmax_{l, k}(W_a x_q),   D = W_d x_q  in pixels of level l

X_0 are the pixels, X_1 is a map of one pixel, the global token; p_q is the centre of pixel q, the same share of width
and height on both levels. Samples are bilinear, 0 outside the map. Initially A is uniform and D does not depend on x:
head h looks in the direction ``2 pi h / H``, at K points up to K pixels away.

Shapes: B batch, ``(n, m)`` the grid, N its tokens, D width, H heads, E = D / H head width, K points a level, L levels.

Cost: time ``O(N K D + N D^2)``, memory ``O(N D + N H K)`` and for the samples ``O(chunk H K)``, forward and backward.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manyheads.core.fields import argument, heads_argument
from manyheads.core.functional.deformable import CHUNK, deformable_attention, pixel_centres, real_extent
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _flops(config: dict[str, Any], grid: Grid) -> float:
    dim, tokens = config["dim"], math.prod(grid)
    samples = config["heads"] * config.get("points", 4)
    levels = 2 if config.get("global_token", True) else 1
    # Four pixels of width E a sample, one product a head for the global token.
    mixed = 8.0 * config.get("points", 4) * dim + 2.0 * (levels - 1) * dim
    return tokens * (4.0 * dim * dim + 6.0 * dim * samples * levels + mixed)


class SubpixelAttention(Layer):
    """Self-excited subpixel-scale attention over an image; see the module for equation and shapes.

    The layer takes the mean of its tokens as the global token. :meth:`attend` takes any queries, reference points and
    levels instead: the encoder of SpecDETR, which updates its global token like any other, and its decoder.

    Raises:
        ArgumentError: heads that do not divide, points or a chunk below 1; in :meth:`attend` shapes that do not fit.
    """

    info = LayerInfo(
        name="subpixel",
        title="SpecDETR: A Transformer-based Hyperspectral Point Object Detection Network",
        arxiv="2405.10148",
        formula=(
            r"\begin{aligned} y_q &= W_o \big[\textstyle\sum_{l,k} A_{1qlk}\, s_{1qlk};\; \dots;\;"
            r" \sum_{l,k} A_{Hqlk}\, s_{Hqlk}\big], \qquad"
            r" s_{hqlk} = \operatorname{bilinear}\!\big(W_v X^{(l)},\; p_q + \Delta_{hqlk}\big) \\"
            r" A_{hq} &= \operatorname{softmax}_{l,k}(W_a x_q), \quad \Delta_{hq} = W_\Delta x_q, \quad"
            r" X^{(1)} = X, \quad X^{(2)} = \tfrac{1}{N}\textstyle\sum_n x_n \end{aligned}"
        ),
        good_for="Images at full resolution with objects of a few pixels: each pixel sees a few points near it.",
        not_for="Relations between distant pixels: a sample sees four pixels, near ones at first. Take axial instead.",
        cost="time N K D + N D^2 for K points, memory N D + N H K; samples take chunk H K at a time, both ways",
        flops=_flops,
        at_length=lambda n: {"plain": {"heads": 2}},
        grid_ranks=(2,),
        masks=("padding",),
        positional=True,
        full_context=False,
        linear_in_value=True,
        deviations=(
            "the paper takes the mean once, without gradient, before its first encoder layer, and each layer updates "
            "the token with samples around the centre of the image; here each layer takes the mean of its own input, "
            "with gradient; attend runs the paper's form",
            "the position encoding and the embedding of the level, which the paper adds to queries only, are left to "
            "the caller; attend takes queries apart from values",
            "the authors' other choices of offsets (fixed directions, fixed distances, boxes), which are off in their "
            "published settings, are left out",
            "that the global token is what the paper calls self-excited is inferred from the authors' code",
            "padding is ours: padded pixels have value 0, and the global token and its level end with the last real "
            "row and column, as by the valid ratios of Deformable DETR",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does."""
    points: int = argument(default=4, least=1)
    """K, samples for each head and level."""
    global_token: bool = True
    """A second level: the mean of the tokens, a map of one pixel."""
    chunk: int = argument(default=CHUNK, least=1)
    """Queries that are sampled at a time: less memory, the same result."""

    def setup(self) -> None:
        self.levels = 2 if self.global_token else 1
        samples = self.heads * self.levels * self.points
        self.value, self.output = nn.Linear(self.dim, self.dim), nn.Linear(self.dim, self.dim)
        self.offset, self.score = nn.Linear(self.dim, 2 * samples), nn.Linear(self.dim, samples)
        for projection in (self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        for zero in (self.offset.weight, self.score.weight, self.score.bias):
            nn.init.zeros_(zero)
        pattern = initial_offsets(self.heads, self.points).unsqueeze(1).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.offset.bias.copy_(pattern.flatten())

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        _, height, width, _ = x.shape
        values, real = self.value(x), None
        if mask.padding is not None:
            real = mask.padding.view(x.shape[:-1])
            values = torch.where(real.unsqueeze(-1), values, 0.0)
        wide = torch.promote_types(x.dtype, torch.float32)
        references, levels = pixel_centres(height, width, device=x.device, dtype=wide), [values]
        if self.global_token:
            # The value of the mean is the mean of the values.
            total, count, of_token = values.sum((1, 2), keepdim=True, dtype=wide), height * width, references
            if real is not None:
                count = real.sum((1, 2)).clamp(min=1).view(-1, 1, 1, 1)
                size = references.new_tensor([width, height])
                of_token = references * (size / real_extent(real).to(wide)).view(-1, 1, 1, 2)
            levels.append((total / count).to(values.dtype))
            references = torch.cat(torch.broadcast_tensors(references, of_token), 2)
        mixed = self._sample(x.flatten(1, 2), references, levels)
        return LayerOutput(self.output(mixed).view(x.shape))

    def attend(
        self,
        queries: Tensor,
        references: Tensor,
        levels: Sequence[Tensor],
        *,
        real: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Deformable attention of any queries to given levels.

        Args:
            queries: ``(B, Q, D)``, with their position encoding.
            references: ``(B, Q, L, 2)`` or ``(B, Q, 1, 2)``, points ``(x, y)`` as shares of the width and the height of
                each level, or ``(…, 4)``, boxes ``(x, y, width, height)``; B may be 1.
            levels: L maps of tokens ``(B, H_l, W_l, D)``, two, or one without ``global_token``.
            real: for each level False ``(B, H_l, W_l)`` for padding, whose value is 0.

        Returns:
            ``(B, Q, D)``.
        """
        values = [self.value(level) for level in levels]
        for index, part in enumerate(real or ()):
            if part is not None:
                values[index] = torch.where(part.unsqueeze(-1), values[index], 0.0)
        return self.output(self._sample(queries, references, values))

    def _sample(self, queries: Tensor, references: Tensor, values: Sequence[Tensor]) -> Tensor:
        """``queries (B, Q, D)`` and projected levels -> ``(B, Q, D)`` before the output projection."""
        samples = self.heads, self.levels, self.points
        offsets = self.offset(queries).unflatten(-1, (*samples, 2))
        scores = self.score(queries)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).unflatten(-1, (self.heads, -1))
        weights = scores.softmax(-1).unflatten(-1, samples[1:])
        return deformable_attention(values, references, offsets, weights, chunk=self.chunk)


def initial_offsets(heads: int, points: int) -> Tensor:
    """``(H, K, 2)`` in pixels: point k of head h is k steps in the direction ``2 pi h / H``, from the square of the
    eight neighbours outward."""
    angle = torch.arange(heads, dtype=torch.float64) * (2 * math.pi / heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    return direction.unsqueeze(1) * torch.arange(1, points + 1).view(-1, 1)
