"""FFNet (2406.02021): four levels of convolutional blocks around FFNified attention.

    u = x + g1 o FFNified(x);   y = u + g2 o W2 GELU(W1 N(K * u))                     block
    d = N(K7 * y) + N(K3 * y), of stride 2 and twice the width;   x = d + W N(d)     to the next level

``*`` is a depthwise convolution, N a batch norm, g a scale for each channel (``layer_scale``) or 1. The stem is two
convolutions of stride 2, so that the levels have strides 4, 8, 16 and 32. The pooled vector is the mean of N(y) over
the last level, and the last features are N(y).

In evaluation every batch norm but the last is part of a convolution: :meth:`FFNet.fuse` returns that network, and its
parameters are those that the paper counts.

Shapes: B images of C channels, D the width of a level. Cost: linear in the pixels.

A state dict of the authors' code maps so: ``patch_embed.0, 2`` -> ``entry.0, 1``; ``norm`` and ``head`` as they are;
``stages.i.0.proj`` -> ``joins.(i - 1)`` for i > 0 (``0`` -> ``pair``, ``1.conv`` -> ``norm, mix``); the blocks
``stages.i.j`` -> ``blocks.i.j``, or ``blocks.i.(j - 1)`` after a join. In a block ``token_mixer.0.main`` -> ``tokens``
(``fc`` -> ``query, query_norm``; ``conv1, conv2`` -> ``keys, values``), ``channel_mixer.main`` -> ``near`` (``conv``)
and ``network`` (``fc1, fc2`` -> ``up, down``), ``layer_scale`` of the two -> ``token_scale, channel_scale``. Of a pair,
``conv, conv1`` -> ``large, small``; ``c, bn`` -> a convolution and its norm.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.backbones.image import BackboneInfo, Encoded, ImageBackbone, Level
from manyheads.core.blocks.batch_norm import SequenceBatchNorm, affine_of
from manyheads.core.blocks.depthwise import DepthwiseConvolution
from manyheads.core.blocks.drop_path import DropPath, drop_path_rates
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument
from manyheads.core.layers.ffnified import FFNified

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


class FFNet(ImageBackbone):
    """FFNet; see the module for the equation and for the map of state dicts.

    Raises:
        ArgumentError: levels of different number, a width that is no multiple of the one before, an even kernel.
    """

    info = BackboneInfo(
        name="ffnet",
        title="MetaMixer Is All You Need",
        arxiv="2406.02021",
        presets={
            "1": {"widths": (80, 160, 320, 640), "depths": (2, 2, 8, 2), "channel_kernel": 3},
            "2": {"widths": (88, 176, 352, 704), "depths": (3, 3, 15, 3)},
            "3": {"widths": (96, 192, 384, 768), "depths": (4, 4, 22, 5), "layer_scale": 1e-6},
            "4": {"widths": (128, 256, 512, 1024), "depths": (4, 4, 27, 3), "layer_scale": 1e-6},
            "nano": {
                "widths": (16, 32, 64, 64),
                "depths": (1, 1, 1, 1),
                "token_kernels": (3, 3, 3, 3),
                "channel_kernel": 3,
                "stem": 16,
            },
        },
        parameters={},
        good_for="Images of any size, detection and segmentation, phones: four levels, linear in the pixels.",
        not_for="Relations between distant places at the fine levels: each block sees its neighbourhood. Take vit.",
        deviations=(
            "kernels above 3 have a second branch of 3; the authors' code has it for 7 alone, and its fold works for 7 "
            "alone",
            "here no squeeze-and-excitation, which no published model has, and no layer norm in place of the last norm",
            "weights begin as in torch's layers",
            "the published counts (13.7M, 26.9M, 48.3M, 79.2M) are those of the folded network; to train there are "
            "13.8M, 27.2M, 48.8M and 79.9M",
        ),
    )

    widths: tuple[int, ...] = (80, 160, 320, 640)
    """D of each level; each a multiple of the one before."""
    depths: tuple[int, ...] = (2, 2, 8, 2)
    """Blocks of each level."""
    token_kernels: tuple[int, ...] = (3, 3, 7, 7)
    """The side of keys and values in each level; odd."""
    channel_kernel: int = argument(default=7, least=1)
    """The side of the convolution before the feed-forward network; odd."""
    expansion: float = 3.0
    """Hidden width of the feed-forward networks over D."""
    stem: int = argument(default=64, least=1)
    """Width between the two convolutions of the stem."""
    layer_scale: float | None = None
    """Initial scale of every branch; None for no scales."""
    drop_path: float = 0.0
    """Drop path rate of the last block; it rises linearly from 0."""
    folded: bool = False
    """For evaluation: no batch norm but the last, no pairs of branches; :meth:`fuse` makes such a network."""

    def setup(self) -> None:
        sizes = {"widths": self.widths, "depths": self.depths, "token_kernels": self.token_kernels}
        for name, given in sizes.items():
            if len(given) != len(self.widths) or not given or min(given) < 1:
                raise ArgumentError(
                    f"ffnet: {name}: found {given}, expected {len(self.widths) or 4} numbers, 1 or more"
                )
        if any(wide % narrow for narrow, wide in zip(self.widths, self.widths[1:], strict=False)):
            raise ArgumentError(f"ffnet: widths: found {self.widths}, expected multiples of the width before")
        first, last = self.widths[0], self.widths[-1]
        self.entry = nn.ModuleList([_Strided(self.channels, self.stem), _Strided(self.stem, first)])
        self.joins = nn.ModuleList(
            _Join(narrow, wide) for narrow, wide in zip(self.widths, self.widths[1:], strict=False)
        )
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    _Block(width, kernel, self.channel_kernel, self.expansion, self.layer_scale, next(rates))
                    for _ in range(depth)
                )
            )
            for width, depth, kernel in zip(self.widths, self.depths, self.token_kernels, strict=True)
        )
        self.norm = nn.BatchNorm2d(last)
        self.head = self.make_head(last)
        self.levels = tuple(Level(4 * 2**level, width) for level, width in enumerate(self.widths))
        if self.folded:
            self._fold()

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        x = self.entry[1](functional.gelu(self.entry[0](images))).permute(0, 2, 3, 1)
        features = []
        for level, blocks in enumerate(self.blocks):
            if level:
                x = self.joins[level - 1](x)
            x = blocks(x)
            features.append(x)
        features[-1] = self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return Encoded(tuple(features), features[-1].mean((1, 2)))

    def fuse(self) -> FFNet:
        """Return a network that computes the same in evaluation, with every batch norm but the last folded.

        It has one convolution for each pair of branches.
        """
        made = copy.deepcopy(self)
        if not self.folded:
            made.folded, made.config = True, {**self.config, "folded": True}
            made._fold()
        return made

    def _fold(self) -> None:
        for part in self.modules():
            if isinstance(part, _Strided | _Join | _Block):
                part.fold()

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename and reshape a state dict of the authors' code for ``load_weights``."""
        own, found = self.state_dict(), {}
        for name, tensor in state.items():
            for pattern, new in _NAMES:
                name = re.sub(pattern, new, name)
            # their 1 x 1 convolutions are linear maps here, their scales vectors
            fits = name in own and own[name].numel() == tensor.numel()
            found[name] = tensor.reshape(own[name].shape) if fits else tensor
        return found


# of the authors' code -> ours, one after the other
_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^patch_embed\.0\.", "entry.0."),
    (r"^patch_embed\.2\.", "entry.1."),
    (r"^(entry\.\d)\.c\.", r"\1.conv."),
    (r"^(entry\.\d)\.bn\.", r"\1.norm."),
    (r"^stages\.(\d+)\.0\.proj\.", lambda found: f"joins.{int(found[1]) - 1}."),
    (r"^(joins\.\d+)\.0\.", r"\1.pair."),
    (r"^(joins\.\d+)\.1\.conv\.bn\.", r"\1.norm."),
    (r"^(joins\.\d+)\.1\.conv\.c\.", r"\1.mix."),
    (r"^stages\.0\.", "blocks.0."),
    (r"^stages\.(\d+)\.(\d+)\.", lambda found: f"blocks.{found[1]}.{int(found[2]) - 1}."),
    (r"\.token_mixer\.0\.main\.fc\.c\.", ".tokens.query."),
    (r"\.token_mixer\.0\.main\.fc\.bn\.", ".tokens.query_norm."),
    (r"\.token_mixer\.0\.main\.conv1\.", ".tokens.keys."),
    (r"\.token_mixer\.0\.main\.conv2\.", ".tokens.values."),
    (r"\.token_mixer\.0\.layer_scale$", ".token_scale"),
    (r"\.channel_mixer\.main\.conv\.", ".near."),
    (r"\.channel_mixer\.main\.fc1\.", ".network.up."),
    (r"\.channel_mixer\.main\.fc2\.", ".network.down."),
    (r"\.channel_mixer\.layer_scale$", ".channel_scale"),
    (r"\.(keys|values|near|pair)\.conv\.c\.", r".\1.large."),
    (r"\.(keys|values|near|pair)\.conv\.bn\.", r".\1.large_norm."),
    (r"\.(keys|values|near|pair)\.conv1\.c\.", r".\1.small."),
    (r"\.(keys|values|near|pair)\.conv1\.bn\.", r".\1.small_norm."),
    (r"\.near\.c\.", ".near.large."),
    (r"\.near\.bn\.", ".near.large_norm."),
    (r"\.(keys|values)\.(weight|bias)$", r".\1.large.\2"),
)


class _Strided(nn.Module):
    """A 3 x 3 convolution of stride 2 and a batch norm, channels first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))

    def fold(self) -> None:
        assert isinstance(self.norm, nn.BatchNorm2d)
        scale, shift = affine_of(self.norm)
        self.conv.weight = nn.Parameter(self.conv.weight.detach() * scale.view(-1, 1, 1, 1))
        self.conv.bias = nn.Parameter(shift)
        self.norm = nn.Identity()


class _Join(nn.Module):
    """To the next level: a depthwise convolution of stride 2, then a residual linear map."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.pair = DepthwiseConvolution(dim, (7, 7), outputs=outputs, small=(3, 3), stride=2, norm=True)
        self.norm = SequenceBatchNorm(outputs)
        self.mix = nn.Linear(outputs, outputs, bias=False)
        self.folded = False

    def forward(self, x: Tensor) -> Tensor:
        d = self.pair(x)
        return self.mix(d) if self.folded else d + self.mix(self.norm(d.flatten(1, 2)).view(d.shape))

    def fold(self) -> None:
        """d + W (s d + c) is one linear map, W s + I, with the bias W c."""
        assert isinstance(self.norm, SequenceBatchNorm)
        self.pair, self.folded = self.pair.fused(), True
        scale, shift = affine_of(self.norm)
        weight = self.mix.weight.detach()
        self.mix.weight = nn.Parameter(
            weight * scale + torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        )
        self.mix.bias = nn.Parameter(weight @ shift)
        self.norm = nn.Identity()


class _Block(nn.Module):
    """FFNified attention, then a convolution and a feed-forward network; both with a residual connection."""

    def __init__(
        self, dim: int, kernel: int, channel_kernel: int, expansion: float, scale: float | None, drop_path: float
    ) -> None:
        super().__init__()
        self.tokens = FFNified(dim, kernel=kernel)
        small = (3, 3) if channel_kernel > 3 else None
        self.near = DepthwiseConvolution(dim, (channel_kernel, channel_kernel), small=small, norm=True)
        self.network = FeedForward(dim, round(expansion * dim))
        self.token_scale, self.channel_scale = (
            None if scale is None else nn.Parameter(torch.full((dim,), scale)) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(_scaled(self.tokens(x).y, self.token_scale))
        return x + self.drop_path(_scaled(self.network(self.near(x)), self.channel_scale))

    def fold(self) -> None:
        self.tokens, self.near = self.tokens.fused(), self.near.fused()


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale
