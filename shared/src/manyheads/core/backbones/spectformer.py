"""SpectFormer (2304.06446): spectral gates in the first blocks, attention in the rest.

Vanilla, on the patches of one grid, alpha the number of spectral blocks:

    block < alpha    x + FFN(LN(gate(LN(x))))                                one residual connection around both
    block >= alpha   x + MHA(LN(x)), then x + FFN(LN(x))
    pooled           the mean of LN(h) over all tokens

Hierarchical, four stages at strides 4 to 32, the first two spectral; M is a gate in a spectral block, else attention:

    block            x + M(LN(x)), then x + FFN(LN(x)); the FFN has a depthwise 3 x 3 convolution
    pooled           LN of a class token: the mean of the tokens, which attends to itself and them in one more block
    logits           U pooled + max over tokens of V LN(token) / 2           U the head, V the token head

The token head is that of token labelling (2104.10858): ``token_logits`` gives the logits of the image and of each token
for a loss on both.

A gate has the size of its grid, so a backbone with spectral blocks takes images of one size; ``resized`` makes one for
another size from the same weights.

A state dict of the authors' vanilla code maps so: ``patch_embed.proj`` -> ``patches.project``, ``pos_embed`` ->
``positions.weight``, ``norm`` and ``head`` as they are; in ``blocks.n``: ``norm1, norm2`` -> ``layer_norm,
feed_forward_norm``, ``filter.complex_weight`` -> ``layer.weight``, ``attn.qkv`` -> ``layer.query, key, value``,
``attn.proj`` -> ``layer.output``, ``mlp.fc1, fc2`` -> ``feed_forward.up, down``. In their hierarchical code:
``patch_embed1, …`` -> ``embeds.0, …``, ``block1.n, …`` -> ``stages.0.n, …`` and inside as above,
``attn.complex_weight`` -> ``layer.weight``, ``attn.q, kv, proj`` -> ``layer.query, key and value, output``,
``mlp.dwconv.dwconv`` -> ``feed_forward.convolution.large``, ``norm1, …`` -> ``norms.0, …``, ``post_network.0`` ->
``class_block``, ``aux_head`` -> ``token_head``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from manyheads.core.backbones.image import BackboneInfo, Encoded, ImageBackbone, Level, pair, token_grid
from manyheads.core.blocks.drop_path import DropPath, drop_path_rates
from manyheads.core.blocks.feed_forward import ConvolvedFeedForward, FeedForward
from manyheads.core.blocks.image_embeddings import GridPositions, ImagePatches, interpolated
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, heads_argument
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.layers.spectral_gate import SpectralGate

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

Size = int | tuple[int, ...]
Net = TypeVar("Net", "SpectFormer", "SpectFormerHierarchical")

_norm = partial(nn.LayerNorm, eps=1e-6)


class SpectralBlock(nn.Module):
    """``x + drop(G(N(F(N(x)))))``: one residual connection around the gate F and the feed-forward network G."""

    def __init__(self, layer: SpectralGate, feed_forward: nn.Module, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.layer, self.feed_forward = layer, feed_forward
        self.layer_norm, self.feed_forward_norm = _norm(layer.dim), _norm(layer.dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Run the block."""
        gated = self.layer(self.layer_norm(x)).y
        return x + self.drop_path(self.feed_forward(self.feed_forward_norm(gated)))


class SpectFormer(ImageBackbone):
    """SpectFormer on the patches of one grid; see the module for the equation and for the map of state dicts.

    Raises:
        ArgumentError: an image that is no multiple of the patch, more spectral blocks than blocks, heads that do not
            divide.
    """

    info = BackboneInfo(
        name="spectformer",
        title="SpectFormer: Frequency and Attention is what you need in a Vision Transformer",
        arxiv="2304.06446",
        presets={
            "tiny": {"dim": 256, "heads": 4, "depth": 12},
            "xs": {"dim": 384, "heads": 6, "depth": 12},
            "small": {"dim": 384, "heads": 6, "depth": 19, "drop_path": 0.15},
            "base": {"dim": 512, "heads": 8, "depth": 19, "drop_path": 0.25},
            "nano": {
                "image_size": 32, "patch": 4, "dim": 48, "heads": 4, "depth": 4, "spectral": 2, "expansion": 2.0,
            },
        },
        parameters={"tiny": 9_158_376, "xs": 20_028_520, "small": 32_449_768, "base": 57_159_656},
        good_for="Images of one size with textures, at fewer operations than a ViT of this depth.",
        not_for="Images of many sizes: take vit. Dense prediction: take spectformer-hierarchical.",
        deviations=(
            "here tiny has 4 heads and base 8: the authors' code has 6 for every size, which divides neither width, so "
            "that the heads of the published weights are not known",
            "here images need not be square",
        ),
    )  # fmt: skip

    dim: int = argument(default=384, least=1)
    """Width D."""
    depth: int = argument(default=12, least=1)
    """Blocks."""
    spectral: int = argument(default=4, least=0)
    """alpha: blocks with a spectral gate, the first ones."""
    heads: int = heads_argument()
    """Attention heads; divides ``dim``."""
    image_size: Size = 224
    """Height and width of the images."""
    patch: int = argument(default=16, least=1)
    """Side of a patch in pixels."""
    expansion: float = 4.0
    """Hidden width of the feed-forward networks over D."""
    drop_path: float = 0.0
    """Drop path rate of the last block; it rises linearly from 0."""

    def setup(self) -> None:
        grid = token_grid(self.image_size, self.patch, "spectformer")
        if self.spectral > self.depth:
            raise ArgumentError(f"spectformer: spectral: found {self.spectral}, expected 0 to depth = {self.depth}")
        self.patches = ImagePatches(self.channels, self.patch, self.dim)
        self.positions = GridPositions(*grid, self.dim)
        hidden = round(self.expansion * self.dim)
        self.blocks = nn.ModuleList()
        for index, rate in enumerate(drop_path_rates(self.drop_path, self.depth)):
            feed_forward = FeedForward(self.dim, hidden)
            if index < self.spectral:
                gate = SpectralGate(self.dim, height=grid[0], width=grid[1])
                self.blocks.append(SpectralBlock(gate, feed_forward, drop_path=rate))
            else:
                layer = SoftmaxAttention(self.dim, heads=self.heads, bias=True)
                self.blocks.append(ResidualBlock(layer, feed_forward, make_norm=_norm, drop_path=rate))
        self.norm = _norm(self.dim)
        self.head = self.make_head(self.dim)
        self.levels = (Level(self.patch, self.dim),)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        return pair(self.image_size, "image_size", "spectformer") if self.spectral else None

    def resized(self, image_size: Size) -> SpectFormer:
        """Return a new backbone for images of another size: gates and positions are interpolated.

        Raises:
            ArgumentError: a size that is no multiple of the patch.
        """
        return _resized(self, image_size)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        x = self.positions(self.patches(images))
        for block in self.blocks:
            x = block(x) if isinstance(block, SpectralBlock) else block(x).y
        x = self.norm(x)
        return Encoded((x,), x.mean((1, 2)))

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename a state dict of the authors' vanilla code for ``load_weights``."""
        found = _renamed(state)
        found["positions.weight"] = found["positions.weight"].reshape(self.positions.weight.shape)
        return found


class TokenLogits(NamedTuple):
    """What :meth:`SpectFormerHierarchical.token_logits` returns."""

    image: Tensor  # (B, K)
    tokens: Tensor  # (B, H / 32, W / 32, K)


class SpectFormerHierarchical(ImageBackbone):
    """SpectFormer in stages; see the module for the equation and for the map of state dicts.

    Raises:
        ArgumentError: an image that is no multiple of the coarsest stride, stages of unequal number, heads that do not
            divide.
    """

    info = BackboneInfo(
        name="spectformer-hierarchical",
        title="SpectFormer: Frequency and Attention is what you need in a Vision Transformer",
        arxiv="2304.06446",
        presets={
            "small": {"stem": 32, "drop_path": 0.1},
            "base": {
                "dims": (64, 128, 320, 512), "heads": (2, 4, 10, 16), "depths": (3, 4, 12, 3), "drop_path": 0.1,
            },
            "large": {
                "dims": (96, 192, 384, 512), "heads": (3, 6, 12, 16), "depths": (3, 6, 18, 3), "drop_path": 0.3,
            },
            "nano": {
                "image_size": 32, "dims": (16, 24, 32, 48), "heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1), "stem": 16,
                "expansions": (4.0, 4.0, 2.0, 2.0),
            },
        },
        parameters={"small": 22_226_928, "base": 33_052_880, "large": 54_675_792},
        good_for="Images of one size, as classes or as features of four strides for detection and segmentation.",
        not_for="Images of many sizes, as the gates of the first stages are as large as their grids: take halonet.",
        deviations=(
            "here forward gives the logits of image and tokens joined, in training too; the authors' code does in "
            "evaluation, and in training returns both for the loss of token labelling: token_logits",
            "here no MixToken, which is a step of training",
            "here any dims and image size; the authors' code has gates of widths 64, 96, 128, 192 at 224 pixels",
        ),
    )  # fmt: skip

    dims: tuple[int, ...] = (64, 128, 320, 448)
    """Width of each stage."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (2, 4, 10, 14)
    """Attention heads of each stage; divide its width. Those of a spectral stage are not used."""
    expansions: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0)
    """Hidden width of the feed-forward networks over the width, for each stage."""
    spectral: int = argument(default=2, least=0)
    """Stages with spectral gates, the first ones."""
    stem: int = argument(default=64, least=1)
    """Channels of the convolutions before the first stage."""
    image_size: Size = 224
    """Height and width of the images."""
    token_labelling: bool = True
    """The head for tokens, which the logits of the image take in."""
    drop_path: float = 0.0
    """Drop path rate of the last block; it rises linearly from 0."""

    def setup(self) -> None:
        name, stages = "spectformer-hierarchical", len(self.dims)
        for field in ("depths", "heads", "expansions"):
            if len(getattr(self, field)) != stages:
                raise ArgumentError(
                    f"{name}: {field}: found {getattr(self, field)}, expected one for each of {stages} dims"
                )
        if not stages or self.spectral > stages or min(self.dims + self.depths + self.heads) < 1:
            raise ArgumentError(
                f"{name}: found dims {self.dims}, depths {self.depths}, heads {self.heads} and {self.spectral} "
                "spectral stages, expected one stage or more, of 1 or more each, and no more spectral ones"
            )
        token_grid(self.image_size, 2 ** (stages + 1), name)
        size = pair(self.image_size, "image_size", name)
        self.levels = tuple(Level(4 * 2**stage, dim) for stage, dim in enumerate(self.dims))
        self.embeds = nn.ModuleList([Stem(self.channels, self.stem, self.dims[0])])
        self.embeds.extend(Halving(before, after) for before, after in pairwise(self.dims))
        self.stages, rates = nn.ModuleList(), iter(drop_path_rates(self.drop_path, sum(self.depths)))
        for stage, ((stride, dim), depth) in enumerate(zip(self.levels, self.depths, strict=True)):
            blocks = nn.ModuleList()
            for _ in range(depth):
                if stage < self.spectral:
                    layer = SpectralGate(dim, height=size[0] // stride, width=size[1] // stride)
                else:
                    layer = SoftmaxAttention(dim, heads=self.heads[stage], bias=True)
                feed_forward = ConvolvedFeedForward(dim, round(self.expansions[stage] * dim))
                blocks.append(ResidualBlock(layer, feed_forward, make_norm=_norm, drop_path=next(rates)))
            self.stages.append(blocks)
        self.norms = nn.ModuleList(_norm(dim) for dim in self.dims)
        dim = self.dims[-1]
        attention = SoftmaxAttention(dim, heads=self.heads[-1], context_dim=dim, bias=True)
        self.class_block = ResidualBlock(attention, FeedForward(dim, round(self.expansions[-1] * dim)), make_norm=_norm)
        self.head = self.make_head(dim)
        self.token_head = self.make_head(dim) if self.token_labelling and self.classes is not None else None

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        return pair(self.image_size, "image_size", "spectformer-hierarchical") if self.spectral else None

    def resized(self, image_size: Size) -> SpectFormerHierarchical:
        """Return a new backbone for images of another size: gates are interpolated.

        Raises:
            ArgumentError: a size that is no multiple of the coarsest stride.
        """
        return _resized(self, image_size)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        x, levels = images.permute(0, 2, 3, 1), []
        for embed, blocks, norm in zip(self.embeds, self.stages, self.norms, strict=True):
            x = embed(x)
            for block in blocks:  # ty: ignore[not-iterable]
                x = block(x).y
            levels.append(norm(x))
            if len(levels) < len(self.dims):
                x = levels[-1]
        tokens = x.flatten(1, 2)
        # the class token last: the block computes the last token only, and attention does not see the order
        with_class = torch.cat([tokens, tokens.mean(1, keepdim=True)], 1)
        return Encoded(tuple(levels), self.norms[-1](self.class_block.last(with_class, 1)[:, 0]))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of the classes, the largest of the tokens' logits added by half. Raises as ``forward_features``."""
        encoded = self.encode(self._checked(images))
        logits = self.head(encoded.pooled)
        return logits if self.token_head is None else logits + 0.5 * self.token_head(encoded.levels[-1]).amax((1, 2))

    def token_logits(self, images: Float[Tensor, "b c h w"]) -> TokenLogits:
        """Logits of the image from its class token, and of every token of the last level, for token labelling.

        Raises:
            ArgumentError: no token head; images as in ``forward_features``.
        """
        if self.token_head is None:
            raise ArgumentError(
                f"{self.info.name}: token_logits: found no token head, expected token_labelling=True and classes"
            )
        encoded = self.encode(self._checked(images))
        return TokenLogits(self.head(encoded.pooled), self.token_head(encoded.levels[-1]))

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename a state dict of the authors' hierarchical code for ``load_weights``."""
        return _renamed(state)


class Stem(nn.Module):
    """Four convolutions from pixels to tokens of stride 4, channels last."""

    def __init__(self, channels: int, hidden: int, dim: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for inputs, kernel, stride in ((channels, 7, 2), (hidden, 3, 1), (hidden, 3, 1)):
            convolution = nn.Conv2d(inputs, hidden, kernel, stride=stride, padding=kernel // 2, bias=False)
            parts += [convolution, nn.BatchNorm2d(hidden), nn.ReLU()]
        self.convolutions = nn.Sequential(*parts)
        self.halve = Halving(hidden, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 d"]:
        """Embed an image."""
        return self.halve(self.convolutions(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Halving(nn.Module):
    """A 3 x 3 convolution of stride 2 and a layer norm, channels last."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h2 w2 d2"]:
        """Halve height and width."""
        return self.norm(self.project(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


_NAMES = (
    (r"^patch_embed\.proj", "patches.project"),
    (r"^pos_embed$", "positions.weight"),
    (r"^patch_embed1\.conv\.", "embeds.0.convolutions."),
    (r"^patch_embed1\.", "embeds.0.halve."),
    (r"^patch_embed(\d)\.", lambda found: f"embeds.{int(found[1]) - 1}."),
    (r"^block(\d)\.", lambda found: f"stages.{int(found[1]) - 1}."),
    (r"^norm(\d)\.", lambda found: f"norms.{int(found[1]) - 1}."),
    (r"^post_network\.0\.", "class_block."),
    (r"^aux_head\.", "token_head."),
    (r"^(embeds\.\d(?:\.halve)?)\.proj\.", r"\1.project."),
    (r"\.norm1\.", ".layer_norm."),
    (r"\.norm2\.", ".feed_forward_norm."),
    (r"\.(?:filter|attn)\.complex_weight$", ".layer.weight"),
    (r"\.attn\.proj\.", ".layer.output."),
    (r"\.attn\.q\.", ".layer.query."),
    (r"\.mlp\.fc1\.", ".feed_forward.up."),
    (r"\.mlp\.dwconv\.dwconv\.", ".feed_forward.convolution.large."),
    (r"\.mlp\.fc2\.", ".feed_forward.down."),
)


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the authors' code, both forms, under our names."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for old, new in _NAMES:
            name = re.sub(old, new, name)
        joint = re.fullmatch(r"(.*)\.attn\.(qkv|kv)\.(weight|bias)", name)
        if joint is None:
            found[name] = tensor
            continue
        parts = ("query", "key", "value")[-len(joint[2]) :]
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            found[f"{joint[1]}.layer.{part}.{joint[3]}"] = rows
    return found


@torch.no_grad()
def _resized(model: Net, image_size: Size) -> Net:
    arguments: dict[str, Any] = {**model.config, "image_size": image_size}
    other = type(model)(**arguments).to(next(model.parameters())).train(model.training)
    state = dict(model.state_dict())
    for name, module in other.named_modules():
        own = model.get_submodule(name)
        if isinstance(module, SpectralGate) and isinstance(own, SpectralGate):
            state[f"{name}.weight"] = own.resized(module.height, module.width).weight
        elif isinstance(module, GridPositions) and isinstance(own, GridPositions):
            state[f"{name}.weight"] = interpolated(own.weight, tuple(module.weight.shape[:2]))
    other.load_weights(state)
    return other
