"""Transformer in Transformer (2103.00112): patches are sentences, and each has a transformer over its own words.

    Y_i = words(patch i) + E_w                          (m words of width c; each patch is embedded apart)
    Z   = [class token; LN(W LN(vec Y))] + E_s
    block:  Y = Y + MSA(LN Y);  Y = Y + FFN(LN Y)       within each patch
            Z_i = Z_i + LN(W' LN(vec Y_i))              for patches; the class token gets no words
            Z = Z + MSA(LN Z);  Z = Z + FFN(LN Z)       over class token and patches
    pooled: LN(Z)[class token]

A word is a 7 x 7 convolution of the pixels of its own patch, with zeros around the patch, every ``word_stride`` pixels.
Features are the patches after the last norm, at the stride of a patch.

Shapes: B images, P the patch, n = (H / P)(W / P) patches of width D, m = (P / s)^2 words of width c a patch.

Cost: time ``O(n (m^2 c + m c^2 + m c D) + n^2 D + n D^2)``.

A state dict of the authors' code maps so: ``patch_embed.proj`` -> ``words``, ``inner_pos`` -> ``word_positions``,
``proj_norm1, proj, proj_norm2`` -> ``sentences.before, project, after``, ``cls_token`` -> ``class_token``,
``outer_pos`` -> ``class_position`` and ``positions.weight``, ``norm`` and ``head`` as they are. In ``blocks.n``:
``inner_*`` -> ``inner``, ``outer_*`` -> ``outer`` (``norm1, norm2`` -> ``layer_norm, feed_forward_norm``; ``attn.qk, v,
proj`` -> ``layer.query, key, value, output``; ``mlp.fc1, fc2`` -> ``feed_forward.up, down``), ``proj_norm1, proj,
proj_norm2`` -> ``sentences``. ``outer_tokens``, zeros that the authors' code does not use, is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.backbones.image import BackboneInfo, Encoded, ImageBackbone, Level, token_grid
from manyheads.core.blocks.drop_path import drop_path_rates
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.image_embeddings import GridPositions
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, heads_argument
from manyheads.core.layers.softmax import SoftmaxAttention

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


class TNT(ImageBackbone):
    """Transformer in Transformer; see the module for the equation and for the map of state dicts.

    Raises:
        ArgumentError: an image that is no multiple of the patch, a patch that is no multiple of the stride of words,
            heads that do not divide.
    """

    info = BackboneInfo(
        name="tnt",
        title="Transformer in Transformer",
        arxiv="2103.00112",
        presets={
            "tiny": {"dim": 192, "heads": 3, "word_dim": 12, "word_heads": 2},
            "small": {"dim": 384, "heads": 6, "word_dim": 24, "word_heads": 4},
            "base": {"dim": 640, "heads": 10, "word_dim": 40, "word_heads": 4},
            "nano": {
                "image_size": 32,
                "patch": 8,
                "word_stride": 4,
                "dim": 64,
                "heads": 4,
                "word_dim": 16,
                "word_heads": 2,
                "depth": 2,
                "expansion": 2.0,
            },
        },
        parameters={"small": "23.8M"},
        good_for="Images where details within a patch decide, at little more cost than a Vision Transformer.",
        not_for="Large images, as time grows with n^2: take ffnet. Small training sets: take convit.",
        deviations=(
            "the words enter new sentences; the authors' code writes them into the caller's tensor",
            "the published count of base, 65.6M, holds 125,440 frozen zeros that the authors' code does not use: here "
            "65.4M",
            "the sizes of 'tiny' are recalled: the authors' code has small and base",
            "images of another size and shape: the positions of the patches are interpolated (bicubic)",
            "weights begin as in torch's linear layer",
        ),
    )

    dim: int = argument(default=384, least=1)
    """Width D of the sentences."""
    depth: int = argument(default=12, least=1)
    """Blocks."""
    heads: int = heads_argument()
    """Attention heads over the sentences; divides ``dim``."""
    word_dim: int = argument(default=24, least=1)
    """Width c of the words."""
    word_heads: int = argument(default=4, least=1)
    """Attention heads over the words; divides ``word_dim``."""
    word_stride: int = argument(default=4, least=1)
    """Pixels from word to word; divides ``patch``."""
    image_size: int | tuple[int, ...] = 224
    """Height and width of the images for which the positions are learned."""
    patch: int = argument(default=16, least=1)
    """Side of a patch in pixels."""
    expansion: float = 4.0
    """Hidden width of the feed-forward networks over the width."""
    dropout: float = 0.0
    """Dropout rate of the branches."""
    drop_path: float = 0.0
    """Drop path rate of the last block; it rises linearly from 0."""

    def setup(self) -> None:
        grid = token_grid(self.image_size, self.patch, "tnt")
        if self.patch % self.word_stride:
            raise ArgumentError(f"tnt: word_stride: found {self.word_stride}, expected a divisor of {self.patch}")
        words = (self.patch // self.word_stride) ** 2
        self.words = nn.Conv2d(self.channels, self.word_dim, 7, stride=self.word_stride, padding=3)
        self.word_positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(words, self.word_dim), std=0.02))
        self.sentences = _Sentences(words * self.word_dim, self.dim, bias=True)
        self.positions = GridPositions(*grid, self.dim)
        self.class_token = nn.Parameter(torch.randn(self.dim) * 0.02)
        self.class_position = nn.Parameter(torch.randn(self.dim) * 0.02)
        self.blocks = nn.ModuleList(
            _Block(
                self._residual(self.word_dim, self.word_heads, rate), self._residual(self.dim, self.heads, rate), words
            )
            for rate in drop_path_rates(self.drop_path, self.depth)
        )
        self.norm = nn.LayerNorm(self.dim)
        self.head = self.make_head(self.dim)
        self.levels = (Level(self.patch, self.dim),)

    def _residual(self, dim: int, heads: int, drop_path: float) -> ResidualBlock:
        return ResidualBlock(
            SoftmaxAttention(dim, heads=heads, bias="output"),
            FeedForward(dim, round(self.expansion * dim)),
            dropout=self.dropout,
            drop_path=drop_path,
        )

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        batch, channels, height, width = images.shape
        rows, columns, side = height // self.patch, width // self.patch, self.patch
        patches = images.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        words = self.words(patches.reshape(-1, channels, side, side)).flatten(2).mT + self.word_positions
        z = self.positions(self.sentences(words.reshape(batch, rows, columns, -1)))
        token = (self.class_token + self.class_position).expand(batch, 1, -1)
        z = torch.cat([token, z.flatten(1, 2)], 1)
        for block in self.blocks:
            words, z = block(words, z)
        z = self.norm(z)
        return Encoded((z[:, 1:].view(batch, rows, columns, -1),), z[:, 0])

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename a state dict of the authors' code for ``load_weights``."""
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            for pattern, new in _NAMES:
                name = re.sub(pattern, new, name)
            if name == "outer_pos":
                found["class_position"] = tensor[0, 0]
                found["positions.weight"] = tensor[0, 1:].reshape(self.positions.weight.shape)
            elif name == "inner_pos":
                found["word_positions"] = tensor[0]
            elif name == "cls_token":
                found["class_token"] = tensor.flatten()
            elif ".layer.qk." in name:
                for part, rows in zip(("query", "key"), tensor.chunk(2), strict=True):
                    found[name.replace(".qk.", f".{part}.")] = rows
            elif name != "outer_tokens":
                found[name] = tensor
        return found


# of the authors' code -> ours, one after the other
_NAMES = (
    (r"^patch_embed\.proj\.", "words."),
    (r"(^|\.)proj_norm1\.", r"\1sentences.before."),
    (r"(^|\d\.)proj\.", r"\1sentences.project."),
    (r"(^|\.)proj_norm2\.", r"\1sentences.after."),
    (r"\.(inner|outer)_norm1\.", r".\1.layer_norm."),
    (r"\.(inner|outer)_norm2\.", r".\1.feed_forward_norm."),
    (r"\.(inner|outer)_attn\.v\.", r".\1.layer.value."),
    (r"\.(inner|outer)_attn\.proj\.", r".\1.layer.output."),
    (r"\.(inner|outer)_attn\.", r".\1.layer."),
    (r"\.(inner|outer)_mlp\.fc1\.", r".\1.feed_forward.up."),
    (r"\.(inner|outer)_mlp\.fc2\.", r".\1.feed_forward.down."),
)


class _Sentences(nn.Module):
    """LN(W LN(vec Y)): the words of each patch as one sentence."""

    def __init__(self, words: int, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(words), nn.LayerNorm(dim)
        self.project = nn.Linear(words, dim, bias=bias)

    def forward(self, words: Tensor) -> Tensor:
        return self.after(self.project(self.before(words)))


class _Block(nn.Module):
    """A block over the words of each patch, and one over the sentences that have been told of them."""

    def __init__(self, inner: ResidualBlock, outer: ResidualBlock, words: int) -> None:
        super().__init__()
        self.inner, self.outer = inner, outer
        self.sentences = _Sentences(words * inner.layer.dim, outer.layer.dim, bias=False)

    def forward(self, words: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """``words (B n, m, c)``, ``z (B, 1 + n, D)``."""
        words = self.inner(words).y
        told = z[:, 1:] + self.sentences(words.reshape(z.shape[0], z.shape[1] - 1, -1))
        return words, self.outer(torch.cat([z[:, :1], told], 1)).y
