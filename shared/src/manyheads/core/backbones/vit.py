"""Vision Transformer (2010.11929, sizes of DeiT 2012.12877) around any registered layer.

    h = blocks(patches(x) + positions);   pooled: LN(h)[class token], or the mean of LN(h) over all tokens

A layer that takes a grid of two axes gets the grid of patches; any other gets the patches as a sequence in raster
order. Features are those after the last norm, at the stride of a patch.

Shapes: B images of C channels, P the patch, N = (H / P)(W / P) tokens of width D.

A state dict of timm or DeiT maps so: ``cls_token`` -> ``class_token``, ``pos_embed`` -> ``class_position`` and
``positions.weight``, ``patch_embed.proj`` -> ``patches.project``, ``norm`` -> ``stack.norm``, ``head`` as it is; in
``blocks.n`` -> ``stack.blocks.n``: ``norm1, norm2`` -> ``layer_norm, feed_forward_norm``, ``attn.qkv`` ->
``layer.query, key, value``, ``attn.proj`` -> ``layer.output``, ``mlp.fc1, fc2`` -> ``feed_forward.up, down``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from manyheads.core.backbones.image import BackboneInfo, Encoded, ImageBackbone, Level, pair, token_grid
from manyheads.core.backbones.stack import Stack, layer_for_grid
from manyheads.core.blocks.drop_path import drop_path_rates
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.image_embeddings import GridPositions, ImagePatches
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, heads_argument
from manyheads.core.registry import find_layer

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

_DEIT = {"image_size": 224, "patch": 16, "depth": 12, "pool": "token", "options": {"bias": True}}

# names of timm -> of ResidualBlock and ImagePatches
BLOCK_NAMES: Mapping[str, str] = {
    "patch_embed.proj": "patches.project",
    ".norm1.": ".layer_norm.",
    ".norm2.": ".feed_forward_norm.",
    ".attn.proj.": ".layer.output.",
    ".mlp.fc1.": ".feed_forward.up.",
    ".mlp.fc2.": ".feed_forward.down.",
}

_norm = partial(nn.LayerNorm, eps=1e-6)


class ViT(ImageBackbone):
    """Vision Transformer; see the module for the equation and for the map of state dicts.

    Raises:
        ArgumentError: an image that is no multiple of the patch, a class token beside a layer that takes grids only,
            heads that do not divide.
    """

    info = BackboneInfo(
        name="vit",
        title="An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
        arxiv="2010.11929",
        presets={
            "tiny": {**_DEIT, "dim": 192, "heads": 3},
            "small": {**_DEIT, "dim": 384, "heads": 6},
            "base": {**_DEIT, "dim": 768, "heads": 12},
            "nano": {"image_size": 32, "patch": 4, "dim": 64, "heads": 4, "depth": 3, "expansion": 2.0},
        },
        for_layer=("options", "pool"),
        parameters={"tiny": 5_717_416, "small": 22_050_664, "base": 86_567_656},
        good_for="Images with much training data or pretrained weights, and a comparison of layers in one network.",
        not_for="Small training sets: convit, ffnet and halonet assume that near pixels belong together.",
        deviations=(
            "the default pools the mean of the tokens; the presets of published size have the class token of the paper",
            "positions are interpolated for images of another size (bicubic)",
        ),
    )

    dim: int = argument(default=384, least=1)
    """Width D."""
    depth: int = argument(default=12, least=1)
    """Blocks."""
    heads: int = heads_argument()
    """Attention heads, for a layer that has them; divides ``dim``."""
    layer: str = "softmax"
    """The layer that mixes the tokens, a name of ``manyheads list``."""
    options: Mapping[str, Any] = argument(factory=lambda _: {})
    """Further arguments of the layer."""
    image_size: int | tuple[int, ...] = 224
    """Height and width of the images for which the positions are learned."""
    patch: int = argument(default=16, least=1)
    """Side of a patch in pixels."""
    expansion: float = 4.0
    """Hidden width of the feed-forward networks over D."""
    pool: Literal["mean", "token"] = "mean"
    """What the head reads: the mean of the tokens, or a class token."""
    dropout: float = 0.0
    """Dropout rate of the branches."""
    drop_path: float = 0.0
    """Drop path rate of the last block; it rises linearly from 0."""

    def setup(self) -> None:
        grid = token_grid(self.image_size, self.patch, "vit")
        self.patches = ImagePatches(self.channels, self.patch, self.dim)
        self.positions = GridPositions(*grid, self.dim)
        layers = [
            layer_for_grid(self.layer, self.dim, grid, heads=self.heads, options=self._options(index))
            for index in range(self.depth)
        ]
        if self.pool == "token":
            if 1 not in layers[0].grid_ranks or layers[0].grid is not None:
                raise ArgumentError(
                    f"vit: pool: found 'token' with the layer {self.layer!r}, expected pool='mean': this layer takes "
                    "grids or one length only, and a class token has no place there"
                )
            self.class_token = nn.Parameter(torch.randn(self.dim) * 0.02)
            self.class_position = nn.Parameter(torch.randn(self.dim) * 0.02)
        hidden = round(self.expansion * self.dim)
        rates = drop_path_rates(self.drop_path, self.depth)
        blocks = [
            ResidualBlock(one, FeedForward(self.dim, hidden), make_norm=_norm, dropout=self.dropout, drop_path=rate)
            for one, rate in zip(layers, rates, strict=True)
        ]
        self.stack = Stack(blocks, norm=_norm(self.dim))
        self.head = self.make_head(self.dim)
        self.levels = (Level(self.patch, self.dim),)

    def _options(self, index: int) -> dict[str, Any]:
        """The arguments of the layer of one block: layers along one axis take the axes of the grid in turn."""
        along = any(one.name == "axis" and one.default == -1 for one in find_layer(self.layer).arguments)
        return {"axis": index % 2, **self.options} if along else dict(self.options)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        return pair(self.image_size, "image_size", "vit") if self.stack.layers[0].grid is not None else None

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        x = self.positions(self.patches(images))
        if self.pool == "mean":
            x = self.stack(x).y
            return Encoded((x,), x.mean((1, 2)))
        token = (self.class_token + self.class_position).expand(x.shape[0], 1, -1)
        h = self.stack(torch.cat([token, x.flatten(1, 2)], 1)).y
        return Encoded((h[:, 1:].view(x.shape),), h[:, 0])

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename a state dict of timm or DeiT for ``load_weights``."""
        found: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if name == "cls_token":
                found["class_token"] = tensor.flatten()
            elif name == "pos_embed":
                found["class_position"] = tensor[0, 0]
                found["positions.weight"] = tensor[0, 1:].reshape(self.positions.weight.shape)
            elif ".attn.qkv." in name:
                for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    found["stack." + name.replace(".attn.qkv.", f".layer.{part}.")] = rows
            else:
                for old, new in BLOCK_NAMES.items():
                    name = name.replace(old, new)
                inside = name.startswith(("blocks.", "norm."))
                found[f"stack.{name}" if inside else name] = tensor
        return found
