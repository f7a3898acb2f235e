"""Block Transformer: Global-to-Local Language Modeling for Fast Inference (2406.02657).

Tokens are grouped in blocks of L. With x_b the tokens of block b,

    e_b = embed(x_b)                                      embedder: one vector for each block
    c_b = f(e_1 … e_b)                                    block decoder: causal over blocks
    p(x_{b+1, j} | earlier) = g(c_b, x_{b+1, 1} … x_{b+1, j-1})     token decoder: causal within the block

so that a token sees the earlier blocks through one vector c_b. The first block has no c and is not predicted.

Embedders, with E the embedding of a token and 0 for padding:

    lookup       e_b = [E x_{b,1}, …, E x_{b,L}],  E of width D / L
    cls          e_b = W [h_1, …, h_n],  h the outputs at n CLS tokens of an encoder over [CLS …, x_b]
    projection   e_b = W [E x_{b,1}, …, E x_{b,L}] + a,  E of width D; it may start as the mean of the embeddings

Couplings, with ``[v_1 … v_P] = expand(c_b)`` (linear):

    prefix       g reads [v_1, …, v_P, x_1, …, x_{L-1}]; the outputs from place P on predict x_1 … x_L
    summation    g reads [s + v_1, x_1 + v_2, …, x_{L-1} + v_L], s a learned start token, P = L
    cross        g reads [s, x_1, …, x_{L-1}] and attends to v_1 … v_P in every block of layers

Cost of N tokens: block decoder attention ``(N / L)^2 D``, token decoder attention ``N (P + L) D``. The cache of a
sequence holds ``2 n_b D N / L + 2 n_t D (P + L)`` numbers instead of ``2 n D N`` (n layers, n_b and n_t of the two
decoders): 8 times fewer with n_b = n_t = n / 2, L = 4 and long sequences. It is read once a block, not once a token.

Axes: b batch, t tokens, k blocks, l tokens of a block, v vocabulary, d width.

Differs from the paper: residual blocks of the decoders are those of ``blocks.residual`` (the authors' GPT-NeoX layers
add attention and feed-forward network in parallel and turn a quarter of each head by rotary positions); positions are
sinusoidal over blocks and learned within a block; the encoder with CLS tokens and cross-attention are built from the
same pre-norm blocks instead of RoBERTa and T5. Any strictly causal layer can take the place of softmax attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked
from manyheads.core.backbones.generation import Generative, Sampler
from manyheads.core.backbones.sequence_encoder import Positions, make_positions
from manyheads.core.backbones.stack import Stack, build_stack
from manyheads.core.blocks.embeddings import LearnedPositions
from manyheads.core.errors import ArgumentError, UnknownNameError
from manyheads.core.fields import Configured, argument
from manyheads.core.layer import blank
from manyheads.core.layers.softmax import SoftmaxAttention
from manyheads.core.mask import Mask
from manyheads.core.registry import find_layer
from manyheads.core.state import State

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Embedder = Literal["lookup", "cls", "projection"]
Coupling = Literal["prefix", "summation", "cross"]

_PUBLISHED = {"vocabulary": 50304, "context": 2048, "options": {"heads": 16, "bias": True}}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "5m": {"dim": 256, "block_layers": 3, "token_layers": 3, **_PUBLISHED},
    "19m": {"dim": 512, "block_layers": 3, "token_layers": 3, **_PUBLISHED},
    "85m": {"dim": 768, "block_layers": 6, "token_layers": 6, **_PUBLISHED},
    "300m": {"dim": 1024, "block_layers": 12, "token_layers": 12, **_PUBLISHED},
    "800m": {"dim": 2048, "block_layers": 8, "token_layers": 8, **_PUBLISHED},
    "1.2b": {"dim": 2048, "block_layers": 12, "token_layers": 12, **_PUBLISHED},
}
"""The sizes of the paper, named by their parameters without embeddings, with the defaults: blocks of 4, lookup, prefix
of 2. Width and layers are those of the authors' configurations."""


class BlockTransformer(Configured, Generative):
    """A language model over blocks of tokens; see the module for equations and axes.

    Raises:
        ArgumentError: a layer that is not strictly causal, a width that the block length does not divide ("lookup"),
            numbers below 1, ``mean_start`` with another embedder than "projection".
        UnknownNameError: a layer that is not registered.
    """

    vocabulary: int = argument(kw_only=False, least=1)
    """V."""
    dim: int = argument(least=1)
    """D, of both decoders."""
    block_layers: int = argument(default=2, least=1)
    """n_b, residual blocks of the block decoder."""
    token_layers: int = argument(default=2, least=1)
    """n_t, residual blocks of the token decoder."""
    block_length: int = argument(default=4, least=1)
    """L."""
    embedder: Embedder = "lookup"
    """How a block becomes a vector."""
    coupling: Coupling = "prefix"
    """How the token decoder reads the vector."""
    prefix: int | None = argument(default=None, least=1)
    """P: 2 by default for "prefix", L for "summation" (always) and "cross"."""
    context: int = argument(default=2048, least=1)
    """Tokens that fit into the cache of the block decoder, for layers with an argument ``max_len``."""
    layer: str = "softmax"
    """The registered layer of both decoders."""
    options: Mapping[str, Any] | None = None
    """Its arguments by name. ``causal`` and ``max_len`` are set if the layer has them and they are left out."""
    expansion: float = 4.0
    """Width of the feed-forward networks over D."""
    positions: Positions = "sinusoidal"
    """Added to the vectors of the blocks; "none" for layers with positions of their own."""
    tied: bool = False
    """The output matrix is the token decoder's embedding."""
    dropout: float = 0.0
    """Of the outputs of layers and feed-forward networks."""
    encoder_dim: int | None = argument(default=None, least=1)
    """"cls" only: width of the encoder; D / 3 rounded to a multiple of 8 by default, as in the paper at D = 768."""
    encoder_layers: int = argument(default=3, least=1)
    """"cls" only: residual blocks of the encoder."""
    cls_tokens: int = argument(default=3, least=1)
    """"cls" only: CLS tokens of the encoder."""
    mean_start: bool = False
    """"projection" only: begin as the mean of the embeddings, as when a vanilla model is trained further."""

    def setup(self) -> None:
        dim, length = self.dim, self.block_length
        if self.mean_start and self.embedder != "projection":
            raise ArgumentError(f"mean_start: found True with embedder={self.embedder!r}, expected 'projection'")
        if self.prefix is None:
            self.prefix = 2 if self.coupling == "prefix" else length
        if self.coupling == "summation" and self.prefix != length:
            raise ArgumentError(f"prefix: found {self.prefix} with coupling='summation', expected L = {length}")
        self.embed_blocks = self._make_embedder()
        self.block_positions = make_positions(self.positions, dim, -(-self.context // length))
        self.block_decoder = self._stack(self.block_layers, -(-self.context // length))
        self.expand = nn.Linear(dim, self.prefix * dim)
        nn.init.normal_(self.expand.weight, std=dim**-0.5)
        nn.init.zeros_(self.expand.bias)
        self.embed = nn.Embedding(self.vocabulary, dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.start = nn.Parameter(0.02 * torch.randn(dim)) if self.coupling != "prefix" else None
        self.before = self.prefix - 1 if self.coupling == "prefix" else 0  # places before the first output
        self.token_positions = LearnedPositions(self.before + length, dim)
        heads = (self.options or {}).get("heads")
        cross = None
        if self.coupling == "cross":
            given = {} if heads is None else {"heads": heads}

            def cross(width: int) -> SoftmaxAttention:
                return SoftmaxAttention(width, context_dim=dim, **given)

        self.token_decoder = self._stack(self.token_layers, self.local_length, cross)
        self.output = nn.Linear(dim, self.vocabulary, bias=False)
        nn.init.normal_(self.output.weight, std=0.02)
        if self.tied:
            self.output.weight = self.embed.weight

    @classmethod
    @checked
    def preset(cls, name: str, **changes: Any) -> BlockTransformer:
        """A published size by name (``PRESETS``), with other arguments changed. Raises :class:`UnknownNameError`."""
        if name not in PRESETS:
            raise UnknownNameError("preset", name, PRESETS)
        return cls(**{**PRESETS[name], **changes})

    @property
    def local_length(self) -> int:
        """Places of the token decoder's cache: ``P + L`` with a prefix, else L. The last token is never fed to it."""
        return self.block_length + (self.prefix or 0 if self.coupling == "prefix" else 0)

    @property
    def streaming(self) -> bool:
        """Whether the block decoder, as configured, has a state."""
        return self.block_decoder.streaming

    def _stack(self, depth: int, slots: int, cross: Any = None) -> Stack:
        known, options = {one.name for one in find_layer(self.layer).arguments}, dict(self.options or {})
        if "causal" in known:
            options.setdefault("causal", True)
        if "max_len" in known and options.get("window") is None and options.get("max_len") is None:
            options["max_len"] = slots
        stack = build_stack(
            self.layer,
            self.dim,
            depth=depth,
            options=options,
            expansion=self.expansion,
            dropout=self.dropout,
            cross=cross,
        )
        if not stack.causal:
            raise ArgumentError(
                f"layer: found {self.layer} with causality {stack.layers[0].causality!r}, expected a strictly causal "
                "layer: set options={'causal': True} if the layer has it"
            )
        return stack

    def _make_embedder(self) -> nn.Module:
        if self.embedder == "lookup":
            if self.dim % self.block_length:
                raise ArgumentError(
                    f"block_length: found {self.block_length} with embedder='lookup', expected a divisor of dim = "
                    f"{self.dim}"
                )
            return _Lookup(self.vocabulary, self.dim // self.block_length)
        if self.embedder == "projection":
            return _Projection(self.vocabulary, self.dim, self.block_length, mean=self.mean_start)
        width = self.encoder_dim or max(8, round(self.dim / 24) * 8)
        return _Encoder(self.vocabulary, width, self.block_length, self.encoder_layers, self.cls_tokens, self.dim)

    def contexts(
        self,
        blocks: Int[Tensor, "b k l"],
        state: State | None = None,
        *,
        real: Bool[Tensor, "b k l"] | None = None,
        first: Int[Tensor, "b"] | int = 0,
    ) -> tuple[Float[Tensor, "b k d"], State]:
        """``c_b`` of whole blocks, which predicts block ``b + 1``, and the state of the block decoder.

        Args:
            blocks: token ids.
            state: the state after earlier blocks.
            real: False for padding, which stands on the left of the row.
            first: the number of real blocks before these.
        """
        e = self.embed_blocks(blocks, real)
        mask = None
        if real is not None:
            some = real.any(2)
            mask = Mask(padding=some)
            # The first real block has position 0, however much padding stands before it.
            first = first - (~some).sum(1)
        if self.block_positions is not None:
            e = self.block_positions(e, first=first)
        c, state, _ = self.block_decoder(e, state, mask=mask)
        return c, state

    def forward(self, ids: Int[Tensor, "b t"], *, mask: Mask | None = None) -> Float[Tensor, "b rest v"]:
        """Logits ``(B, T - L, V)`` of the tokens from the second block on: row ``i`` predicts ``ids[:, L + i]``.

        T is any number; the last block may be short. ``mask.padding`` is False for padding on the left of a row, whose
        ids are not read; no other mask is taken. Raises :class:`ArgumentError` for another mask.
        """
        batch, tokens = ids.shape
        length, real = self.block_length, _padding(mask)
        count = -(-tokens // length) - 1
        if count < 1 or not batch:
            return self.output.weight.new_zeros(batch, max(tokens - length, 0), self.vocabulary)
        blocks = functional.pad(ids, (0, (count + 1) * length - tokens)).unflatten(1, (-1, length))
        if real is not None:
            # The ids of padding may lie outside the vocabulary.
            real = functional.pad(real, (0, (count + 1) * length - tokens), value=True).unflatten(1, (-1, length))
            blocks = blocks.masked_fill(~real, 0)
        c, _ = self.contexts(blocks[:, :-1], real=None if real is None else real[:, :-1])
        v = self._expanded(c.flatten(0, 1))
        x = self._local(v, blocks[:, 1:, :-1].flatten(0, 1))
        h = self.token_decoder(self.token_positions(x), context=v if self.coupling == "cross" else None).y
        logits = self.output(h[:, self.before :])
        return logits.reshape(batch, count * length, -1)[:, : tokens - length]

    def loss(self, ids: Int[Tensor, "b t"], *, mask: Mask | None = None) -> Float[Tensor, ""]:
        """Mean cross-entropy of the real tokens whose previous block has a real token. NaN without any."""
        length, real = self.block_length, _padding(mask)
        logits, target = self(ids, mask=mask), ids[:, self.block_length :]
        if real is None:
            return functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        before = functional.pad(real, (0, -real.shape[1] % length)).unflatten(1, (-1, length)).any(2)
        chosen = real[:, length:] & before.repeat_interleave(length, 1)[:, : target.shape[1]]
        return functional.cross_entropy(logits[chosen], target[chosen])

    def _expanded(self, c: Tensor) -> Tensor:
        """``v (R, P, D)`` of ``c (R, D)``."""
        return self.expand(c).unflatten(-1, (-1, self.dim))

    def _local(self, v: Tensor, tokens: Tensor, *, first: int = 0) -> Tensor:
        """What the token decoder reads: the places for tokens ``first, first + 1, …`` of the block, ``tokens (R, J)``.

        With ``first = 0`` the places before the first token come first.
        """
        x = self.embed(tokens)
        if self.coupling == "prefix":
            return torch.cat([v, x], 1) if first == 0 else x
        if first == 0 and self.start is not None:
            x = torch.cat([self.start.expand(len(v), 1, -1), x], 1)
        return x + v[:, first : first + x.shape[1]] if self.coupling == "summation" else x

    def _continue(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, choose: Sampler, stop: int | None
    ) -> list[list[int]]:
        """Prompts are padded on the left to the boundary of a block.

        For each new block the block decoder makes one step with its growing cache, then the token decoder makes a step
        for each token with a cache of ``local_length`` places, which is dropped with the block.
        """
        made: list[list[int]] = [[] for _ in prompts]
        device, length = self.embed.weight.device, self.block_length
        longest = -(-max(len(prompt) for prompt in prompts) // length) * length
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)
        real = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            real[row, longest - len(prompt) :] = True
        blocks, real = ids.unflatten(1, (-1, length)), real.unflatten(1, (-1, length))
        known = real.any(2).sum(1)
        c, state = self.contexts(blocks, real=None if bool(real.all()) else real)
        open_rows = torch.ones(len(prompts), dtype=torch.bool, device=device)
        while True:
            tokens, count = ids[:, :0], min(length, new_tokens - max(len(row) for row in made))
            v, local = self._expanded(c[:, -1]), None
            for _ in range(count):
                logits, local = self._token_step(v, tokens, local)
                chosen = choose(logits)
                tokens = torch.cat([tokens, chosen.unsqueeze(1)], 1)
                for row in torch.nonzero(open_rows).flatten().tolist():
                    made[row].append(int(chosen[row]))
                if stop is not None:
                    open_rows = open_rows & (chosen != stop)
                    if not open_rows.any():
                        return made
            if max(len(row) for row in made) == new_tokens:
                return made
            if self.streaming:
                c, state = self.contexts(tokens.unsqueeze(1), state, first=known)
                known = known + 1
            else:
                blocks = torch.cat([blocks, tokens.unsqueeze(1)], 1)
                real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
                c, _ = self.contexts(blocks, real=None if bool(real.all()) else real)

    def _token_step(self, v: Tensor, tokens: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """Logits of the token after ``tokens (B, J)`` of a block, and the local cache."""
        streaming, count = self.token_decoder.streaming, tokens.shape[1]
        begins = not streaming or count == 0
        x = self._local(v, tokens) if begins else self._local(v, tokens[:, -1:], first=count)
        place = 0 if begins else self.before + count
        context = v if self.coupling == "cross" else None
        h, state, _ = self.token_decoder(
            self.token_positions(x, first=place), state if streaming else None, context=context
        )
        return self.output(h[:, -1]), state

    def kv_bytes(self, tokens: int, *, batch: int = 1, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of keys and values that softmax attention holds while it generates after ``tokens`` tokens.

        ``2 D (n_b ceil(N / L) + n_t (P + L))`` numbers for each row, with P = 0 unless the coupling is "prefix".
        """
        blocks = -(-tokens // self.block_length)
        numbers = self.block_layers * blocks + self.token_layers * self.local_length
        return 2 * self.dim * numbers * batch * dtype.itemsize


class _Lookup(nn.Module):
    """Concatenated embeddings of width D / L."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, blocks: Tensor, real: Tensor | None) -> Tensor:
        return _embedded(self.embed, blocks, real).flatten(2)


class _Projection(nn.Module):
    """A linear map of the concatenated embeddings of width D."""

    def __init__(self, vocabulary: int, dim: int, length: int, *, mean: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.project = nn.Linear(length * dim, dim)
        nn.init.normal_(self.project.weight, std=(length * dim) ** -0.5)
        nn.init.zeros_(self.project.bias)
        if mean:
            with torch.no_grad():
                self.project.weight.copy_(torch.eye(dim).repeat(1, length) / length)

    def forward(self, blocks: Tensor, real: Tensor | None) -> Tensor:
        return self.project(_embedded(self.embed, blocks, real).flatten(2))


class _Encoder(nn.Module):
    """A linear map of the outputs at CLS tokens of an encoder over each block."""

    def __init__(self, vocabulary: int, width: int, length: int, depth: int, cls_tokens: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.cls_tokens = nn.Parameter(0.02 * torch.randn(cls_tokens, width))
        self.positions = LearnedPositions(cls_tokens + length, width)
        self.encoder = build_stack("softmax", width, depth=depth, options={"bias": True})
        self.project = nn.Linear(cls_tokens * width, dim)
        nn.init.normal_(self.project.weight, std=(cls_tokens * width) ** -0.5)
        nn.init.zeros_(self.project.bias)

    def forward(self, blocks: Tensor, real: Tensor | None) -> Tensor:
        x = _embedded(self.embed, blocks, real).flatten(0, 1)
        cls = self.cls_tokens.expand(len(x), -1, -1)
        mask = None if real is None else Mask(padding=functional.pad(real.flatten(0, 1), (cls.shape[1], 0), value=True))
        h = self.encoder(self.positions(torch.cat([cls, x], 1)), mask=mask).y
        return self.project(h[:, : cls.shape[1]].flatten(1)).unflatten(0, blocks.shape[:2])


def _embedded(embed: nn.Embedding, blocks: Tensor, real: Tensor | None) -> Tensor:
    """``(B, K, L, W)``, 0 at padding."""
    x = embed(blocks)
    return x if real is None else blank(x, real)


def _padding(mask: Mask | None) -> Tensor | None:
    if mask is None:
        return None
    if others := [name for name in mask.names() if name != "padding"]:
        raise ArgumentError(f"block transformer: mask: found {others[0]}, expected padding alone")
    return mask.padding
