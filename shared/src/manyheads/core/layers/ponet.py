"""PoNet: Pooling Network for Efficient Token Mixing in Long Sequences (2110.02442).

Three poolings of different reach instead of attention; q, k, o, s, l are projections of x, with biases:

    g   = mean_n q_n,   g' = sum_n softmax_n(g . k_n / sqrt(E)) k_n                    global, per head
    s'_n = max of s over the segment of n,   segment of n = floor(n / segment)         per feature
    l'_n = max(l_{n-1}, l_n, l_{n+1})                                                  per feature
    y_n = W ((g' + s'_n) * o_n + l'_n)

The causal form pools the tokens so far: g_t is the mean up to t, g'_t is over the tokens up to t, s'_t is the maximum
of the segment up to t, l'_t = max(l_{t-2}, l_{t-1}, l_t).

Shapes: B batch, T tokens, D width, H heads, E = D / H head width, M max_len, R rows, one for each episode.

Cost: time ``O(T D^2)``, memory ``O(T D)``; 6 D^2 + 6 D parameters. Causal with ``global_pooling="exact"`` takes
``O(T^2 D)`` more, as its query changes with every token and meets all keys again; with ``"running"`` time is linear.

The causal form streams. ``"exact"`` keeps all keys, up to ``max_len``. ``"running"`` scores each token once, with the
mean query of its own time, ``g'_t = sum_{n <= t} softmax_n(g_n . k_n / sqrt(E)) k_n``: another function, with a
recurrent state of constant size.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, heads_argument
from manyheads.core.functional.attention import attention
from manyheads.core.functional.episode_rows import by_episode
from manyheads.core.functional.packing import keep_first, require_room, take_along
from manyheads.core.functional.prefix import join, prefix_softmax
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput, StateKind
from manyheads.core.mask import Mask
from manyheads.core.state import State

# tokens of a local maximum
WINDOW = 3
NONE = float("-inf")


class PoNetState(NamedTuple):
    """The state of the causal form; 0 for what there is not yet."""

    position: Tensor  # (B,) int64: tokens so far
    query_sum: Tensor  # (B, D), at least float32
    segment_max: Tensor  # (B, D): of the unfinished segment
    local: Tensor  # (B, 2, D): the last two l
    pooled: tuple[Tensor, ...]  # exact: keys (B, M, D); running: log-sum-exp (B, H) and g' (B, H, E), at least float32


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim = config["dim"]
    if not config["causal"]:
        return 10.0 * tokens * dim * dim + 11.0 * tokens * dim
    met = (tokens + 1) / 2 if config["global_pooling"] == "exact" else 64
    return 12.0 * tokens * dim * dim + 4.0 * tokens * met * dim + 8.0 * tokens * dim


def _at_length(tokens: int) -> dict[str, dict[str, Any]]:
    plain = {"heads": 2, "segment": min(64, max(2, tokens // 4))}
    causal = {**plain, "causal": True}
    return {"plain": plain, "causal": causal, "running": {**causal, "global_pooling": "running"}}


class PoNet(Layer):
    """Global, segment and local pooling; see the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, a segment or room below 1, an unknown pooling, ``running`` or room
            without what it needs.
    """

    info = LayerInfo(
        name="ponet",
        title="PoNet: Pooling Network for Efficient Token Mixing in Long Sequences",
        arxiv="2110.02442",
        formula=(
            r"\begin{aligned} g &= \tfrac{1}{T} \sum_n q_n, \qquad"
            r" g' = \sum_n \mathrm{softmax}_n\Big(\frac{g \cdot k_n}{\sqrt E}\Big)\, k_n \\"
            r" s'_n &= \max_{m \in \text{segment of } n} s_m, \qquad l'_n = \max(l_{n-1}, l_n, l_{n+1}) \\"
            r" y_n &= W \big((g' + s'_n) \odot o_n + l'_n\big) \end{aligned}"
        ),
        good_for="Classifying long documents at linear cost, if pooled context is enough.",
        not_for="Looking up single tokens by content, and causal models of short inputs: softmax is faster than exact "
        "causal pooling at every measured length (256 to 16,384 tokens), than running pooling below 2,000.",
        cost="time N D^2, memory N D; causal and exact N^2 D more; a streamed token D^2, exact M D more",
        flops=_flops,
        at_length=_at_length,
        causal=("no", "strict"),
        state=("none", "growing", "recurrent"),
        streams_with=({"causal": True, "global_pooling": "running"}, {"causal": True, "max_len": 1024}),
        masks=("padding", "reset"),
        positional=True,
        lengths="any; the last segment may be short",
        deviations=(
            "here segments have a given number of tokens; the authors' code for Long Range Arena takes K segments of "
            "floor(N / K) + 1 tokens of the padded length N: the same for segment = N // K + 1 (K = N gives N / 2 "
            "segments of two tokens, and many other K give fewer than K segments)",
            "here padding is minus infinity to the maxima, and no input is written to; the authors' code fills "
            "padding with -10000, in place, in tensors that the caller holds: no effect, unless all of a segment is "
            "padding",
            "here the gradient of a maximum goes to one token; in the authors' code the library decides among equal "
            "values",
            "here the mean query is the projection of the mean; the authors' code takes the mean of the projections: "
            "the same function",
            "the causal form, padding, resets and states are ours",
            'causal with global_pooling="running": each token is scored once, with the mean query of its own time, '
            "which is another function",
        ),
    )

    heads: int = heads_argument()
    """H of the global pooling; divides ``dim``. By default the largest power of two up to 8 that does."""
    segment: int = argument(default=64, least=1)
    """Tokens of a segment; the last one may be shorter."""
    causal: bool = False
    """Each token pools itself and earlier tokens only."""
    global_pooling: Literal["exact", "running"] = "exact"
    """Causal only: see the module."""
    max_len: int | None = None
    """Causal and exact only: slots of the growing state; a longer stream raises :class:`StateError`."""

    def setup(self) -> None:
        dim, causal, pooling, max_len = self.dim, self.causal, self.global_pooling, self.max_len
        self.running = pooling == "running"
        if self.running and not causal:
            raise ArgumentError("ponet: global_pooling: found 'running' with causal=False, expected 'exact'")
        if max_len is not None and (max_len < 1 or not causal or self.running):
            raise ArgumentError(
                f"ponet: max_len: found {max_len} with causal={causal} and global_pooling={pooling!r}, "
                "expected 1 or more, causal and 'exact'"
            )
        self.query, self.key, self.gate, self.far, self.near, self.output = (nn.Linear(dim, dim) for _ in range(6))

    @property
    def causality(self) -> Causality:
        return "strict" if self.causal else "no"

    @property
    def state_kind(self) -> StateKind:
        return "recurrent" if self.running else "none" if self.max_len is None else "growing"

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        if self.state_kind == "none":
            return ()

        def zeros(*shape: int, wide: bool = False) -> Tensor:
            kind = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32) if wide else dtype
            return torch.zeros(batch, *shape, device=device, dtype=kind)

        width = self.dim // self.heads
        if self.max_len is not None:
            pooled = (zeros(self.max_len, self.dim),)
        else:
            pooled = (zeros(self.heads, wide=True), zeros(self.heads, width, wide=True))
        position = torch.zeros(batch, dtype=torch.int64, device=device)
        return PoNetState(position, zeros(self.dim, wide=True), zeros(self.dim), zeros(WINDOW - 1, self.dim), pooled)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        first = self.query(x) if self.causal else x
        parts = (first, self.key(x), self.gate(x), self.far(x), self.near(x))
        run = self._whole if not self.causal else self._causal if self.state_kind == "none" else self._stream
        mixed, state = by_episode(run, parts, state, self.init_state, mask.padding, mask.reset)
        return LayerOutput(self.output(mixed), state)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _whole(self, parts: tuple[Tensor, ...], lengths: Tensor | None, state: State) -> tuple[Tensor, State]:
        """The form that sees all tokens; ``lengths (R,)`` if rows are padded at the right."""
        x, key, gate, far, near = parts
        tokens, allowed, real = x.shape[1], None, None
        if lengths is not None:
            real = torch.arange(tokens, device=x.device) < lengths.unsqueeze(1)
            allowed, gap = real[:, None, None], ~real.unsqueeze(-1)
            far, near = far.masked_fill(gap, NONE), near.masked_fill(gap, NONE)
            mean = x.sum(1, keepdim=True) / lengths.clamp(min=1).to(x.dtype).view(-1, 1, 1)
        else:
            mean = x.mean(1, keepdim=True)
        key = self._split(key)
        pooled = attention(self._split(self.query(mean)), key, key, allowed=allowed)
        segment = _blocks(far, self.segment).max(2).values.repeat_interleave(self.segment, 1)[:, :tokens]
        local = _window_max(functional.pad(near, (0, 0, 1, 1), value=NONE))
        if real is not None:
            segment, local = segment.masked_fill(gap, 0.0), local.masked_fill(gap, 0.0)
        return (_join(pooled) + segment) * gate + local, ()

    def _causal(self, parts: tuple[Tensor, ...], lengths: Tensor | None, state: State) -> tuple[Tensor, State]:
        """The causal form without a state. Padding at the right needs no mask: it is after every real token."""
        query, key, gate, far, near = parts
        tokens, heads = query.shape[1], self._split(key)
        wide = query.to(torch.promote_types(query.dtype, torch.float32))
        mean = wide.cumsum(1) / torch.arange(1, tokens + 1, device=query.device).unsqueeze(-1)
        pooled = attention(self._split(mean.to(query.dtype)), heads, heads, causal=True)
        segment = _blocks(far, self.segment).cummax(2).values.flatten(1, 2)[:, :tokens]
        local = _window_max(functional.pad(near, (0, 0, WINDOW - 1, 0), value=NONE))
        return (_join(pooled) + segment) * gate + local, ()

    def _stream(self, parts: tuple[Tensor, ...], lengths: Tensor | None, old: PoNetState) -> tuple[Tensor, PoNetState]:
        """The causal form after the tokens in ``old``."""
        query, key, gate, far, near = parts
        tokens, device = query.shape[1], query.device
        new = torch.full_like(old.position, tokens) if lengths is None else lengths
        start, end, position = old.position.unsqueeze(1), new.unsqueeze(1), old.position + new
        place = start + torch.arange(tokens, device=device)

        sums = torch.cat([old.query_sum.unsqueeze(1), query.to(old.query_sum.dtype)], 1).cumsum(1)
        mean = self._split((sums[:, 1:] / (place + 1).unsqueeze(-1)).to(query.dtype))
        pool = self._exact if self.max_len is not None else self._running
        pooled, kept = pool(mean, self._split(key), place, end, old)

        # s': the maximum of the unfinished segment stands for each of its past tokens
        offset = start % self.segment
        count = -(-(self.segment - 1 + tokens) // self.segment)
        source = torch.arange(count * self.segment, device=device)
        source = torch.where(source < offset, 0, source - offset + 1).clamp(max=tokens)
        lined = take_along(torch.cat([old.segment_max.unsqueeze(1), far], 1), source)
        lined = lined.unflatten(1, (count, -1)).cummax(2).values.flatten(1, 2)
        segment = take_along(lined, offset + torch.arange(tokens, device=device))
        top = take_along(lined, (offset + end - 1).clamp(min=0)).squeeze(1)
        top = torch.where((position % self.segment > 0).unsqueeze(1), top, 0.0)

        slot = torch.arange(WINDOW - 1, device=device)
        history = torch.cat([old.local, near], 1)
        absent = functional.pad(start < WINDOW - 1 - slot, (0, tokens)).unsqueeze(-1)
        local = _window_max(history.masked_fill(absent, NONE))
        state = PoNetState(position, take_along(sums, end).squeeze(1), top, take_along(history, end + slot), kept)
        return (_join(pooled) + segment) * gate + local, state

    def _exact(
        self, mean: Tensor, key: Tensor, place: Tensor, end: Tensor, old: PoNetState
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Pool exactly: ``g'`` of every token, ``(R, H, T, E)``, and all keys so far."""
        assert self.max_len is not None
        used = old.position + end.squeeze(1)
        require_room("ponet", used, self.max_len)
        slot, start = torch.arange(self.max_len, device=key.device), old.position.unsqueeze(1)
        source = torch.where(slot < start, slot, self.max_len + (slot - start).clamp(max=key.shape[2] - 1))
        kept = keep_first(take_along(torch.cat([old.pooled[0], _join(key)], 1), source), used)
        held = self._split(kept)
        return attention(mean, held, held, allowed=(slot <= place.unsqueeze(2)).unsqueeze(1)), (kept,)

    def _running(
        self, mean: Tensor, key: Tensor, place: Tensor, end: Tensor, old: PoNetState
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Pool with each token scored once: ``g'`` of every token, its log-sum-exp and value at the end."""
        lse, past = (part.unsqueeze(2) for part in old.pooled)
        wide = key.to(past.dtype)
        scores = (mean.to(past.dtype) * wide).sum(-1) * wide.shape[-1] ** -0.5
        some = (old.position > 0).view(-1, 1, 1)
        means, sums = join(*prefix_softmax(scores, wide), past, torch.where(some, lse, NONE))
        ends = (torch.cat([lse, sums], 2).transpose(1, 2), torch.cat([past, means], 2).transpose(1, 2))
        return means.to(key.dtype), tuple(take_along(part, end).squeeze(1) for part in ends)


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _blocks(x: Tensor, segment: int) -> Tensor:
    """``(R, T, D)`` -> ``(R, G, segment, D)``, with minus infinity at the end of a short last segment."""
    count = -(-x.shape[1] // segment)
    return functional.pad(x, (0, 0, 0, count * segment - x.shape[1]), value=NONE).unflatten(1, (count, segment))


def _window_max(x: Tensor) -> Tensor:
    """``(R, T + 2, D)`` -> ``(R, T, D)``: the maximum of three tokens in a row."""
    return x.unfold(1, WINDOW, 1).max(-1).values
