"""ConViT (2103.10697): a Vision Transformer whose first blocks mix the patches by gated positional self-attention.

    h = local blocks(patches(x) + positions)          (GPSA on the grid of patches)
    t = blocks([class token; h])                      (softmax attention)
    pooled: LN(t)[class token]

The class token joins after the local blocks, as it has no place on the grid. Features are the patches after the last
norm, at the stride of a patch.

Shapes: B images of C channels, P the patch, N = (H / P)(W / P) tokens of width D.

A state dict of the authors' code maps so: ``cls_token`` -> ``class_token``, ``pos_embed`` -> ``positions.weight``,
``patch_embed.proj`` -> ``patches.project``, ``norm`` -> ``stack.norm``, ``head`` as it is. The first ``blocks.n`` are
``near.blocks.n``, those after them ``stack.blocks``. In each, ``norm1, norm2`` -> ``layer_norm, feed_forward_norm``,
``attn.qk`` and ``attn.v``, or ``attn.qkv``, -> ``layer.query, key, value``, ``attn.pos_proj.weight`` ->
``layer.position``, ``attn.gating_param`` -> ``layer.gates``, ``attn.proj`` -> ``layer.output``, ``mlp.fc1, fc2`` ->
``feed_forward.up, down``. ``attn.pos_proj.bias`` is dropped: softmax does not see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from manyheads.core.backbones.image import BackboneInfo, Encoded, ImageBackbone, Level, token_grid
from manyheads.core.backbones.stack import Stack
from manyheads.core.backbones.vit import BLOCK_NAMES
from manyheads.core.blocks.drop_path import drop_path_rates
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.image_embeddings import GridPositions, ImagePatches
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, heads_argument
from manyheads.core.layer import Layer
from manyheads.core.registry import create

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

_norm = partial(nn.LayerNorm, eps=1e-6)


class ConViT(ImageBackbone):
    """ConViT; see the module for the equation and for the map of state dicts.

    Raises:
        ArgumentError: an image that is no multiple of the patch, heads that do not divide, local blocks that leave no
            block for the class token.
    """

    info = BackboneInfo(
        name="convit",
        title="ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
        arxiv="2103.10697",
        presets={
            "tiny": {"dim": 192, "heads": 4},
            "tiny-plus": {"dim": 256, "heads": 4},
            "small": {"dim": 432, "heads": 9},
            "small-plus": {"dim": 576, "heads": 9},
            "base": {"dim": 768, "heads": 16},
            "base-plus": {"dim": 1024, "heads": 16},
            "nano": {
                "image_size": 32,
                "patch": 4,
                "dim": 48,
                "heads": 4,
                "depth": 3,
                "local": 2,
                "expansion": 2.0,
            },
        },
        parameters={"tiny": "6M", "tiny-plus": "10M"},
        good_for="Images with few training examples: it begins as a soft convolution and can learn to leave it.",
        not_for="Large images: time grows with the square of the pixels. Take ffnet.",
        deviations=(
            "here the biases of the positional logits are left out: softmax does not see them",
            "here the positional softmax is applied axis by axis: the same function",
            "images of another size and shape: positions are interpolated (bicubic)",
            "weights other than those of the local initialisation begin as in torch's linear layer",
            "of the published counts (6M, 10M, 27M, 48M, 86M, 152M), small, small-plus and base are rounded down, and "
            "base-plus, whose width the authors' code does not have, has 153M here",
        ),
    )

    dim: int = argument(default=192, least=1)
    """Width D."""
    depth: int = argument(default=12, least=2)
    """Blocks."""
    local: int = argument(default=10, least=1)
    """The number of first blocks, those with gated positional self-attention; fewer than ``depth``."""
    heads: int = heads_argument()
    """Attention heads; divides ``dim``. A square number fills a square of offsets."""
    alpha: float | None = 1.0
    """Locality strength of the initialisation; None for no local initialisation."""
    gate: float = 1.0
    """Initial lambda: the share ``sigmoid(lambda)`` of the attention is positional."""
    image_size: int | tuple[int, ...] = 224
    """Height and width of the images for which the positions are learned."""
    patch: int = argument(default=16, least=1)
    """Side of a patch in pixels."""
    expansion: float = 4.0
    """Hidden width of the feed-forward networks over D."""
    dropout: float = 0.0
    """Dropout rate of the branches."""
    drop_path: float = 0.0
    """Drop path rate of the last block; it rises linearly from 0."""

    def setup(self) -> None:
        grid = token_grid(self.image_size, self.patch, "convit")
        if self.local >= self.depth:
            raise ArgumentError(
                f"convit: local: found {self.local} of {self.depth} blocks, expected fewer: the class token joins "
                "after them"
            )
        self.patches = ImagePatches(self.channels, self.patch, self.dim)
        self.positions = GridPositions(*grid, self.dim)
        self.class_token = nn.Parameter(torch.randn(self.dim) * 0.02)
        blocks = [self._block(index) for index in range(self.depth)]
        self.near = Stack(blocks[: self.local])
        self.stack = Stack(blocks[self.local :], norm=_norm(self.dim))
        self.head = self.make_head(self.dim)
        self.levels = (Level(self.patch, self.dim),)

    def _block(self, index: int) -> ResidualBlock:
        layer: Layer
        if index < self.local:
            layer = create("gpsa", self.dim, heads=self.heads, alpha=self.alpha, gate=self.gate)
        else:
            layer = create("softmax", self.dim, heads=self.heads, bias="output")
        return ResidualBlock(
            layer,
            FeedForward(self.dim, round(self.expansion * self.dim)),
            make_norm=_norm,
            dropout=self.dropout,
            drop_path=drop_path_rates(self.drop_path, self.depth)[index],
        )

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        x = self.near(self.positions(self.patches(images))).y
        token = self.class_token.expand(x.shape[0], 1, -1)
        h = self.stack(torch.cat([token, x.flatten(1, 2)], 1)).y
        return Encoded((h[:, 1:].view(x.shape),), h[:, 0])

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename a state dict of the authors' code for ``load_weights``."""
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if name.endswith(".attn.pos_proj.bias"):
                continue
            for old, new in {**BLOCK_NAMES, **_NAMES}.items():
                name = name.replace(old, new)
            if name.startswith("blocks."):
                _, index, rest = name.split(".", 2)
                block = int(index)
                near = block < self.local
                name = f"near.blocks.{block}.{rest}" if near else f"stack.blocks.{block - self.local}.{rest}"
            joined = next((key for key in _JOINED if key in name), None)
            if joined is not None:
                for part, rows in zip(_JOINED[joined], tensor.chunk(len(_JOINED[joined])), strict=True):
                    found[name.replace(joined, f".layer.{part}.")] = rows
            elif name == "pos_embed":
                found["positions.weight"] = tensor.reshape(self.positions.weight.shape)
            elif name == "cls_token":
                found["class_token"] = tensor.flatten()
            else:
                found[f"stack.{name}" if name.startswith("norm.") else name] = tensor
        return found


_NAMES = {
    ".attn.v.": ".layer.value.",
    ".attn.pos_proj.weight": ".layer.position",
    ".attn.gating_param": ".layer.gates",
}

# projections that the authors' code holds in one matrix
_JOINED = {".attn.qk.": ("query", "key"), ".attn.qkv.": ("query", "key", "value")}
