"""SG-Former (2308.12216): four stages of hybrid-scale and self-guided attention by turns.

    stem    three 3 x 3 convolutions of strides 2, 1, 2, each with a group norm; LN; learned positions
    stage   x = x + A(LN(x)),  x = x + W_2 GELU(h + D(h)), h = W_1 LN(x)
    between 1 x 1, depthwise 3 x 3 of stride 2, 1 x 1 convolution, each with a group norm

A is in stages 1 to 3 hybrid-scale attention in the blocks 0, 2, …, which pass their significance on, and self-guided
attention by it in the blocks 1, 3, …; in stage 4 it is softmax attention. D is a depthwise 3 x 3 convolution. Positions
start as sines and cosines.

Features are the LN of each stage's output, which the next stage reads too; pooled is the mean of the last.

Shapes: B images of C channels; level i has the stride ``4 2^i`` and the width ``D 2^i``, i = 0 to 3.

A state dict of the authors' code maps so (stage i from 1 there, from 0 here): ``patch_embed1.conv.{0,2,4}.{c,bn}`` ->
``embeddings.0.{0,1,3,4,6,7}``, ``patch_embed1.norm`` -> ``stem_norm``, ``patch_embed{i}.conv{1,2,3}.{c,bn}`` ->
``embeddings.{i-1}.{0,1,3,4,6,7}``, ``pos_embed`` -> ``positions.weight``, ``norm{i}`` -> ``norms.{i-1}``,
``block{i}.{j}`` -> ``stages.{i-1}.{j}``, and inside a block ``norm1, norm2`` as they are, ``mlp.fc1, mlp.dwconv.dwconv,
mlp.fc2`` -> ``feed_forward.up, convolution.large, down``, ``attn.lepe_linear, lepe_conv, proj`` ->
``attention.positions.project, positions.convolve.large, output``; hybrid: ``attn.sr, norm, q1, kv1, q2, kv2`` ->
``attention.coarse, coarse_norm, coarse_query, coarse_key and coarse_value, fine_query, fine_key and fine_value``;
self-guided: ``attn.q, f1, f2, f3`` -> ``attention.query, merges.0, 1, 2``, and ``kv1``, ``kv2``, keys and values of two
halves of the heads, -> ``key`` and ``value``; softmax: ``attn.q, kv`` -> ``query``, ``key`` and ``value``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from manyheads.core.backbones.image import BackboneInfo, Encoded, ImageBackbone, Level, token_grid
from manyheads.core.blocks.depthwise import LocalPositions
from manyheads.core.blocks.drop_path import DropPath, drop_path_rates
from manyheads.core.blocks.feed_forward import ConvolvedFeedForward
from manyheads.core.blocks.image_embeddings import GridPositions
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument
from manyheads.core.functional.attention import attention
from manyheads.core.functional.relative_attention import sinusoids
from manyheads.core.layers.sg_attention import HybridScaleAttention, SelfGuidedAttention, group_sizes

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

_norm = partial(nn.LayerNorm, eps=1e-6)


class SGFormer(ImageBackbone):
    """SG-Former; see the module for the equations and for the map of state dicts.

    Raises:
        ArgumentError: other than four depths, or than four or one numbers of heads, heads that do not divide, a size of
            images that is no multiple of 32.
    """

    info = BackboneInfo(
        name="sg-former",
        title="SG-Former: Self-guided Transformer with Evolving Token Reallocation",
        arxiv="2308.12216",
        presets={
            "small": {"dim": 64, "depths": (2, 4, 16, 1), "heads": (2, 4, 8, 16)},
            "medium": {"dim": 64, "depths": (2, 6, 28, 2), "heads": (2, 4, 8, 16)},
            "base": {"dim": 96, "depths": (4, 6, 24, 2), "heads": (4, 6, 12, 24)},
            "nano": {
                "dim": 10,
                "depths": (2, 2, 1, 1),
                "heads": (2, 2, 4, 4),
                "ratios": (4, 2, 2),
                "window": 4,
                "expansion": 2.0,
                "image_size": 32,
            },
        },
        parameters={"small": "22.5M", "medium": "39M", "base": "78M"},
        good_for="Images with small objects on much background, and features at four strides for dense tasks.",
        not_for="Small images: below 128 pixels its later stages hold some cells only, and vit sees all of them.",
        onnx="torch's ONNX exporter has no stable sort",
        deviations=(
            "deviations of the layer sg-attention hold here too",
            "here each stage starts without a significance; the authors' depths of stages 1 to 3 are even, so that "
            "none is left over there",
            "here positions of another size are interpolated (bicubic); the authors' network takes one size",
        ),
    )

    dim: int = argument(default=64, least=1)
    """Width D of the first stage; each stage doubles it."""
    depths: tuple[int, ...] = (2, 4, 16, 1)
    """Blocks of the four stages."""
    heads: tuple[int, ...] = (2, 4, 8, 16)
    """Heads of the four stages; in the hybrid-scale blocks of the first three half of them are coarse."""
    ratios: tuple[int, ...] = (8, 4, 2)
    """Reduction of the coarse keys in the first three stages; it sets the groups of the self-guided blocks."""
    window: int = argument(default=7, least=1)
    """Side of a window of the hybrid-scale blocks."""
    expansion: float = 4.0
    """Hidden width of the feed-forward networks over the width."""
    image_size: int | tuple[int, ...] = 224
    """Height and width of the images for which the positions are learned."""
    drop_path: float = 0.0
    """Drop path rate of the last block; it rises linearly from 0."""

    def setup(self) -> None:
        height, width = token_grid(self.image_size, 32, "sg-former")
        for name, given, count in (("depths", self.depths, 4), ("heads", self.heads, 4), ("ratios", self.ratios, 3)):
            if len(given) != count or min(given) < 1 + (name == "ratios"):
                least = 2 if name == "ratios" else 1
                raise ArgumentError(f"sg-former: {name}: found {given}, expected {count} numbers of {least} or more")
        widths = [self.dim * 2**index for index in range(4)]
        for index, (one, heads) in enumerate(zip(widths, self.heads, strict=True)):
            if one % heads:
                raise ArgumentError(
                    f"sg-former: heads: found {heads} in stage {index + 1}, expected a divisor of its width {one}"
                )
        down = [_downsampled(*sizes) for sizes in pairwise(widths)]
        self.embeddings = nn.ModuleList([_stem(self.channels, self.dim), *down])
        self.stem_norm = nn.LayerNorm(self.dim)
        self.positions = GridPositions(8 * height, 8 * width, self.dim)
        self.positions.weight.data.copy_(_sines(8 * height, 8 * width, self.dim))
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        self.stages = nn.ModuleList(
            nn.ModuleList(
                _Block(one, self._attention(index, place), round(self.expansion * one), next(rates))
                for place in range(self.depths[index])
            )
            for index, one in enumerate(widths)
        )
        self.norms = nn.ModuleList(_norm(one) for one in widths)
        self.levels = tuple(Level(4 * 2**index, one) for index, one in enumerate(widths))
        self.head = self.make_head(widths[-1])

    def _attention(self, stage: int, place: int) -> nn.Module:
        dim, heads = self.dim * 2**stage, self.heads[stage]
        if stage == 3:
            return _Attention(dim, heads)
        ratio = self.ratios[stage]
        if place % 2:
            return SelfGuidedAttention(dim, heads=heads, groups=group_sizes(ratio))
        return HybridScaleAttention(dim, heads=heads, ratio=ratio, window=self.window)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        x, levels = images, []
        for index, (embedding, stage, norm) in enumerate(zip(self.embeddings, self.stages, self.norms, strict=True)):
            x = embedding(x).permute(0, 2, 3, 1)
            if index == 0:
                x = self.positions(self.stem_norm(x))
            significance = None
            for block in stage:  # ty: ignore[not-iterable]
                x, significance = block(x, significance)
            levels.append(norm(x))
            x = levels[-1].permute(0, 3, 1, 2)
        return Encoded(tuple(levels), levels[-1].mean((1, 2)))

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename a state dict of the authors' code (OliverRensu/SG-Former) for ``load_weights``."""
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            stage = int(first[-1]) - 1 if first[-1].isdigit() else 0
            if name == "pos_embed":
                found["positions.weight"] = tensor.reshape(self.positions.weight.shape)
            elif name.startswith("patch_embed1.norm."):
                found[name.replace("patch_embed1.norm", "stem_norm")] = tensor
            elif first.startswith("patch_embed"):
                # conv.2.bn.weight of the stem, conv2.bn.weight of the others: the second convolution
                step, kind, end = rest.removeprefix("conv").removeprefix(".").split(".")
                place = int(step) // 2 if stage == 0 else int(step) - 1
                found[f"embeddings.{stage}.{3 * place + (kind == 'bn')}.{end}"] = tensor
            elif first.startswith("norm"):
                found[f"norms.{stage}.{rest}"] = tensor
            elif first.startswith("block"):
                place, _, inner = rest.partition(".")
                found |= {f"stages.{stage}.{place}.{key}": value for key, value in _of_block(inner, tensor).items()}
            else:
                found[name] = tensor
        return _halves_joined(found)


_OF_BLOCK = {
    "mlp.fc1.": "feed_forward.up.",
    "mlp.dwconv.dwconv.": "feed_forward.convolution.large.",
    "mlp.fc2.": "feed_forward.down.",
    "attn.lepe_linear.": "attention.positions.project.",
    "attn.lepe_conv.": "attention.positions.convolve.large.",
    "attn.proj.": "attention.output.",
    "attn.sr.": "attention.coarse.",
    "attn.norm.": "attention.coarse_norm.",
    "attn.q1.": "attention.coarse_query.",
    "attn.q2.": "attention.fine_query.",
    "attn.q.": "attention.query.",
    "attn.f1.": "attention.merges.0.",
    "attn.f2.": "attention.merges.1.",
    "attn.f3.": "attention.merges.2.",
}
# keys above values in one matrix
_KEYS_AND_VALUES = {"attn.kv.": "", "attn.kv1.": "coarse_", "attn.kv2.": "fine_"}


def _of_block(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Our names in a block for one of the authors' code."""
    for old, prefix in _KEYS_AND_VALUES.items():
        if name.startswith(old):
            parts = zip(("key", "value"), tensor.chunk(2), strict=True)
            return {f"attention.{prefix}{part}.{name.removeprefix(old)}": rows for part, rows in parts}
    for old, new in _OF_BLOCK.items():
        if name.startswith(old):
            return {new + name.removeprefix(old): tensor}
    return {name: tensor}


def _halves_joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the keys and values of the two halves of the heads in self-guided blocks, those that have merges."""
    for name in [key for key in state if key.endswith("attention.merges.0.weight")]:
        block = name.removesuffix("merges.0.weight")
        for part, end in ((p, e) for p in ("key", "value") for e in ("weight", "bias")):
            halves = [state.pop(f"{block}{half}_{part}.{end}", None) for half in ("coarse", "fine")]
            present = [half for half in halves if half is not None]
            if present:
                state[f"{block}{part}.{end}"] = torch.cat(present)
    return state


class _Block(nn.Module):
    """A residual block that takes the significance from the block before and passes its own on."""

    def __init__(self, dim: int, mixer: nn.Module, hidden: int, rate: float) -> None:
        super().__init__()
        self.norm1, self.attention = _norm(dim), mixer
        self.norm2, self.feed_forward = _norm(dim), ConvolvedFeedForward(dim, hidden, skip=True)
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor, significance: Tensor | None) -> tuple[Tensor, Tensor | None]:
        source, found = self.norm1(x), None
        if isinstance(self.attention, HybridScaleAttention):
            mixed, found = self.attention(source)
        elif isinstance(self.attention, SelfGuidedAttention):
            mixed = self.attention(source, significance)
        else:
            mixed = self.attention(source)
        x = x + self.drop_path(mixed)
        return x + self.drop_path(self.feed_forward(self.norm2(x))), found


class _Attention(nn.Module):
    """Softmax attention over the whole grid with local positions."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.positions, self.output = LocalPositions(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x.flatten(1, 2)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = attention(q, k, v).transpose(1, 2).flatten(2).view(x.shape)
        return self.output(mixed + self.positions(x))


def _convolution(channels: int, dim: int, size: int, **given: Any) -> list[nn.Module]:
    return [nn.Conv2d(channels, dim, size, padding=size // 2, bias=False, **given), nn.GroupNorm(1, dim)]


def _stem(channels: int, dim: int) -> nn.Sequential:
    first, second = _convolution(channels, dim, 3, stride=2), _convolution(dim, dim, 3)
    return nn.Sequential(*first, nn.GELU(), *second, nn.GELU(), *_convolution(dim, dim, 3, stride=2))


def _downsampled(dim: int, output: int) -> nn.Sequential:
    first, second = _convolution(dim, output, 1), _convolution(output, output, 3, stride=2, groups=output)
    return nn.Sequential(*first, nn.GELU(), *second, nn.GELU(), *_convolution(output, output, 1))


def _sines(height: int, width: int, dim: int) -> Tensor:
    """``(h, w, D)``: sines and cosines of the column in the first half of D, of the row in the second."""
    rows, columns = (torch.arange(size, dtype=torch.get_default_dtype()) for size in (height, width))
    by_row, by_column = sinusoids(rows, dim - dim // 2), sinusoids(columns, dim // 2)
    parts = [by_column.expand(height, -1, -1), by_row.unsqueeze(1).expand(-1, width, -1)]
    return torch.cat(parts, -1)
