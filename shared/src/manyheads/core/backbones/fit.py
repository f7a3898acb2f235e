r"""FIT: Far-reaching Interleaved Transformers (2305.12689): local layers within groups, global layers over latents.

The input is t groups of n tokens, ``x (B, t, n, D_x)``. Each group has m latents, ``z (B, t, m, D_z)``, which are
initialised with learned vectors. A schedule such as "(2)4(2)4(2)" lists the stages ``(x_i)l_i``: x_i local layers, l_i
global layers.

    x_g <- local(x_g)                        x_i pre-norm layers (attention, MLP) within each group
    z_g <- z_g + A(LN z_g, LN x_g)           read, if l_i > 0: m queries over n keys of the same group
    z   <- global(z)                         l_i pre-norm layers over the t m latents of all groups
    x_g <- x_g + A(LN x_g, LN z_g)           write, unless the stage is the last

A is multi-head attention of width ``min(D_x, D_z)`` with ``min(H_x, H_z)`` heads. The results are ``LN x`` and
``LN z``. Three forms:

    FIT                 an encoder; with ``outputs`` and ``context_dim`` a decoder such as the denoiser of the paper
    AutoregressiveFIT   a language model: local layers are causal, a latent attends to its own group and earlier groups,
                        and the write of group g attends to the latents of group g - 1 (zeros for group 0), because the
                        latents of a group have read its last token
    ImageFIT            an image backbone: tokens are patches, groups are square windows of patches

Cost: local ``N n D``, read and write ``N m D``, global ``(t m)^2 D`` per layer. With ``n ~ N^(1/3)`` and constant m the
total is ``O(N^(4/3))`` in time and memory.

Positions count within a group. Only the latents distinguish groups, so the first local layers cannot distinguish them.

Axes: b batch, g groups, n tokens of a group, m latents of a group, t tokens of all groups, c inputs, d width, k
outputs, v vocabulary, s context tokens.

Differs from the paper's code: any stage may be without global layers, and then has no read and no write; m = 0 gives a
plain Transformer in each group; sinusoidal positions are not divided by the number of positions, so a longer input
does not change them; no drop path, no second input ``y``; the decoder has no MLP after reading and no conditioning on
earlier latents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked, checked_constructor, describe
from manyheads.core.backbones.image import BackboneInfo, Encoded, ImageBackbone, Level, pair
from manyheads.core.blocks.embeddings import sinusoidal_positions
from manyheads.core.blocks.feed_forward import FeedForward
from manyheads.core.blocks.image_embeddings import ImagePatches, interpolated
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import Configured, argument
from manyheads.core.functional.attention import attention
from manyheads.core.layer import Layer
from manyheads.core.layers.softmax import HeadAttention, SoftmaxAttention
from manyheads.core.mask import Mask

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

Schedule = tuple[tuple[int, int], ...]
Positions = Literal["learned", "sinusoidal"]

_norm = partial(nn.LayerNorm, eps=1e-6)


class Encodings(NamedTuple):
    """Normed tokens and latents."""

    x: Tensor  # (B, t, n, D_x), or (B, t, n, K) with ``outputs``
    z: Tensor  # (B, t, m, D_z)


@checked
def parse_schedule(schedule: str) -> Schedule:
    """Return (local layers, global layers) of each stage: "(2)4(1)" is ``((2, 4), (1, 0))``.

    Raises:
        ArgumentError: another form, no layer at all.
    """
    if not re.fullmatch(r"(\(\d+\)\d+)*\(\d+\)\d*", schedule):
        raise ArgumentError(
            f"schedule: found {schedule!r}, expected stages of local layers in brackets and global layers after them, "
            "such as '(2)4(2)4(2)'; only the last stage may leave out the global layers"
        )
    stages = tuple((int(x), int(z or 0)) for x, z in re.findall(r"\((\d+)\)(\d*)", schedule))
    if not any(x + z for x, z in stages):
        raise ArgumentError(f"schedule: found {schedule!r}, expected one layer or more")
    return stages


class BlockCausalAttention(HeadAttention):
    """Softmax attention over groups of ``group`` tokens: a token attends to its own group and earlier groups."""

    info = SoftmaxAttention.info

    group: int = argument(default=1, least=1)
    """Tokens of a group."""

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        number = torch.arange(q.shape[2], device=q.device) // self.group
        return attention(q, k, v, allowed=number.unsqueeze(1) >= number)


@checked_constructor
class GroupRead(nn.Module):
    """``y = x + A(LN x, LN c)``: attention of one set of tokens over another set, of another width.

    Args:
        dim: width of the tokens that read.
        context_dim: width of the tokens that are read.
        heads: number of heads.
        inner: width of queries, keys and values; the smaller of the two widths by default.

    Raises:
        ArgumentError: heads that do not divide ``inner``.
    """

    def __init__(self, dim: int, context_dim: int, *, heads: int, inner: int | None = None) -> None:
        super().__init__()
        inner = min(dim, context_dim) if inner is None else inner
        if heads < 1 or inner % heads:
            raise ArgumentError(f"group read: heads: found {heads}, expected a divisor of the width {inner}")
        self.heads = heads
        self.norm, self.context_norm = _norm(dim), _norm(context_dim)
        self.query = nn.Linear(dim, inner)
        self.key, self.value = nn.Linear(context_dim, inner), nn.Linear(context_dim, inner)
        self.output = nn.Linear(inner, dim)

    def forward(self, x: Float[Tensor, "r n d"], context: Float[Tensor, "r s c"]) -> Float[Tensor, "r n d"]:
        """Return x plus the attention of its tokens to the context of the same row."""
        read = self.context_norm(context)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(self.norm(x)), self.key(read), self.value(read))
        )
        return x + self.output(attention(q, k, v).transpose(1, 2).flatten(2))


class _Stage(nn.Module):
    """One stage: local layers, read, an optional context, global layers, write."""

    def __init__(
        self,
        local: int,
        across: int,
        dims: tuple[int, int],
        heads: tuple[int, int],
        *,
        expansion: float,
        latents: int | None,
        context_dim: int | None,
        last: bool,
    ) -> None:
        super().__init__()
        causal = latents is not None

        def layers(count: int, width: int, make: Callable[[int], Layer]) -> nn.ModuleList:
            hidden = round(expansion * width)
            return nn.ModuleList(
                ResidualBlock(make(width), FeedForward(width, hidden), make_norm=_norm) for _ in range(count)
            )

        self.local = layers(local, dims[0], lambda d: SoftmaxAttention(d, heads=heads[0], causal=causal, bias=True))
        self.across = layers(
            across,
            dims[1],
            lambda d: (
                SoftmaxAttention(d, heads=heads[1], bias=True)
                if latents is None
                else BlockCausalAttention(d, heads=heads[1], bias=True, group=latents)
            ),
        )
        least = min(heads)
        self.read = GroupRead(dims[1], dims[0], heads=least) if across else None
        context = across and context_dim
        self.context = GroupRead(dims[1], context, heads=heads[1], inner=dims[1]) if context else None
        self.write = GroupRead(*dims, heads=least) if across and not last else None

    def forward(
        self, x: Tensor, z: Tensor, context: Tensor | None, source: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        batch, groups, latents, _ = z.shape
        x = x.flatten(0, 1)
        for block in self.local:
            x = block(x).y
        if self.read is not None:
            z = self.read(z.flatten(0, 1), x).reshape(batch, groups * latents, -1)
            if self.context is not None and context is not None:
                z = self.context(z, context)
            for block in self.across:
                z = block(z).y
            z = z.reshape(batch, groups, latents, -1)
            if self.write is not None:
                x = self.write(x, source(z).flatten(0, 1))
        return x.reshape(batch, groups, *x.shape[1:]), z


class Interleaved(nn.Module):
    """The stages of FIT; see the module for the equations.

    Args:
        schedule: of the stages.
        dims: D_x and D_z.
        heads: H_x and H_z.
        latents: m; 0 for local layers alone.
        expansion: hidden width of the feed-forward networks over the width.
        causal: the autoregressive form.
        context_dim: width of a context that the latents read before their global layers.

    Raises:
        ArgumentError: a schedule of another form, heads that do not divide.
    """

    def __init__(
        self,
        schedule: str,
        dims: tuple[int, int],
        heads: tuple[int, int],
        *,
        latents: int,
        expansion: float = 4.0,
        causal: bool = False,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        stages = parse_schedule(schedule)
        self.causal = causal
        self.stages = nn.ModuleList(
            _Stage(
                local,
                across if latents else 0,
                dims,
                heads,
                expansion=expansion,
                latents=max(latents, 1) if causal else None,
                context_dim=context_dim,
                last=index == len(stages) - 1,
            )
            for index, (local, across) in enumerate(stages)
        )

    def forward(
        self, x: Float[Tensor, "b g n d"], z: Float[Tensor, "b g m e"], context: Float[Tensor, "b s c"] | None = None
    ) -> tuple[Float[Tensor, "b g n d"], Float[Tensor, "b g m e"]]:
        """Return tokens and latents after all stages, before the last norms."""
        for stage in self.stages:
            x, z = stage(x, z, context, self.source)
        return x, z

    def source(self, z: Float[Tensor, "b g m e"]) -> Float[Tensor, "b g m e"]:
        """Return the latents that the write of each group reads: its own, or those of the group before if causal."""
        return torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1) if self.causal else z


class _Places(nn.Module):
    """Positions of the tokens of a group, and initial latents of each group.

    Learned positions exist for ``groups`` groups of ``size`` tokens; smaller inputs use the first of them.
    """

    def __init__(
        self, kind: Positions, dims: tuple[int, int], *, size: int, groups: int | None, latents: int, owner: str
    ) -> None:
        super().__init__()
        self.kind, self.dims, self.latents, self.owner = kind, dims, latents, owner
        if kind == "learned":
            if groups is None:
                raise ArgumentError(
                    f"{owner}: groups: found none with positions='learned', expected the largest number of groups"
                )
            self.x = nn.Parameter(nn.init.trunc_normal_(torch.empty(size, dims[0]), std=0.02))
            self.z = nn.Parameter(nn.init.trunc_normal_(torch.empty(groups, latents, dims[1]), std=0.02))
        elif dims[1] < 2:
            raise ArgumentError(f"{owner}: latent_dim: found {dims[1]} with positions='sinusoidal', expected 2 or more")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x (B, t, n, D_x)`` with positions, and the initial latents ``(B, t, m, D_z)``."""
        batch, groups, size, _ = x.shape
        if self.kind == "learned":
            for name, found, most in (("tokens in a group", size, len(self.x)), ("groups", groups, len(self.z))):
                if found > most:
                    raise ArgumentError(
                        f"{self.owner}: x: found {found} {name}, expected {most} at most: learned positions end there"
                    )
            place, z = self.x[:size], self.z[:groups]
        else:
            half = self.dims[1] // 2
            place = sinusoidal_positions(size, self.dims[0])
            of_group = sinusoidal_positions(groups, half).unsqueeze(1).expand(-1, self.latents, -1)
            of_latent = sinusoidal_positions(self.latents, self.dims[1] - half).expand(groups, -1, -1)
            z = torch.cat([of_group, of_latent], -1)
        return x + place.to(x), z.to(x).expand(batch, -1, -1, -1)


class GroupedTokens(Configured):
    """Base of :class:`FIT` and :class:`AutoregressiveFIT`: arguments, positions and stages."""

    schedule: str = argument(kw_only=False)
    """Stages, such as "(2)4(2)4(2)"."""
    dim: int = argument(least=1)
    """D_x."""
    latent_dim: int = argument(least=1)
    """D_z."""
    heads: int = argument(default=4, least=1)
    """H_x; divides ``dim``."""
    latent_heads: int = argument(default=4, least=1)
    """H_z; divides ``latent_dim``."""
    latents: int = argument(default=4, least=0)
    """m of each group; 0 for local layers alone."""
    group_size: int = argument(default=16, least=1)
    """n, the largest number of tokens in a group with learned positions."""
    groups: int | None = argument(default=None, least=1)
    """t, the largest number of groups; required for learned positions."""
    positions: Positions = "learned"
    """Positions of tokens and latents. Sinusoidal positions have no largest number."""
    expansion: float = 4.0
    """Hidden width of the feed-forward networks over the width."""

    def _build(self, *, causal: bool = False, context_dim: int | None = None) -> None:
        dims = (self.dim, self.latent_dim)
        self.places = _Places(
            self.positions, dims, size=self.group_size, groups=self.groups, latents=self.latents, owner="fit"
        )
        self.body = Interleaved(
            self.schedule,
            dims,
            (self.heads, self.latent_heads),
            latents=self.latents,
            expansion=self.expansion,
            causal=causal,
            context_dim=context_dim,
        )
        self.x_norm = _norm(self.dim)


class FIT(GroupedTokens):
    """An encoder of groups of tokens, or a decoder to K numbers for each token; see the module for the equations.

    Raises:
        ArgumentError: a schedule of another form, numbers below 1, heads that do not divide, learned positions without
            ``groups``; in ``forward`` an input of other shape, or more groups or tokens than there are positions.
    """

    inputs: int = argument(least=1)
    """C, numbers of a token."""
    outputs: int | None = argument(default=None, least=1)
    """K: a linear map of the normed tokens, as in the denoiser; None for the tokens themselves."""
    context_dim: int | None = argument(default=None, least=1)
    """Width of a context, such as a class or a time, that the latents read in each stage."""

    def setup(self) -> None:
        self.stem, self.stem_norm = nn.Linear(self.inputs, self.dim), _norm(self.dim)
        self._build(context_dim=self.context_dim)
        self.z_norm = _norm(self.latent_dim)
        self.output = nn.Identity() if self.outputs is None else nn.Linear(self.dim, self.outputs)

    def forward(self, x: Float[Tensor, "b g n c"], *, context: Float[Tensor, "b s c2"] | None = None) -> Encodings:
        """Return tokens ``(B, t, n, D_x)`` or ``(B, t, n, K)``, and latents ``(B, t, m, D_z)``."""
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[-1] != self.inputs or not x.is_floating_point():
            raise ArgumentError(f"fit: x: found {describe(x)}, expected floats (B, groups, tokens, {self.inputs})")
        if (context is None) != (self.context_dim is None):
            found = "none" if context is None else "one"
            raise ArgumentError(f"fit: context: found {found}, but it is built with context_dim={self.context_dim}")
        x, z = self.body(*self.places(self.stem_norm(self.stem(x))), context)
        return Encodings(self.output(self.x_norm(x)), self.z_norm(z))

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename and reshape the variables of pix2seq's ``FIT`` for ``load_state_dict``.

        Names are the paths of a TensorFlow checkpoint, such as "x_network/0/enc_layers/1/mha/_query_dense/kernel".
        """
        return _from_pix2seq(state, self.latents)


class AutoregressiveFIT(GroupedTokens):
    """A language model; see the module for the equations.

    ``logits[:, i]`` depends on the tokens up to i and predicts token ``i + 1``. The last group of an input may be
    short. To attend to earlier groups, the schedule needs local layers in its last stage and global layers before them.

    Raises:
        ArgumentError: as :class:`FIT`; in ``forward`` ids of another shape, or more tokens than there are positions.
    """

    vocabulary: int = argument(least=1)
    """V."""
    tied: bool = True
    """The output matrix is the embedding."""
    bias: bool = True
    """A bias of the logits."""

    def setup(self) -> None:
        self.embed = nn.Embedding(self.vocabulary, self.dim)
        nn.init.trunc_normal_(self.embed.weight, std=0.02)
        self._build(causal=True)
        self.output = nn.Linear(self.dim, self.vocabulary, bias=self.bias)
        nn.init.trunc_normal_(self.output.weight, std=0.02)
        if self.bias:
            nn.init.zeros_(self.output.bias)
        if self.tied:
            self.output.weight = self.embed.weight

    def forward(self, ids: Int[Tensor, "b t"], *, group_size: int | None = None) -> Float[Tensor, "b t v"]:
        """Return the logits ``(B, T, V)``; ``group_size`` replaces the n of the model."""
        size, tokens = self.group_size if group_size is None else group_size, ids.shape[-1]
        if ids.dim() != 2 or size < 1:
            raise ArgumentError(f"fit: found ids {tuple(ids.shape)} in groups of {size}, expected (B, T) in 1 or more")
        if not tokens:
            return self.output.weight.new_zeros(len(ids), 0, self.vocabulary)
        x = self.embed(functional.pad(ids, (0, -tokens % size))).unflatten(1, (-1, size))
        x, _ = self.body(*self.places(x))
        return self.output(self.x_norm(x)).flatten(1, 2)[:, :tokens]

    def loss(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of every token except the first."""
        return functional.cross_entropy(self(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename and reshape the variables of pix2seq's ``FITAR``; names as in :meth:`FIT.from_reference`."""
        found = _from_pix2seq(state, self.latents)
        if self.tied:
            found["output.weight"] = found["embed.weight"]
        return found


class ImageFIT(ImageBackbone):
    """FIT over an image: tokens are patches, groups are square windows of patches; see the module for the equations.

    The features are the normed tokens; their stride is the patch.

    Raises:
        ArgumentError: an image that is no multiple of patch times window, heads that do not divide, a schedule of
            another form.
    """

    info = BackboneInfo(
        name="fit",
        title="FIT: Far-reaching Interleaved Transformers",
        arxiv="2305.12689",
        presets={
            "nano": {
                "schedule": "(1)1(1)1(1)",
                "image_size": 32,
                "patch": 4,
                "window": 4,
                "dim": 48,
                "latent_dim": 48,
                "latents": 4,
                "expansion": 2.0,
            },
        },
        parameters={},
        good_for="Large images at a fine stride: cost grows with N^(4/3), and every pixel can reach every other.",
        not_for="Small images, for which full attention is cheap: take vit.",
        deviations=(
            "here the pooled vector is the mean of the tokens by default, as positions within a window are learned",
            "latents are interpolated for images of another size (bicubic)",
            "there are no presets of the published sizes, as the authors' code does not contain them",
        ),
    )

    schedule: str = "(2)2(2)2(2)"
    """Stages."""
    dim: int = argument(default=256, least=1)
    """D_x."""
    latent_dim: int = argument(default=256, least=1)
    """D_z."""
    heads: int = argument(default=4, least=1)
    """H_x; divides ``dim``."""
    latent_heads: int = argument(default=4, least=1)
    """H_z; divides ``latent_dim``."""
    latents: int = argument(default=8, least=1)
    """m of each window."""
    image_size: int | tuple[int, ...] = 256
    """Height and width of the images of the learned latents."""
    patch: int = argument(default=4, least=1)
    """Side of a patch in pixels."""
    window: int = argument(default=8, least=1)
    """Side of a window in patches."""
    expansion: float = 4.0
    """Hidden width of the feed-forward networks over the width."""
    pool: Literal["tokens", "latents"] = "tokens"
    """Input of the head: the mean of the tokens, or of the latents. For latents, the schedule should end with global
    layers."""

    def setup(self) -> None:
        height, width = pair(self.image_size, "image_size", "fit")
        side = self.patch * self.window
        if height % side or width % side:
            raise ArgumentError(
                f"fit: image_size: found {height} x {width}, expected multiples of patch times window = {side}"
            )
        dims = (self.dim, self.latent_dim)
        self.patches, self.stem_norm = ImagePatches(self.channels, self.patch, self.dim), _norm(self.dim)
        self.x_places = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.window**2, self.dim), std=0.02))
        room = torch.empty(height // side, width // side, self.latents, self.latent_dim)
        self.z_places = nn.Parameter(nn.init.trunc_normal_(room, std=0.02))
        heads = (self.heads, self.latent_heads)
        self.body = Interleaved(self.schedule, dims, heads, latents=self.latents, expansion=self.expansion)
        self.x_norm = _norm(self.dim)
        self.z_norm = _norm(self.latent_dim) if self.pool == "latents" else None
        self.head = self.make_head(self.latent_dim if self.pool == "latents" else self.dim)
        self.levels = (Level(self.patch, self.dim),)

    @property
    def multiple(self) -> tuple[int, int]:
        return (self.patch * self.window, self.patch * self.window)

    def encode(self, images: Float[Tensor, "b c h w"]) -> Encoded:
        x, side = self.stem_norm(self.patches(images)), self.window
        down, right = x.shape[1] // side, x.shape[2] // side
        # (B, down, right, side, side, D)
        x = x.unflatten(2, (right, side)).unflatten(1, (down, side)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2) + self.x_places
        z = interpolated(self.z_places.flatten(2), (down, right)).view(-1, self.latents, self.latent_dim)
        x, z = self.body(x, z.expand(x.shape[0], -1, -1, -1))
        x = self.x_norm(x).unflatten(2, (side, side)).unflatten(1, (down, right))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        pooled = x.mean((1, 2)) if self.z_norm is None else self.z_norm(z).mean((1, 2))
        return Encoded((x,), pooled)

    def from_reference(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
        """Rename and reshape the variables of pix2seq's ``FIT`` over windows of patches, for ``load_weights``.

        The numbers of a patch are in the order (row, column, channel). ``head`` is not in pix2seq,
        and it keeps its weights.
        """
        found = _from_pix2seq(state, self.latents)
        kernel, bias = found.pop("stem.weight"), found.pop("stem.bias")
        shape = (-1, self.patch, self.patch, self.channels)
        found["patches.project.weight"] = kernel.reshape(shape).permute(0, 3, 1, 2)
        found["patches.project.bias"] = bias
        found["x_places"] = found.pop("places.x")
        found["z_places"] = found.pop("places.z").reshape(self.z_places.shape)
        if self.z_norm is None:
            found = {name: tensor for name, tensor in found.items() if not name.startswith("z_norm.")}
        return found | {f"head.{name}": tensor.detach() for name, tensor in self.head.state_dict().items()}


# parts of the path of a variable of pix2seq, and what they become
_RENAMES = (
    (r"^x_network/(\d+)/(?:enc|dec)_layers/(\d+)/", r"body.stages.\1.local.\2."),
    (r"^l_network/(\d+)/(?:enc|dec)_layers/(\d+)/", r"body.stages.\1.across.\2."),
    (r"^l2x_cross_attn/(\d+)/", r"body.stages.\1.read."),
    (r"^l2c_cross_attn/(\d+)/", r"body.stages.\1.context."),
    (r"^x2l_cross_attn/(\d+)/", r"body.stages.\1.write."),
    (r"cross_mha/", ""),
    (r"(?:self_)?mha/", "layer."),
    (r"(?:mha|self)_ln/", "layer_norm."),
    (r"cross_ln/", "norm."),
    (r"enc_ln/", "context_norm."),
    (r"_(query|key|value|output)_dense/", r"\1."),
    (r"mlp/layernorms/0/", "feed_forward_norm."),
    (r"mlp/mlp_layers/0/dense1/", "feed_forward.up."),
    (r"mlp/mlp_layers/0/dense2/", "feed_forward.down."),
    (r"^stem/", "stem."),
    (r"^stem_ln/", "stem_norm."),
    (r"^x_output_linear/", "output."),
    (r"^x_output_ln/", "x_norm."),
    (r"^l_output_ln/", "z_norm."),
    (r"(?:kernel|gamma)$", "weight"),
    (r"beta$", "bias"),
    (r"^x_pos_emb$", "places.x"),
    (r"^latent_pos_emb$", "places.z"),
    (r"^(?:inp_)?token_embedding$", "embed.weight"),
    (r"^outp_token_embedding$", "output.weight"),
    (r"^outp_bias$", "output.bias"),
)


def _from_pix2seq(state: Mapping[str, Tensor], latents: int) -> dict[str, Tensor]:
    """Raises :class:`ArgumentError` for a variable that is none of FIT's."""
    found = {}
    for full, tensor in state.items():
        path = full.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
        name = path
        for pattern, ours in _RENAMES:
            name = re.sub(pattern, ours, name)
        if name == path or "/" in name:
            raise ArgumentError(f"fit: from_reference: found the variable {path!r}, expected those of FIT or FITAR")
        if name == "places.z":
            tensor = tensor.reshape(-1, latents, tensor.shape[-1])
        elif path.endswith("kernel"):
            # (inputs, heads, head width), (heads, head width, outputs) of the output, or (inputs, outputs)
            tensor = (tensor.flatten(0, -2) if "_output_dense" in path else tensor.flatten(1)).mT
        elif path.endswith("bias"):
            tensor = tensor.flatten()
        found[name] = tensor
    return found
