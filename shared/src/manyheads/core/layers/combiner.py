"""Combiner: Full Attention Transformer with Sparse Computation Cost (2107.05768), on sequences.

Attention is an expectation of values. Each token i sees some tokens directly, D_i, and the others in spans Omega_r,
each through one summary:

    A(x_i) = sum_{j in D_i} p(j | i) v_j + sum_r p(Omega_r | i) sum_{j in Omega_r} p(j | Omega_r) v_j
    p(j | i) ~ exp(q_i . k_j / sqrt(E)),   p(Omega_r | i) ~ exp(q_i . k_r / sqrt(E))        one normaliser for both
    p(j | Omega_r) = softmax_j(q_r . k_j / sqrt(E)),   q_r = max_j q_j,   k_r = max_j k_j   per feature

Every row is a distribution over all tokens that causality allows. The plans:

- :class:`CombinerFixed`, here: D is the token's own segment of s tokens, the spans are the other segments (causal: the
  earlier ones);
- :class:`~manyheads.core.layers.combiner_logsparse.CombinerLogsparse`: D is the token itself, the spans are dyadic;
- :class:`~manyheads.core.layers.combiner_axial.CombinerAxial`: D is row and column of a grid.

Shapes: B batch, T tokens, D width, H heads, E = D / H head width, s segment, G segments, M max_len, P = M // s, R rows,
one for each episode.

Cost: time ``O(T (s + T / s) D + T D^2)``, least at s = sqrt(T); memory ``O(T D)``; a streamed token
``O((s + M / s) D + D^2)``.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, heads_argument
from manyheads.core.functional.attention import attention
from manyheads.core.functional.episode_rows import by_episode
from manyheads.core.functional.packing import keep_first, require_room, take_along
from manyheads.core.functional.spans import pool_span
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput, StateKind
from manyheads.core.mask import Mask
from manyheads.core.state import State

TITLE, ARXIV = "Combiner: Full Attention Transformer with Sparse Computation Cost", "2107.05768"


class SegmentState(NamedTuple):
    """The unfinished segment as it is and the finished ones as spans; at the left, 0 beyond what is in use."""

    current: Tensor  # (B, s - 1, 3, H, E): queries, keys, values
    spans: Tensor  # (B, M // s, 2, H, E): keys, values
    position: Tensor  # (B,) int64: tokens so far


def _fixed_flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, segment = config["dim"], min(config.get("segment") or math.isqrt(tokens - 1) + 1, tokens)
    spans = -(-tokens // segment) - 1
    seen = (segment + 1 + spans) / 2 if config.get("causal") else segment + spans  # on average
    return 8.0 * tokens * dim * dim + 4.0 * tokens * (seen + 1) * dim


class CombinerFixed(Layer):
    """Own segment directly, the others as spans; see the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, a segment or room below 1, room without ``causal`` or ``segment``.
    """

    info = LayerInfo(
        name="combiner-fixed",
        title=TITLE,
        arxiv=ARXIV,
        formula=(
            r"\begin{aligned} y_i &= W_o \Big( \sum_{j \in D_i} p(j \mid i)\, v_j"
            r" + \sum_r p(\Omega_r \mid i) \sum_{j \in \Omega_r} p(j \mid \Omega_r)\, v_j \Big) \\"
            r" p(j \mid i) &\propto e^{q_i \cdot k_j / \sqrt{E}}, \quad"
            r" p(\Omega_r \mid i) \propto e^{q_i \cdot \bar k_r / \sqrt{E}}, \quad"
            r" p(j \mid \Omega_r) = \operatorname{softmax}_j(\bar q_r \cdot k_j / \sqrt{E}) \\"
            r" \bar q_r &= \max_{j \in \Omega_r} q_j, \quad \bar k_r = \max_{j \in \Omega_r} k_j \end{aligned}"
        ),
        good_for="Sequences of thousands of tokens in which every token must reach every other at a cost below N^2.",
        not_for="Sequences below 512 tokens: softmax is exact and faster there.",
        cost="time N (s + N / s) D, N^1.5 D at s = sqrt(N), memory N D; a streamed token (s + M / s) D",
        flops=_fixed_flops,
        at_length=lambda n: {
            "plain": {"heads": 2, "segment": _root(n)},
            "causal": {"heads": 2, "segment": _root(n), "causal": True},
        },
        causal=("no", "strict"),
        state=("none", "growing"),
        streams_with=({"causal": True, "segment": 64, "max_len": 1024},),
        masks=("padding", "reset"),
        positional=True,
        lengths="any; the last segment may be short (its missing keys are masked)",
        linear_in_value=True,
        deviations=(
            "here no dropout; the paper has dropout on the direct attention weights",
            "here summaries by max-pooling only; the paper has DeepSets too",
            "here any length, as the missing keys of a short last segment are masked; in the authors' code the "
            "segment divides the length: no effect if it does",
            "here segment=None takes ceil(sqrt(N)) in each call; the paper sets a segment for each experiment, about "
            "sqrt(N): the function then depends on the length, so that only a given segment has masks and a state",
            "here the bidirectional form is of combiner-fixed only; the paper has it for all plans",
            "padding, resets and streaming are ours",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does."""
    segment: int | None = argument(default=None, least=1)
    """s; None takes ceil(sqrt(T)) in each call. The function then depends on the length: no masks and no state."""
    causal: bool = False
    """Each token sees its own segment up to itself, and earlier segments."""
    max_len: int | None = argument(default=None, least=1)
    """Causal with a segment only: tokens that fit into the growing state; :class:`StateError` beyond."""
    bias: bool = False
    """Biases in the four projections."""

    def setup(self) -> None:
        if self.max_len is not None and (self.segment is None or not self.causal):
            raise ArgumentError(
                f"combiner-fixed: max_len: found {self.max_len} with causal={self.causal} and segment={self.segment}, "
                "expected a causal layer with a segment"
            )
        self.query, self.key, self.value, self.output = (
            nn.Linear(self.dim, self.dim, bias=self.bias) for _ in range(4)
        )

    @property
    def masks(self) -> tuple[str, ...]:
        return () if self.segment is None else ("padding", "reset")

    @property
    def causality(self) -> Causality:
        return "strict" if self.causal else "no"

    @property
    def state_kind(self) -> StateKind:
        return "none" if self.max_len is None else "growing"

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        if self.max_len is None or self.segment is None:
            return ()
        width = (self.heads, self.dim // self.heads)
        current = torch.zeros(batch, self.segment - 1, 3, *width, device=device, dtype=dtype)
        spans = torch.zeros(batch, self.max_len // self.segment, 2, *width, device=device, dtype=dtype)
        return SegmentState(current, spans, torch.zeros(batch, dtype=torch.int64, device=device))

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        qkv = torch.stack([self.query(x), self.key(x), self.value(x)], 2).unflatten(-1, (self.heads, -1))
        run = self._whole if self.max_len is None else self._stream
        mixed, state = by_episode(run, qkv, state, self.init_state, mask.padding, mask.reset)
        return LayerOutput(self.output(mixed.flatten(2)), state)

    def _whole(self, qkv: Tensor, lengths: Tensor | None, state: State) -> tuple[Tensor, State]:
        tokens = qkv.shape[1]
        segment = self.segment or math.isqrt(tokens - 1) + 1
        count = -(-tokens // segment)
        blocks = functional.pad(qkv, (0, 0) * 3 + (0, count * segment - tokens)).unflatten(1, (count, segment))
        real = None
        if not self.causal and (lengths is not None or count * segment > tokens):
            place = torch.arange(count * segment, device=qkv.device).view(1, count, segment)
            real = place < (tokens if lengths is None else lengths.view(-1, 1, 1))
        # causal: the missing tokens at the right are in the future of every real token
        mixed, _ = self._attend(blocks, real)
        return mixed.flatten(1, 2)[:, :tokens], ()

    def _attend(
        self, blocks: Tensor, real: Tensor | None = None, past: Tensor | None = None, held: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``blocks (R, G, s, 3, H, E)``, ``real (R, G, s)`` or None for all, ``past (R, P, 2, H, E)`` with
        ``held (R,)`` in use -> what is mixed ``(R, G, s, H, E)`` and the spans ``(R, G, 2, H, E)`` of the blocks."""
        rows, count, segment = blocks.shape[:3]
        device = blocks.device
        q, k, v = blocks.permute(3, 0, 4, 1, 2, 5)  # (R, H, G, s, E)
        spans = torch.stack(pool_span(q, k, v, None if real is None else real.unsqueeze(1)), 2)  # (R, H, 2, G, E)
        every = spans if past is None else torch.cat([past.permute(0, 3, 2, 1, 4), spans], 3)
        keys, values = (
            torch.cat([own, every[:, :, which, None].expand(-1, -1, count, -1, -1)], 3)
            for which, own in enumerate((k, v))
        )
        block = torch.arange(count, device=device)
        own = torch.ones(segment, segment, dtype=torch.bool, device=device)
        others = self._others(block)
        seen = [(own.tril() if self.causal else own).expand(1, count, -1, -1)]
        if real is not None:
            seen[0] = seen[0] & real.unsqueeze(2)
            others = others & real.any(-1).unsqueeze(1)
        if past is not None and held is not None:
            used = torch.arange(past.shape[1], device=device) < held.unsqueeze(1)
            seen.append(used[:, None, None].expand(-1, count, segment, -1))
        seen.append(others.view(-1, count, 1, count).expand(-1, -1, segment, -1))
        most = max(part.shape[0] for part in seen)
        allowed = torch.cat([part.expand(most, -1, -1, -1) for part in seen], -1)
        if most > 1:
            allowed = allowed.repeat_interleave(self.heads, 0)
        mixed = attention(q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), allowed=allowed)
        return mixed.unflatten(0, (rows, -1)).permute(0, 2, 3, 1, 4), spans.permute(0, 3, 2, 1, 4)

    def _attend_few(self, q: Tensor, at: Tensor, buffer: Tensor, past: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """The same for ``q (R, T, H, E)``, fewer than a segment, at the places ``at (R, T)`` of
        ``buffer (R, G s, 3, H, E)``: all keys at once, as there are two segments at most."""
        segment, device = self.segment or 1, q.device
        blocks = buffer.unflatten(1, (-1, segment)).permute(3, 0, 1, 4, 2, 5)
        spans = torch.stack(pool_span(*blocks), 2)
        keys, values = (torch.cat([buffer[:, :, w + 1], past[:, :, w], spans[:, :, w]], 1) for w in (0, 1))
        at, slot = at.unsqueeze(2), torch.arange(buffer.shape[1], device=device)
        own = (slot <= at) & (slot // segment == at // segment)
        used = torch.arange(past.shape[1], device=device) < held[:, None, None]
        earlier = torch.arange(spans.shape[1], device=device) < at // segment
        allowed = torch.cat([own, used.expand(-1, at.shape[1], -1), earlier], 2)
        heads = (part.transpose(1, 2) for part in (q, keys, values))
        return attention(*heads, allowed=allowed.unsqueeze(1)).transpose(1, 2), spans

    def _others(self, block: Tensor) -> Tensor:
        """``(G, G)``: whose spans each segment may see."""
        return block.unsqueeze(1) > block if self.causal else block.unsqueeze(1) != block

    def _stream(self, qkv: Tensor, lengths: Tensor | None, state: SegmentState) -> tuple[Tensor, SegmentState]:
        assert self.segment is not None
        assert self.max_len is not None
        segment, tokens, device = self.segment, qkv.shape[1], qkv.device
        new = torch.full_like(state.position, tokens) if lengths is None else lengths
        position = state.position + new
        require_room("combiner-fixed", position, self.max_len)
        offset, held = (state.position % segment).unsqueeze(1), state.position // segment
        count = -(-(segment - 1 + tokens) // segment)
        place = torch.arange(count * segment, device=device)
        source = torch.where(place < offset, place, place - offset + segment - 1)
        buffer = torch.cat([state.current, qkv], 1)
        buffer = take_along(buffer, source.clamp(max=buffer.shape[1] - 1))
        at = offset + torch.arange(tokens, device=device)
        if tokens < segment:
            mixed, spans = self._attend_few(qkv[:, :, 0], at, buffer, state.spans, held)
        else:
            mixed, spans = self._attend(buffer.unflatten(1, (count, segment)), None, state.spans, held)
            mixed = take_along(mixed.flatten(1, 2), at)

        done, room = position // segment, state.spans.shape[1]
        slot = torch.arange(room, device=device)
        source = torch.where(slot < held.unsqueeze(1), slot, room + slot - held.unsqueeze(1))
        kept = take_along(torch.cat([state.spans, spans], 1), source.clamp(max=room + count - 1))
        kept = keep_first(kept, done)
        slot = torch.arange(segment - 1, device=device)
        start = ((done - held) * segment).unsqueeze(1)
        current = keep_first(take_along(buffer, (start + slot).clamp(max=count * segment - 1)), position % segment)
        return mixed, SegmentState(current, kept, position)


def _root(tokens: int) -> int:
    """The power of two at the root of the length, or the next."""
    return 1 << -(-(tokens - 1).bit_length() // 2)
