"""Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting (2012.07436): ProbSparse attention.

    M(q_t) = max_{s in S_t} q_t k_s' / sqrt(E) - mean_{s in S_t} q_t k_s' / sqrt(E),   S_t: U sampled keys of query t
    y_t = softmax(q_t K' / sqrt(E)) V   for the u queries with the largest M (a set for each head),
    y_t = mean(V), or with ``causal`` mean(V_1 … V_t),   for the others

with ``u = U = factor * ceil(ln T)``, at most T. Shapes: B batch, T tokens, D width, H heads, E = D / H head width.

Cost: time ``O(T ln T D + T D^2)``, memory ``O(T (D + ln T))``: the sampled keys of all queries are never held at once.

The sample is a hash of (seed, query, place) scaled to the length: the same at every call and on every device, shared by
batch and heads, drawn with replacement. With ``resample`` each training step draws its seed from torch's generator,
which activation checkpointing repeats; evaluation never does.

Causality is weak: with ``causal`` no output mixes a later value, but the selection of queries looks at all queries and,
through the sample, at all keys. A later token can therefore change which of the two forms an earlier output takes.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import heads_argument
from manyheads.core.functional.attention import attention
from manyheads.core.functional.hashing import hashed_choice, hashed_integers
from manyheads.core.functional.own_backward import must_be_plain
from manyheads.core.functional.packing import pack, pack_order, unpack
from manyheads.core.functional.prefix_sum import prefix_sum
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State


def _budget(factor: float, tokens: int) -> int:
    return min(tokens, max(1, int(factor * math.ceil(math.log(tokens)))))


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, budget = config["dim"], _budget(config.get("factor", 5.0), tokens)
    return 8.0 * tokens * dim * dim + 6.0 * budget * tokens * dim


def sparsity(q: Tensor, k: Tensor, sample: Tensor, used: Tensor | None = None) -> Tensor:
    """M: ``q, k (B, T, H, E)``, ``sample (B, T, U)`` int64, of which the first ``used (B,)`` columns count (all by
    default) -> ``(B, H, T)``, without gradient."""
    batch, tokens, heads, width = q.shape
    columns = sample.shape[2]
    q, k = (part.detach().flatten(0, 1).transpose(0, 1).contiguous() for part in (q, k))  # (H, B T, E)
    place = (sample + torch.arange(batch, device=q.device).view(-1, 1, 1) * tokens).flatten(0, 1)
    live = None if used is None else torch.arange(columns, device=q.device) < used.view(-1, 1, 1)
    found = []
    for head in range(heads):
        scores = sampled_products(q[head], k[head], place).view(batch, tokens, columns)
        if live is None or used is None:
            found.append(scores.amax(-1) - scores.mean(-1))
        else:
            mean = torch.where(live, scores, 0.0).sum(-1) / used.unsqueeze(1)
            found.append(torch.where(live, scores, float("-inf")).amax(-1) - mean)
    return torch.stack(found, 1) * width**-0.5


def sampled_products(q: Tensor, k: Tensor, place: Tensor) -> Tensor:
    """``q (N, E)``, ``k (M, E)``, ``place (N, U)`` -> ``q[n] . k[place[n, u]]``, ``(N, U)``.

    On a CPU by the kernel that multiplies matrices at the places of a sparse one only (a third of the time of gathering
    the keys); else the keys are gathered, some queries at a time.
    """
    rows, columns = place.shape
    on_cpu = q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)
    plain = must_be_plain()
    if not plain and on_cpu and torch.backends.mkl.is_available():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            start = torch.arange(rows + 1) * columns
            empty = torch.zeros(rows * columns, dtype=q.dtype)
            pattern = torch.sparse_csr_tensor(start, place.flatten(), empty, (rows, len(k)), check_invariants=False)
            return torch.sparse.sampled_addmm(pattern, q, k.T, beta=0.0).values().view(rows, columns)
    if plain:
        return _gathered_products(q, k, place)
    step = max(1, (1 << 26) // (columns * q.shape[1]))  # elements of sampled keys at a time
    return torch.cat([_gathered_products(q[i : i + step], k, place[i : i + step]) for i in range(0, rows, step)])


def _gathered_products(q: Tensor, k: Tensor, place: Tensor) -> Tensor:
    sampled = k.index_select(0, place.flatten()).view(*place.shape, q.shape[1])
    return (sampled @ q.unsqueeze(-1)).squeeze(-1)


def _at_length(tokens: int) -> dict[str, dict[str, Any]]:
    # of a short sequence the usual factor selects every query
    plain = {"heads": 2} if tokens >= 64 else {"heads": 2, "factor": 1.0}
    return {"plain": plain, "causal": {**plain, "causal": True}}


class ProbSparse(Layer):
    """ProbSparse attention; see the module for equation and shapes.

    Raises:
        ArgumentError: heads that do not divide, a factor that is not above 0, an unknown ``running``.
    """

    info = LayerInfo(
        name="prob-sparse",
        title="Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting",
        arxiv="2012.07436",
        formula=(
            r"\begin{aligned} M(q_t) &= \max_{s \in S_t} \frac{q_t \cdot k_s}{\sqrt{E}}"
            r" - \operatorname{mean}_{s \in S_t} \frac{q_t \cdot k_s}{\sqrt{E}}, \qquad |S_t| = u = c "
            r"\lceil \ln T \rceil \\"
            r" y_t &= \begin{cases} \operatorname{softmax}(q_t K^\top / \sqrt{E})\, V &"
            r" \text{for the } u \text{ queries with the largest } M \\"
            r" \operatorname{mean}(V) & \text{for the others} \end{cases} \end{aligned}"
        ),
        good_for="Encoding long series in which few positions need full attention.",
        not_for="Strictly causal models and streams: its selection looks at all queries. Take softmax with a window.",
        cost="time N ln N D, memory N D",
        flops=_flops,
        at_length=_at_length,
        causal=("no", "weak"),
        masks=("padding",),
        positional=True,
        linear_in_value=True,
        discontinuous=True,
        deviations=(
            "here M subtracts the mean over the sampled keys, as the paper defines it; the authors' code divides "
            "their sum by the length: its M is nearly the maximum alone, and may choose other queries",
            "here lazy queries of the causal form get the running mean of the values, as from uniform attention; the "
            "authors' code gives the running sum (running='sum'): it grows with the length",
            "here a hash of seed, query and place gives the sampled keys, drawn anew only in training with "
            "resample=True; the authors' code draws at every call, in evaluation too: evaluation is deterministic "
            "here, and padding does not change the sample",
            "here the causal form is declared weakly causal, as the choice of the queries depends on all tokens; the "
            "paper does not state its causality",
            "here heads are joined token by token; in the self-attention of their decoder the authors transpose heads "
            "and time before they join the heads (mix): their decoder mixes time and heads, their encoder does not",
            "here the convolution that halves the sequence between layers is no part of the layer (blocks.distilling)",
            "padding is ours: padded tokens count as absent",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does."""
    factor: float = 5.0
    """c of ``u = c ceil(ln T)``."""
    causal: bool = False
    """No output mixes a later value; weakly causal, as the selection looks at all queries."""
    running: Literal["mean", "sum"] = "mean"
    """Causal only: lazy queries get the running "mean" of the values, or their "sum" as in the authors' code."""
    seed: int = 0
    """Seed of the sampled keys."""
    resample: bool = False
    """Each training step draws the seed anew."""
    bias: bool = True
    """Biases in the four projections."""

    def setup(self) -> None:
        dim, bias = self.dim, self.bias
        if not 0 < self.factor < math.inf:
            raise ArgumentError(f"prob-sparse: factor: found {self.factor}, expected a number above 0")
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(dim, dim, bias=bias)
        self.value = nn.Linear(dim, dim, bias=bias)
        self.output = nn.Linear(dim, dim, bias=bias)

    @property
    def causality(self) -> Causality:
        return "weak" if self.causal else "no"

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        batch, tokens, _ = x.shape
        parts = (self.query(x), self.key(x), self.value(x))
        if mask.padding is None:
            lengths = torch.full((batch,), tokens, dtype=torch.int64, device=x.device)
            return LayerOutput(self.output(self._mixed(*parts, lengths, ragged=False)))
        order, real = pack_order(mask.padding)
        mixed = self._mixed(*(pack(part, order) for part in parts), mask.padding.sum(1), ragged=True)
        return LayerOutput(self.output(unpack(mixed, order, real)))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, *, ragged: bool) -> Tensor:
        """``(B, T, D)`` of which the first ``lengths`` tokens of each row are real."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        tokens, device = q.shape[1], q.device
        budget = self._budgets(lengths)
        selected = self._select(q, k, lengths, budget if ragged else None)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        index = selected.unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])
        key = torch.arange(tokens, device=device)
        allowed = key < lengths.view(-1, 1, 1, 1) if ragged else None
        if self.causal:
            before = key <= selected.unsqueeze(-1)
            allowed = before if allowed is None else before & allowed
        attended = attention(q.gather(2, index), k, v, allowed=allowed)
        lazy = self._lazy(v, lengths, ragged=ragged)
        if ragged:
            spare = torch.arange(selected.shape[2], device=device) >= budget.unsqueeze(1)
            attended = torch.where(spare[:, None, :, None], lazy.gather(2, index), attended)
        return lazy.scatter(2, index, attended).transpose(1, 2).flatten(2)

    def _budgets(self, lengths: Tensor) -> Tensor:
        """u of each row."""
        logs = lengths.clamp(min=1).to(torch.float64).log().ceil()
        return torch.minimum((self.factor * logs).to(torch.int64).clamp(min=1), lengths.clamp(min=1))

    @torch.no_grad()
    def _select(self, q: Tensor, k: Tensor, lengths: Tensor, budget: Tensor | None) -> Tensor:
        """``(B, H, u)``: the queries that attend, u of the longest possible row; ties go to the earlier query.
        ``budget``: U of each row, None for rows without padding."""
        tokens, seed = q.shape[1], self.seed
        columns = _budget(self.factor, tokens)
        if self.training and self.resample:
            seed = int(torch.randint(1 << 32, ()))
        drawn = hashed_integers(seed, tokens, columns, device=q.device)
        measure = sparsity(q, k, hashed_choice(drawn, lengths.clamp(min=1).view(-1, 1, 1)), budget)
        if budget is not None:
            beyond = torch.arange(tokens, device=q.device) >= lengths.view(-1, 1, 1)
            measure = measure.masked_fill(beyond, float("-inf"))
        return torch.sort(measure, dim=-1, descending=True, stable=True).indices[..., :columns]

    def _lazy(self, v: Tensor, lengths: Tensor, *, ragged: bool) -> Tensor:
        """``(B, H, T, E)``: the mean of the real values, or their running mean or sum."""
        if self.causal:
            total = prefix_sum(v)
            if self.running == "sum":
                return total
            return total / torch.arange(1, v.shape[2] + 1, device=v.device).unsqueeze(-1)
        wide = v.float() if v.dtype in (torch.bfloat16, torch.float16) else v
        if ragged:
            real = torch.arange(v.shape[2], device=v.device) < lengths.unsqueeze(1)
            wide = torch.where(real[:, None, :, None], wide, 0.0)
        mean = wide.sum(2, keepdim=True) / lengths.clamp(min=1).view(-1, 1, 1, 1)
        return mean.to(v.dtype).expand_as(v)
