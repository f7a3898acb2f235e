"""Combiner: Full Attention Transformer with Sparse Computation Cost (2107.05768), with dyadic spans.

The equation and the summaries are those of :mod:`manyheads.core.layers.combiner`. Token i sees itself directly, and for
each bit l that is set in i the block of 2^l tokens that ends at ``(i >> l) << l``; together they cover ``[0, i)``.

Shapes: B batch, T tokens, D width, H heads, E = D / H head width, M max_len, R rows, one for each episode.

Cost: time ``O(T log T D + T D^2)``, memory ``O(T D)``; a streamed chunk of C tokens ``O((M + C log M) D)``, memory
``O(C log M D)``.

The state keeps all tokens: the weights inside a span come from the maximum over all of it, so that two spans do not
merge into the next longer one.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.fields import argument, heads_argument
from manyheads.core.functional.attention import attention
from manyheads.core.functional.episode_rows import by_episode
from manyheads.core.functional.packing import keep_first, require_room, take_along
from manyheads.core.functional.spans import pool_span, span_value
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput, StateKind
from manyheads.core.layers.combiner import ARXIV, TITLE
from manyheads.core.mask import Mask
from manyheads.core.state import State


class TokenState(NamedTuple):
    """All tokens so far, at the left, 0 beyond: a span's weights depend on its maxima, so that spans do not merge."""

    tokens: Tensor  # (B, M, 3, H, E): queries, keys, values
    position: Tensor  # (B,) int64: tokens so far


BLOCK = 32  # tokens that see each other's spans through one dense product; a power of two


def _logsparse_flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, levels = config["dim"], (tokens - 1).bit_length()
    block = min(BLOCK, 1 << levels)
    seen = 2 * block - 1 + max(levels - BLOCK.bit_length() + 1, 0)
    return 8.0 * tokens * dim * dim + 4.0 * tokens * seen * dim + 2.0 * tokens * levels * dim


class CombinerLogsparse(Layer):
    """Itself directly, all before as dyadic spans; causal. See the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, room below 1.
    """

    info = LayerInfo(
        name="combiner-logsparse",
        title=TITLE,
        arxiv=ARXIV,
        formula=(
            r"\begin{aligned} y_i &= W_o \Big( p(i \mid i)\, v_i"
            r" + \sum_{l : \text{bit } l \text{ of } i} p(\Omega_l \mid i)"
            r" \sum_{j \in \Omega_l} p(j \mid \Omega_l)\, v_j \Big) \\"
            r" \Omega_l &= \text{the } 2^l \text{ tokens that end at } \lfloor i / 2^l \rfloor\, 2^l \end{aligned}"
        ),
        good_for="Causal models of long sequences: each token reaches all earlier ones through log N summaries.",
        not_for="Most uses: causal combiner-fixed is faster at every measured length, and its state is smaller.",
        cost="time N log N D, memory N D; a streamed chunk M D with M slots",
        flops=_logsparse_flops,
        at_length=lambda n: {"plain": {"heads": 2}},
        causal=("strict",),
        state=("none", "growing"),
        streams_with=({"max_len": 1024},),
        masks=("padding", "reset"),
        positional=True,
        linear_in_value=True,
        deviations=(
            "here no dropout; the paper has dropout on the direct attention weights",
            "here summaries by max-pooling only; the paper has DeepSets too",
            "here any length, as the missing tokens are masked; the paper's length is a power of two: no effect if it "
            "is",
            "here the bidirectional form is of combiner-fixed only; the paper has it for all plans",
            "padding, resets and streaming are ours",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does."""
    max_len: int | None = argument(default=None, least=1)
    """Tokens that fit into the growing state; :class:`StateError` beyond. None for no state."""
    bias: bool = False
    """Biases in the four projections."""

    def setup(self) -> None:
        self.query, self.key, self.value, self.output = (
            nn.Linear(self.dim, self.dim, bias=self.bias) for _ in range(4)
        )

    @property
    def state_kind(self) -> StateKind:
        return "none" if self.max_len is None else "growing"

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        if self.max_len is None:
            return ()
        tokens = torch.zeros(batch, self.max_len, 3, self.heads, self.dim // self.heads, device=device, dtype=dtype)
        return TokenState(tokens, torch.zeros(batch, dtype=torch.int64, device=device))

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        qkv = torch.stack([self.query(x), self.key(x), self.value(x)], 2).unflatten(-1, (self.heads, -1))
        run = self._whole if self.max_len is None else self._stream
        mixed, state = by_episode(run, qkv, state, self.init_state, mask.padding, mask.reset)
        return LayerOutput(self.output(mixed.flatten(2)), state)

    def _whole(self, qkv: Tensor, lengths: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Attend over whole sequences; padding at the right is in the future of every real token."""
        rows, tokens = qkv.shape[:2]
        levels = (tokens - 1).bit_length()
        low = min(levels, BLOCK.bit_length() - 1)
        size = 1 << low
        count = -(-tokens // size)
        q, k, v = functional.pad(qkv, (0, 0) * 3 + (0, count * size - tokens)).permute(2, 0, 3, 1, 4).contiguous()
        keys, values = _dyadic_spans(q, k, v, levels)
        inside = [k, *keys[:low]], [v, *values[:low]]
        own, own_values = (torch.cat([p.unflatten(2, (count, -1)) for p in part], 3) for part in inside)
        place, block = torch.arange(size, device=q.device).unsqueeze(1), torch.arange(count, device=q.device)
        allowed = [torch.eye(size, dtype=torch.bool, device=q.device)]
        for level in range(low):
            pair = torch.arange(size >> level + 1, device=q.device)
            allowed.append((place >> level & 1 == 1) & (place >> level + 1 == pair))
        seen = torch.cat(allowed, 1).expand(count, -1, -1)
        if levels > low:
            chosen, at = [], 0
            for level in range(levels - low):
                pairs = keys[low + level].shape[2]
                chosen.append(at + (block >> level + 1).clamp(max=pairs - 1))
                at += pairs
            far = torch.stack(chosen, 1).flatten()
            own, own_values = (
                torch.cat([near, torch.cat(part[low:], 2).index_select(2, far).unflatten(2, (count, -1))], 3)
                for near, part in ((own, keys), (own_values, values))
            )
            bits = block.unsqueeze(1) >> torch.arange(levels - low, device=q.device) & 1 == 1
            seen = torch.cat([seen, bits.unsqueeze(1).expand(-1, size, -1)], 2)
        mixed = attention(
            q.unflatten(2, (count, -1)).flatten(0, 1), own.flatten(0, 1), own_values.flatten(0, 1), allowed=seen[None]
        )
        return mixed.flatten(1, 2).unflatten(0, (rows, -1)).transpose(1, 2)[:, :tokens], ()

    def _stream(self, qkv: Tensor, lengths: Tensor | None, state: TokenState) -> tuple[Tensor, TokenState]:
        assert self.max_len is not None
        room, tokens, device = self.max_len, qkv.shape[1], qkv.device
        position = state.position + (tokens if lengths is None else lengths)
        require_room("combiner-logsparse", position, room)
        start = state.position.unsqueeze(1)
        slot = torch.arange(room, device=device)
        source = torch.where(slot < start, slot, room + (slot - start).clamp(max=tokens - 1))
        kept = keep_first(take_along(torch.cat([state.tokens, qkv], 1), source), position)

        place = start + torch.arange(tokens, device=device)
        q, k, v = qkv.unbind(2)
        keys, values, allowed = [k], [v], [torch.ones_like(place, dtype=torch.bool)]
        for level in range((room - 1).bit_length()):
            width = 1 << level
            first = start >> level + 1
            pairs = min((tokens - 1 >> level + 1) + 2, -(-room // (2 * width)))
            begin = (first + torch.arange(pairs, device=device)) * 2 * width
            index = (begin.unsqueeze(2) + torch.arange(width, device=device)).clamp(max=room - 1)
            span = take_along(kept, index.flatten(1)).unflatten(1, (pairs, width)).permute(3, 0, 1, 4, 2, 5)
            which = ((place >> level + 1) - first).clamp(max=pairs - 1)
            for found, part in zip((keys, values), pool_span(*span), strict=True):
                found.append(take_along(part, which))
            allowed.append(place >> level & 1 == 1)
        mixed = attention(
            q.flatten(0, 1).unsqueeze(2),
            torch.stack(keys, 3).flatten(0, 1),
            torch.stack(values, 3).flatten(0, 1),
            allowed=torch.stack(allowed, 2).flatten(0, 1)[:, None, None],
        )
        return mixed.squeeze(2).unflatten(0, (-1, tokens)), TokenState(kept, position)


def _dyadic_spans(q: Tensor, k: Tensor, v: Tensor, levels: int) -> tuple[list[Tensor], list[Tensor]]:
    """``(R, H, T, E)`` -> for each level l the keys and the values ``(R, H, P, E)`` of the even blocks of 2^l tokens:
    the odd block after each is who sees it."""
    keys, values, top, key = [], [], q, k
    for level in range(levels):
        full = top.shape[2]
        blocks = (part[:, :, : full << level].unflatten(2, (full, -1))[:, :, ::2] for part in (k, v))
        keys.append(key[:, :, ::2])
        values.append(span_value(top[:, :, ::2], *blocks))
        top, key = (part[:, :, : full // 2 * 2].unflatten(2, (-1, 2)).max(3).values for part in (top, key))
    return keys, values
