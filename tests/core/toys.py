"""Toy layers of each kind, to test the interface and the battery."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.fields import argument
from manyheads.core.functional import fft_convolution
from manyheads.core.layer import Layer, LayerInfo, LayerOutput


class AverageState(NamedTuple):
    mean: Tensor


class MovingAverage(Layer):
    """Recurrent: ``h[t] = a h[t - 1] + (1 - a) x[t]``, with a learnt decay per channel."""

    info = LayerInfo(
        name="toy-average",
        title="toy",
        arxiv="",
        cost="",
        flops=lambda config, tokens: 3.0 * tokens * config["dim"],
        causal=("strict",),
        state=("recurrent",),
        masks=("padding", "reset"),
        positional=True,
    )

    def __init__(self, dim):
        super().__init__(dim)
        self.decay = nn.Parameter(torch.zeros(dim))

    def init_state(self, batch, *, device=None, dtype=None):
        return AverageState(torch.zeros(batch, self.dim, device=device, dtype=dtype))

    def mix(self, x, state, context, mask):
        a, mean, outputs = torch.sigmoid(self.decay), state.mean, []
        for t in range(x.shape[1]):
            if mask.reset is not None:
                mean = torch.where(mask.reset[:, t, None], 0.0, mean)
            new = a * mean + (1 - a) * x[:, t]
            real = torch.ones_like(new, dtype=torch.bool) if mask.padding is None else mask.padding[:, t, None]
            mean = torch.where(real, new, mean)
            outputs.append(torch.where(real, new, 0.0))
        return LayerOutput(torch.stack(outputs, 1), AverageState(mean))


class AxisMean(Layer):
    """Two grid axes, no state: each cell becomes the mean of its row."""

    info = LayerInfo(
        name="toy-axis", title="toy", arxiv="", cost="", flops=lambda c, t: float(t), grid_ranks=(2,), positional=True
    )

    def __init__(self, dim):
        super().__init__(dim)
        self.mixing = nn.Linear(dim, dim)

    def mix(self, x, state, context, mask):
        return LayerOutput(x + self.mixing(x).mean(2, keepdim=True))


class RowMixer(Layer):
    """An image of fixed height and width: each row becomes a learnt mixture of all rows."""

    info = LayerInfo(
        name="toy-rows", title="toy", arxiv="", cost="", flops=lambda c, t: float(t), grid_ranks=(2,), positional=True
    )

    def __init__(self, dim, *, height=3, width=4):
        super().__init__(dim, height=height, width=width)
        self.height, self.width = height, width
        self.mixing = nn.Linear(height, height)

    @property
    def grid(self):
        return self.height, self.width

    def mix(self, x, state, context, mask):
        return LayerOutput(self.mixing(x.transpose(1, -1)).transpose(1, -1))


class LineMixer(Layer):
    """An image of fixed width and of any height if none is given: each cell becomes a learnt mixture of its row."""

    info = LayerInfo(
        name="toy-lines",
        title="toy",
        arxiv="",
        cost="",
        flops=lambda config, grid: 2.0 * grid[0] * grid[1] ** 2 * config["dim"],
        grid_ranks=(2,),
        sizes=("height", "width"),
        masks=("padding",),
        positional=True,
    )
    height: int | None = None
    """Number of rows of every image; None for any number."""
    width: int = argument(default=4, least=1)
    """Number of columns of every image."""

    def setup(self):
        self.mixing = nn.Linear(self.width, self.width, bias=False)

    def mix(self, x, state, context, mask):
        return LayerOutput(self.mixing(x.transpose(2, -1)).transpose(2, -1))


class Convolution(Layer):
    """Strictly causal convolution by FFT; no streaming, no mask."""

    info = LayerInfo(
        name="toy-conv",
        title="toy",
        arxiv="",
        cost="",
        flops=lambda c, t: float(t),
        causal=("strict",),
        positional=True,
        full_context=False,
    )

    def __init__(self, dim):
        super().__init__(dim)
        self.kernel = nn.Parameter(torch.zeros(dim, 3))

    def mix(self, x, state, context, mask):
        wide = x.float() if x.dtype == torch.bfloat16 else x
        return LayerOutput(fft_convolution(wide.mT, self.kernel.to(wide.dtype)).mT.to(x.dtype))


def raster(kind):
    """Return the same layer for images: tokens in raster order, streamed row by row."""

    class Raster(kind):
        info = replace(kind.info, grid_ranks=(2,))

        def mix(self, x, state, context, mask):
            out = super().mix(x.flatten(1, -2), state, context, mask)
            return out._replace(y=out.y.view_as(x))

    Raster.__name__ = f"Raster{kind.__name__}"
    return Raster


def raster_oracle(oracle):
    def of_image(parameters, config, x, context, mask):
        return oracle(parameters, config, x.flatten(1, -2), context, mask).view_as(x)

    return of_image
