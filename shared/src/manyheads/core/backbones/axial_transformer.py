"""Axial Transformer (1912.12180): an autoregressive model of images of K levels, pixel by pixel in raster order.

    h = E[x],   p = P_row + P_column                                    embedded values, positions
    u = shift down of outer(h + p)                                      what is above: rows and masked columns in turn
    logits = W LN(inner(shift right of h + u + p))                      what is left: masked rows

The outer layers are axial attention along whole rows and down masked columns; the shift leaves a pixel the rows above
it only. The inner layers are masked rows; their shift leaves it the pixels to its left. So the logits of a pixel depend
on every earlier pixel, and neither on the pixel itself nor on a later one.

``sample`` is semi-parallel: what is above a row is computed once for the row, then the inner layers run on that row
alone, pixel by pixel. It takes H - 1 passes of the outer layers instead of H W. A value is drawn as the argmax of
logits plus Gumbel noise.

An image of C channels becomes C rows for each of its rows, one for each channel, with an embedding of the channel. So
a value sees the earlier channels of its whole row, and a sample takes H C - 1 passes. The likelihood stays exact.

Axes: b batch, h rows, w columns, d width, k levels; c channels, r = H C rows with channels apart.

Cost: time ``O(N (H C + W) D + N D^2)`` for N = H W C values.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import describe
from manyheads.core.backbones.image import BackboneInfo
from manyheads.core.backbones.stack import Stack
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import Configured, argument, heads_argument
from manyheads.core.functional.shift import shifted
from manyheads.core.layers.axial import AxialAttention

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class AxialTransformer(Configured):
    """Axial Transformer; see the module for the equation.

    Raises:
        ArgumentError: an odd number of outer layers, heads that do not divide.
    """

    info: ClassVar[BackboneInfo] = BackboneInfo(
        name="axial-transformer",
        title="Axial Attention in Multidimensional Transformers",
        arxiv="1912.12180",
        presets={
            "imagenet32": {
                "levels": 256, "height": 32, "width": 32, "channels": 3, "dim": 1536, "heads": 16, "outer": 8,
                "inner": 8, "expansion": 1.0, "dropout": 0.04,
            },
            "nano": {"levels": 8, "height": 8, "width": 8, "dim": 64, "heads": 4, "outer": 2, "inner": 2},
        },
        parameters={},
        good_for="Exact likelihoods and samples of small images, and images of few levels.",
        not_for="Labels of images: take vit. Large images: sampling takes one step a pixel.",
        deviations=(
            "here channels are rows of their own; the paper's sliced model encodes the earlier channels with eight "
            "exterior layers and trains one random channel of each example, so that imagenet32 here has none of these",
            "here the channels share the weights but for the embeddings of values and of channels",
            "here residual branches and logits start at 0; the authors' code has 1e-10 of the usual scale",
            "here the activation is GELU, as everywhere; the authors' code has its own nonlinearity",
        ),
    )  # fmt: skip

    levels: int = argument(least=2)
    """K: values of a pixel are 0 to K - 1."""
    height: int = argument(least=1)
    """H: rows."""
    width: int = argument(least=1)
    """W: columns."""
    channels: int = argument(default=1, least=1)
    """C; images of one channel are ``(B, H, W)``, others ``(B, H, W, C)``."""
    dim: int = argument(default=64, least=1)
    """Width D."""
    heads: int = heads_argument()
    """Attention heads; divides ``dim``."""
    outer: int = argument(default=4, least=2)
    """Outer layers, along rows and columns in turn; even."""
    inner: int = argument(default=2, least=1)
    """Inner layers."""
    expansion: float = 4.0
    """Hidden width of the feed-forward networks over D."""
    dropout: float = 0.0
    """Dropout rate of the branches."""

    def setup(self) -> None:
        if self.outer % 2:
            raise ArgumentError(f"axial-transformer: outer: found {self.outer}, expected an even number of layers")
        scale = 5 / math.sqrt(self.dim)
        self.values = nn.Embedding(self.channels * self.levels, self.dim)
        self.rows, self.planes = nn.Embedding(self.height, self.dim), nn.Embedding(self.channels, self.dim)
        self.columns = nn.Embedding(self.width, self.dim)
        for table in (self.values, self.rows, self.planes, self.columns):
            nn.init.normal_(table.weight, std=scale)
        self.above = Stack([self._block(1 - index % 2, causal=index % 2 == 1) for index in range(self.outer)])
        self.left = Stack([self._block(1, causal=True) for _ in range(self.inner)], norm=nn.LayerNorm(self.dim))
        self.output = nn.Linear(self.dim, self.levels)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def _block(self, axis: int, *, causal: bool) -> ResidualBlock:
        layer = AxialAttention(self.dim, heads=self.heads, axis=axis, causal=causal)
        feed_forward = FeedForward(self.dim, round(self.expansion * self.dim))
        nn.init.zeros_(layer.output.weight)
        nn.init.zeros_(feed_forward.down.weight)
        nn.init.zeros_(feed_forward.down.bias)
        return ResidualBlock(layer, feed_forward, dropout=self.dropout)

    def forward(self, images: Int[Tensor, "b h w *c"]) -> Float[Tensor, "b h w *ck"]:
        """Logits of every value given the earlier ones, ``(B, H, W, K)``, with channels ``(B, H, W, C, K)``.

        Raises:
            ArgumentError: images of another shape, values that are no integers from 0 to K - 1.
        """
        images = self._checked(images)
        rows = images.unsqueeze(1) if self.channels == 1 else images.permute(0, 1, 3, 2)
        logits = self.decode(self._embedded(rows.reshape(-1, self.height * self.channels, self.width), 0))
        return self._joined(logits)

    def loss(self, images: Int[Tensor, "b h w *c"]) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of a value, in nats; bits per dimension are this over ln 2."""
        return functional.cross_entropy(self(images).flatten(0, -2), images.flatten().long())

    def decode(self, h: Float[Tensor, "b r w d"]) -> Float[Tensor, "b r w k"]:
        """Logits from the embedded values, channels as rows: those of a cell depend on the earlier cells only."""
        places = self._places(h.device)
        above = shifted(self.above(h + places).y, 0)
        return self._logits(h, above + places)

    @torch.no_grad()
    def sample(
        self, batch: int, *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Int[Tensor, "b h w *c"]:
        """Draw images row by row; dropout is off.

        The noise, minus the logarithm of exponential variables, is drawn at once: float64, ``(B, H C, W, K)``.

        Args:
            batch: number of images.
            temperature: of the softmax; 0 takes the most probable value.
            generator: random generator; torch's own by default.

        Raises:
            ArgumentError: a batch or a temperature below 0.
        """
        if batch < 0 or temperature < 0:
            raise ArgumentError(
                f"axial-transformer: sample: found {batch} images at temperature {temperature}, expected 0 or more"
            )
        device, rows, training = self.output.weight.device, self.height * self.channels, self.training
        noise = torch.empty(batch, rows, self.width, self.levels, device=device, dtype=torch.float64)
        noise = -temperature * noise.exponential_(generator=generator).log()
        x = torch.zeros(batch, rows, self.width, dtype=torch.int64, device=device)
        places = self._places(device)
        self.eval()
        try:
            for row in range(rows if batch else 0):
                known = places[row : row + 1].expand(batch, -1, -1, -1)
                if row > 0:
                    known = known + self.above(self._embedded(x[:, :row], 0) + places[:row]).y[:, -1:]
                for column in range(self.width):
                    # the column itself is not known yet, and the shift drops it
                    line = self._embedded(x[:, row : row + 1, : column + 1], row)
                    logits = self._logits(line, known[:, :, : column + 1])[:, 0, -1]
                    x[:, row, column] = (logits.double() + noise[:, row, column]).argmax(-1)
        finally:
            self.train(training)
        return self._joined(x)

    def _embedded(self, rows: Tensor, first: int) -> Tensor:
        """Values ``(B, R, W)``, channels as rows from row ``first`` on, embedded."""
        channel = torch.arange(first, first + rows.shape[1], device=rows.device) % self.channels
        return self.values(rows.long() + self.levels * channel.unsqueeze(1))

    def _places(self, device: torch.device) -> Tensor:
        """The positions ``(R, W, D)``: of row, channel and column."""
        row = torch.arange(self.height * self.channels, device=device)
        along = self.rows(row // self.channels) + self.planes(row % self.channels)
        return along.unsqueeze(1) + self.columns.weight

    def _logits(self, h: Tensor, known: Tensor) -> Tensor:
        return self.output(self.left(shifted(h, 1) + known).y)

    def _joined(self, rows: Tensor) -> Tensor:
        """``(B, H C, W, …)`` as ``(B, H, W, C, …)``, without the axis of one channel."""
        images = rows.unflatten(1, (self.height, self.channels)).transpose(2, 3)
        return images.squeeze(3) if self.channels == 1 else images

    def _checked(self, images: Tensor) -> Tensor:
        shape = (self.height, self.width) if self.channels == 1 else (self.height, self.width, self.channels)
        whole = isinstance(images, Tensor) and not (images.is_floating_point() or images.is_complex())
        if not whole or tuple(images.shape[1:]) != shape or images.dtype == torch.bool:
            sizes = ", ".join(map(str, shape))
            raise ArgumentError(f"axial-transformer: images: found {describe(images)}, expected integers (B, {sizes})")
        if not torch.compiler.is_compiling() and images.numel():
            least, most = (int(bound) for bound in images.aminmax())
            if least < 0 or most >= self.levels:
                raise ArgumentError(
                    f"axial-transformer: images: found values from {least} to {most}, expected 0 to {self.levels - 1}"
                )
        return images
