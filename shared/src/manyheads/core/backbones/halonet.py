"""HaloNet (2103.12731): a ResNet with halo attention in the place of every 3 x 3 convolution.

    stem    7 x 7 convolution of stride 2 to w, batch norm, SiLU, 3 x 3 maximum of stride 2
    stage   n bottlenecks of inner width w 2^i, values r_v w 2^i and output r_b w 2^i; the first one down-samples
    head    1 x 1 convolution to d_f, batch norm, SiLU (if there is a d_f); mean over the cells; linear

Shapes: B images of C channels; level i has the stride ``4 2^i`` and the width ``r_b w 2^i``, i = 0 to 3.

The authors published neither code nor weights. The networks of timm whose names begin with ``halo`` are others: they
mix convolutions and attention. So there is no state dict to map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.backbones.image import BackboneInfo, Encoded, ImageBackbone, Level
from manyheads.core.blocks.batch_norm import SequenceBatchNorm
from manyheads.core.blocks.drop_path import drop_path_rates
from manyheads.core.blocks.halo_bottleneck import HaloBottleneck, normed
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument

if TYPE_CHECKING:
    from jaxtyping import Float


def _preset(block: int, halo: int, values: float, output: float, third: int, last: int | None = None) -> dict[str, Any]:
    """Arguments in the order of the paper's table: b, h, r_v, r_b, bottlenecks of the third stage, d_f."""
    return {
        "block": block,
        "halo": halo,
        "value_ratio": values,
        "output_ratio": output,
        "depths": (3, 3, third, 3),
        "last": last,
    }


class HaloNet(ImageBackbone):
    """HaloNet; see the module for the equation.

    Raises:
        ArgumentError: other than four stages, ratios that give no whole width, a width that the heads do not divide.
    """

    info = BackboneInfo(
        name="halonet",
        title="Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
        arxiv="2103.12731",
        presets={
            "h0": _preset(8, 3, 1.0, 0.5, 7),
            "h1": _preset(8, 3, 1.0, 1.0, 10),
            "h2": _preset(8, 3, 1.0, 1.25, 11),
            "h3": _preset(10, 3, 1.0, 1.5, 12, 1024),
            "h4": _preset(12, 2, 1.0, 3.0, 12, 1280),
            "h5": _preset(14, 2, 2.5, 2.0, 23, 1536),
            "h6": _preset(8, 4, 3.0, 2.75, 24, 1536),
            "h7": _preset(10, 3, 4.0, 3.5, 26, 2048),
            "nano": {"width": 16, "block": 4, "halo": 1, "output_ratio": 1.0, "depths": (1, 1, 1, 1), "head_width": 8},
        },
        parameters={
            "h0": "5.5M",
            "h1": "8.1M",
            "h2": "9.4M",
            "h3": "11.8M",
            "h4": "19.1M",
            "h5": "30.7M",
            "h6": "43.4M",
            "h7": "67.4M",
        },
        good_for="Images of any size, and small training sets: near cells belong together, as in a ResNet.",
        not_for="Pretrained weights (none were published): vit takes those of DeiT.",
        deviations=(
            "the sizes are those at which all eight parameter counts come out as published; r_v = 1 in h1 to h4",
            "images are multiples of 32 pixels; the paper trains h7 on 600 x 600, here 608 x 608 is the next size",
            "here the first attention of stages 2 to 4 sub-samples its queries; the shortcut reads the same cells",
            "windows end at the border of the image (border='masked' of the layer halo)",
            "SiLU and the batch norm after the attention are those of ResNets; the paper does not fix them",
        ),
    )

    width: int = argument(default=64, least=1)
    """w, inner width of the first stage; each stage doubles it."""
    depths: tuple[int, ...] = (3, 3, 10, 3)
    """Bottlenecks of the four stages."""
    block: int = argument(default=8, least=2)
    """b, side of a block in cells; even."""
    halo: int = argument(default=3, least=0)
    """h, cells around a block that it sees."""
    value_ratio: float = 1.0
    """r_v, width of the values over the inner width."""
    output_ratio: float = 1.0
    """r_b, width of a level over the inner width."""
    last: int | None = argument(default=None, least=1)
    """d_f, width of the 1 x 1 convolution before the mean; None for none."""
    head_width: int = argument(default=16, least=1)
    """Width of the queries of a head."""
    drop_path: float = 0.0
    """Drop path rate of the last bottleneck; it rises linearly from 0."""

    def setup(self) -> None:
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ArgumentError(f"halonet: depths: found {self.depths}, expected four numbers of 1 or more")
        if self.width % self.head_width:
            raise ArgumentError(
                f"halonet: width: found {self.width}, expected a multiple of head_width = {self.head_width}"
            )
        self.stem = nn.Conv2d(self.channels, self.width, 7, stride=2, padding=3, bias=False)
        self.stem_norm = SequenceBatchNorm(self.width)
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        stages, levels, dim = [], [], self.width
        for index, depth in enumerate(self.depths):
            inner = self.width * 2**index
            values, output = (_times(ratio, inner) for ratio in (self.value_ratio, self.output_ratio))
            bottlenecks = []
            for first in [True] + [False] * (depth - 1):
                one = HaloBottleneck(
                    dim,
                    inner,
                    values,
                    output,
                    heads=inner // self.head_width,
                    block=self.block,
                    halo=self.halo,
                    stride=2 if first and index else 1,
                    drop_path=next(rates),
                )
                bottlenecks.append(one)
                dim = output
            stages.append(nn.Sequential(*bottlenecks))
            levels.append(Level(4 * 2**index, output))
        self.stages, self.levels = nn.ModuleList(stages), tuple(levels)
        self.expand = nn.Linear(dim, self.last, bias=False) if self.last else None
        self.expand_norm = SequenceBatchNorm(self.last) if self.last else None
        self.head = self.make_head(self.last or dim)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        x = functional.silu(normed(self.stem_norm, self.stem(images).permute(0, 2, 3, 1)))
        x = functional.max_pool2d(x.permute(0, 3, 1, 2), 3, stride=2, padding=1).permute(0, 2, 3, 1)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        if self.expand is not None and self.expand_norm is not None:
            x = functional.silu(normed(self.expand_norm, self.expand(x)))
        return Encoded(tuple(levels), x.mean((1, 2)))


def _times(ratio: float, width: int) -> int:
    """A whole multiple of a width."""
    product = ratio * width
    if product < 1 or product != round(product):
        raise ArgumentError(f"halonet: ratio: found {ratio} of the width {width}, expected a whole number of 1 or more")
    return round(product)
