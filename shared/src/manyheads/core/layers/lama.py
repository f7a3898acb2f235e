"""Low Rank Factorization for Compact Multi-Head Self-Attention (1912.00835, "LAMA"): m weighted averages of the states
of a recurrent encoder.

    f_ki = tanh((p_k' c) (q_k' h_i)),   g_ki = f_ki / sqrt(sum_l f_li^2 + e),   A_k = softmax_i(a_k g_ki),   E_k = A_k H

with H the states of a gated recurrent unit over x, c the mean of H or a learnt vector, e = 1e-12 and a_k = 1. Head k is
the rank-one term ``q_k p_k'`` of a bilinear affinity ``h_i' W c``, so that the sum of the terms has rank m at most.

As a layer every token gets the projected averages ``[E_1 … E_m] W_o``. Not causal: H runs both ways and all tokens get
the same summary, that of the whole sequence, as :meth:`LowRankAttentionPooling.pool` gives it. Causal: H runs forward
and token t gets the summary of tokens 1 … t (or of the latest ``window``), with the mean over the same ones as c.

``|g_ki| <= 1`` bounds how sharp the attention can be: with a = 1 no weight over T tokens exceeds
``e^2 / (T - 1 + e^2)``, and the largest is at most e^2 times the smallest. ``temperature=True`` learns a_k.

With one head g is the sign of f.

Shapes: B batch, T tokens, S tokens that are seen, D width (of H too: D / 2 units a direction when not causal), m heads.

Cost: the encoder's T steps, ``O(T D^2)``; pooling ``O(T D m)`` time and ``O(T m)`` memory beside H. Causal with the
learnt c the same by running sums, ``O(T D m)`` memory, with a state of ``m D`` numbers; with the mean as c the scores
of every pair change, ``O(T^2 D m)`` time, ``O(T^2 m)`` memory, and a state that holds H; a window of W in blocks,
``O(T W D m)`` time.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.blocks.recurrent_encoder import RecurrentEncoder
from manyheads.core.blocks.shared_value import SharedValue, mix_shared
from manyheads.core.errors import ArgumentError, MaskError
from manyheads.core.fields import argument
from manyheads.core.functional import (
    hold_first,
    hold_last,
    pack,
    pack_order,
    require_room,
    same_segment,
    segment_cumsum,
    unpack,
    visible,
)
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput, StateKind
from manyheads.core.mask import Mask
from manyheads.core.state import State

EPSILON = 1e-12
_SHORTEST_BLOCK = 64  # shorter windows share one: many small products cost more than masked entries


class RunningState(NamedTuple):
    """With the learnt context: the encoder's state and the weighted sum of its states, in float32 at least.

    Float32 sums stand still after some 10^7 tokens without a reset: such streams want a window.
    """

    hidden: Tensor  # (B, D)
    weighted: Tensor  # (B, m, D)
    weight: Tensor  # (B, m)


class StoredState(NamedTuple):
    """The encoder's state and the states that later tokens still pool, the oldest first."""

    hidden: Tensor  # (B, D), in float32 at least
    states: Tensor  # (B, M, D)
    used: Tensor  # (B,) int64: slots in use


def lama_scores(h: Tensor, c: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """``h (B, S, D)``, ``c (B, T, D)``, ``p`` and ``q (D, m)`` -> g ``(B, m, T, S)``: of unit length over the heads."""
    f = torch.tanh((c @ p).mT.unsqueeze(-1) * (h @ q).mT.unsqueeze(-2))
    return f / torch.sqrt((f * f).sum(1, keepdim=True) + EPSILON)


def lama_weights(scores: Tensor, *, allowed: Tensor | None = None, sharpness: Tensor | None = None) -> Tensor:
    """Softmax of ``scores (B, m, T, S)`` over S where ``allowed (B, T, S)``; 0 in a row that may see nothing.

    ``sharpness (m,)`` are the factors a_k.
    """
    scores = scores if sharpness is None else scores * sharpness.view(-1, 1, 1)
    if allowed is None:
        return scores.softmax(-1)
    allowed = allowed.unsqueeze(1)
    none = ~allowed.any(-1, keepdim=True)
    return scores.masked_fill(~(allowed | none), float("-inf")).softmax(-1).masked_fill(none, 0.0)


def orthogonality_penalty(weights: Tensor) -> Tensor:
    """``|A A' - I|^2`` of ``A (…, m, S)``, Frobenius, averaged over the leading axes: 0 for disjoint one-hots only."""
    gram = weights @ weights.mT
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).square().sum((-1, -2)).mean()


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, heads = config["dim"], config.get("heads", 4)
    causal, learned = config.get("causal"), config.get("context", "mean") == "learned"
    units, directions = (dim, 1) if causal else (dim // 2, 2)
    encoder = 6.0 * directions * tokens * units * (dim + units)
    readers = tokens if causal else 1
    seen = tokens if not causal or (learned and not config.get("window")) else tokens * (tokens + 1) / 2
    if config.get("window"):
        seen = min(seen, tokens * config["window"])
    return (
        encoder + 2.0 * heads * dim * (tokens + readers) + seen * heads * (2 * dim + 8) + 2.0 * readers * heads * dim**2
    )


class LowRankAttentionPooling(Layer):
    """LAMA over a gated recurrent encoder, and its summary for every token; see the module for equation and shapes.

    Raises:
        ArgumentError: a head count below 1, an odd width that is not causal, a window or room that does not fit, an
            unknown context.
    """

    info = LayerInfo(
        name="lama",
        title="Low Rank Factorization for Compact Multi-Head Self-Attention",
        arxiv="1912.00835",
        formula=(
            r"\begin{aligned} f_{ki} &= \tanh\big((p_k^\top c)(q_k^\top h_i)\big), \qquad"
            r" g_{ki} = \frac{f_{ki}}{\sqrt{\sum_l f_{li}^2 + \epsilon}} \\"
            r" A_k &= \operatorname{softmax}_i(a_k g_{ki}), \qquad E_k = A_k H, \qquad"
            r" y = W_o [E_1; \dots; E_m], \quad H = \mathrm{GRU}(x) \end{aligned}"
        ),
        good_for="Classifying a text by a summary of few heads, with few parameters; a running summary if causal.",
        not_for="Outputs that differ from token to token without causal: all get the same summary. Take softmax.",
        cost="time N D^2 + N D m, memory N D m; causal with the mean N^2 D m, a streamed token M D m with M slots",
        flops=_flops,
        at_length=lambda n: {
            "plain": {"heads": 4},
            "recurrent": {"heads": 4, "causal": True, "context": "learned"},
            "window": {"heads": 4, "causal": True, "window": min(128, max(2, n // 2))},
        },
        causal=("no", "strict"),
        state=("none", "recurrent", "window", "growing"),
        streams_with=(
            {"causal": True, "context": "learned"},
            {"causal": True, "window": 128},
            {"causal": True, "max_len": 1024, "context": "mean"},
        ),
        masks=("padding", "reset"),
        positional=True,
        linear_in_value=True,
        compiles=False,  # torch's compiler refuses its recurrent units
        deviations=(
            "the paper was not read: the pooling follows a third-party code that cites the paper's equations; around "
            "it is one bidirectional GRU layer with D / 2 units for each direction: the size of the encoder and the "
            "number of heads are not the paper's",
            "here the norm over heads has 1e-12 under the root; that code has no epsilon: scores of 0 give equal "
            "weights instead of NaN",
            'the penalty |A A\' - I|^2 in aux["penalty"] is from memory of the paper, its coefficient unknown; no loss '
            "contains it here, and the causal form has none",
            "here the temperature is 1, or learnt for each head; the paper's is 1: without a learnt one no weight "
            "exceeds e^2 / (T - 1 + e^2)",
            "here every token gets the projected summary, and pool gives the summary alone; the paper has one vector "
            "for each sequence",
            "causal forms, windows and states are ours; their context is the mean over the tokens that each token sees",
        ),
    )

    heads: int = argument(default=4, least=1)
    """m, the rank of the affinity."""
    causal: bool = False
    """Token t gets the summary of tokens 1 … t; the encoder runs forward only. If not, ``dim`` must be even: each
    direction of the encoder has D / 2 units."""
    context: Literal["mean", "learned"] = "mean"
    """c: the "mean" of the states that are seen ("LAMA+ctx"), or one "learned" vector ("LAMA")."""
    window: int | None = None
    """Causal only: the summary is of the latest ``window`` real tokens; the encoder still sees all."""
    max_len: int | None = None
    """Causal with the mean only: slots of the growing state; a longer stream raises. With the learnt context the state
    has constant size."""
    temperature: bool = False
    """Learn a_k, one for each head, from 1 on. Running sums stay exact up to about a_k = 40 in float32."""

    def setup(self) -> None:
        dim, heads, causal, window, max_len = self.dim, self.heads, self.causal, self.window, self.max_len
        if not causal and dim % 2:
            raise ArgumentError(f"lama: dim: found {dim}, expected an even width for two directions (causal=False)")
        for name, value in (("window", window), ("max_len", max_len)):
            if value is not None and (value < 1 or not causal):
                raise ArgumentError(f"lama: {name}: found {value} with causal={causal}, expected 1 or more and causal")
        if max_len is not None and (window is not None or self.context == "learned"):
            raise ArgumentError(
                f"lama: max_len: found {max_len} with window={window} and context={self.context!r}, expected None: the "
                "state is of constant size"
            )
        self.encoder = RecurrentEncoder(dim, dim if causal else dim // 2, both_ways=not causal)
        self.p = nn.Parameter(torch.empty(dim, heads))
        self.q = nn.Parameter(torch.empty(dim, heads))
        for factor in (self.p, self.q):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        self.learned = nn.Parameter(torch.randn(dim)) if self.context == "learned" else None
        self.log_sharpness = nn.Parameter(torch.zeros(heads)) if self.temperature else None
        self.value = SharedValue(heads)
        self.output = nn.Linear(heads * dim, dim, bias=False)

    @property
    def causality(self) -> Causality:
        return "strict" if self.causal else "no"

    @property
    def state_kind(self) -> StateKind:
        if not self.causal:
            return "none"
        if self.window is not None or self.max_len is not None:
            return "growing" if self.window is None else "window"
        return "none" if self.learned is None else "recurrent"

    @property
    def masks(self) -> tuple[str, ...]:
        return ("padding", "reset") if self.causal else ("padding",)

    @property
    def slots(self) -> int:
        """M: a window needs no slot for the token that it ends with."""
        return self.window - 1 if self.window is not None else self.max_len or 0

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        if self.state_kind == "none":
            return ()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        wide = torch.promote_types(dtype, torch.float32)
        hidden = torch.zeros(batch, self.dim, device=device, dtype=wide)
        if self.state_kind == "recurrent":
            weighted = torch.zeros(batch, self.heads, self.dim, device=device, dtype=wide)
            return RunningState(hidden, weighted, weighted[..., 0].clone())
        states = torch.zeros(batch, self.slots, self.dim, device=device, dtype=dtype)
        return StoredState(hidden, states, torch.zeros(batch, dtype=torch.int64, device=device))

    def pool(self, x: Tensor, mask: Mask | None = None, *, project: bool = False) -> Tensor:
        """``x (B, T, D)`` -> the summary of all real tokens, ``(B, m D)`` or projected ``(B, D)``; any window aside."""
        h, real = self._encoded(x, mask)
        pooled = mix_shared(self._average(h, real.unsqueeze(1)), self.value(h)).squeeze(1)
        return self.output(pooled) if project else pooled

    def weights(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """``x (B, T, D)`` -> A ``(B, m, T)``, what :meth:`pool` averages with."""
        h, real = self._encoded(x, mask)
        return self._average(h, real.unsqueeze(1)).squeeze(2)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        start = None if state == () else state.hidden
        h, hidden, real, segment = self.encoder(x, start, mask)
        if not self.causal:
            weights = self._average(h, real.unsqueeze(1))
            y = self.output(mix_shared(weights, self.value(h))).repeat(1, x.shape[1], 1)
            return LayerOutput(y, (), {"penalty": orthogonality_penalty(weights.squeeze(2))})
        if self.state_kind == "recurrent":
            mixed, state = self._running(h, hidden, state, real, mask.reset)
        else:
            mixed, state = self._stored(h, hidden, state, real, segment)
        return LayerOutput(self.output(mixed), state)

    def aux_of_nothing(self, x: Tensor) -> dict[str, Tensor]:
        return {} if self.causal else {"penalty": x.sum()}

    def _encoded(self, x: Tensor, mask: Mask | None) -> tuple[Tensor, Tensor]:
        x, _, mask = self._admitted(x, None, mask)
        if mask.reset is not None:
            raise MaskError("lama: mask.reset: found one, but a summary is of one episode")
        h, _, real, _ = self.encoder(x, None, mask)
        return h, real

    def _sharp(self) -> Tensor | None:
        return None if self.log_sharpness is None else self.log_sharpness.exp()

    def _average(self, pooled: Tensor, allowed: Tensor) -> Tensor:
        """A ``(B, m, T, S)``."""
        return lama_weights(self._scores(pooled, allowed), allowed=allowed, sharpness=self._sharp())

    def _scores(self, pooled: Tensor, allowed: Tensor) -> Tensor:
        """g ``(B, m, T, S)`` of the states ``pooled (B, S, D)``, with the context of each row of ``allowed (B, T, S)``.

        Where the context is learnt all rows are alike, and T is 1.
        """
        wide = torch.promote_types(pooled.dtype, torch.float32)
        pooled, p, q = pooled.to(wide), self.p.to(wide), self.q.to(wide)
        with torch.autocast(pooled.device.type, enabled=False):  # the epsilon is below what half precision knows
            if self.learned is not None:
                c = self.learned.to(wide).expand(pooled.shape[0], 1, -1)
            else:
                c = allowed.to(wide) @ pooled / allowed.sum(-1, keepdim=True).clamp(min=1)
            return lama_scores(pooled, c, p, q)

    def _running(
        self, h: Tensor, hidden: Tensor, state: RunningState, real: Tensor, reset: Tensor | None
    ) -> tuple[Tensor, RunningState]:
        """Scores that do not change: the softmax over the prefix is a ratio of running sums."""
        scores = self._scores(h, real.unsqueeze(1)).squeeze(2).mT  # (B, T, m)
        sharp = self._sharp()
        raw = torch.exp(scores - 1 if sharp is None else (scores - 1) * sharp)  # from 1 down to e^-2a: no overflow
        raw = raw * real.unsqueeze(-1)
        weighted = segment_cumsum(raw.unsqueeze(-1) * self.value(h).to(raw.dtype), reset, state.weighted)
        weight = segment_cumsum(raw, reset, state.weight)
        mixed = weighted / torch.where(weight > 0, weight, 1.0).unsqueeze(-1)
        return mixed.flatten(2).to(h.dtype), RunningState(hidden, weighted[:, -1], weight[:, -1])

    def _stored(self, h: Tensor, hidden: Tensor, state: State, real: Tensor, segment: Tensor) -> tuple[Tensor, State]:
        """Every token pools what it sees of the states that are held and of the new ones."""
        held = real[:, :0]
        pooled = h
        if state != ():
            held = torch.arange(self.slots, device=h.device) < state.used.unsqueeze(1)
            pooled = torch.cat([state.states, h], 1)
        usable = torch.cat([held, real], 1)
        segments = torch.cat([torch.zeros_like(held, dtype=torch.int64), segment], 1)
        if self.window is None:
            allowed = visible(real, segment, usable, segments, held.shape[1], causal=True, window=None)
            mixed = mix_shared(self._average(pooled, allowed), self.value(pooled))
        else:
            mixed = self._windowed(pooled, usable, segments, self.window)[:, held.shape[1] :]
        if state == ():
            return mixed, ()
        kept = usable & (segments == segment[:, -1:])
        count = kept.sum(1)
        if self.window is not None:
            return mixed, StoredState(hidden, hold_last(pooled, kept, self.slots), count.clamp(max=self.slots))
        require_room("lama", count, self.slots)
        return mixed, StoredState(hidden, hold_first(pooled, kept, self.slots), count)

    def _windowed(self, pooled: Tensor, usable: Tensor, segments: Tensor, window: int) -> Tensor:
        """Every state as a query over the latest ones up to itself, ``(B, S, m D)``, in blocks: ``O(S window)``."""
        values, (order, filled) = self.value(pooled), pack_order(usable)
        pooled, shared, segments = (pack(part, order) for part in (pooled, values[:, :, 0], segments))
        block = min(filled.shape[1], max(window, _SHORTEST_BLOCK))
        seen, ahead = block + window - 1, -filled.shape[1] % block

        def blocks(part: Tensor) -> Tensor:  # (B, S, …) -> (B blocks, seen, …)
            padded = nn.functional.pad(part, (*[0] * (2 * part.dim() - 4), window - 1, ahead))
            return padded.unfold(1, seen, block).movedim(-1, 2).flatten(0, 1)

        row = torch.arange(block, device=pooled.device).unsqueeze(1)
        column = torch.arange(seen, device=pooled.device)
        real, episode, states = blocks(filled), blocks(segments), blocks(pooled)
        allowed = (column >= row) & (column < row + window) & real.unsqueeze(1) & real[:, window - 1 :].unsqueeze(2)
        allowed = allowed & same_segment(episode[:, window - 1 :], episode)
        mixed = (
            mix_shared(self._average(states, allowed), blocks(shared).unsqueeze(2))
            .unflatten(0, (pooled.shape[0], -1))
            .flatten(1, 2)
        )
        return unpack(mixed[:, : filled.shape[1]], order, filled)
