"""Combiner: Full Attention Transformer with Sparse Computation Cost (2107.05768), on grids.

The equation and the summaries are those of :mod:`manyheads.core.layers.combiner`. Tokens are in raster order on n rows
and m columns; each sees itself and what comes before. Directly it sees its row up to itself, and, but for ``rowmajor``,
the earlier rows of its column. The rest of the earlier rows is in spans:

- ``vertical``: one span for each column, the part of it above the token's row;
- ``horizontal``: two spans for each earlier row, left and right of the token's column;
- ``rowmajor``: one span for each earlier row, all of it. Its value is the row's attention at the token's column,
  ``a = softmax(q_c K_row' / sqrt(E)) V_row``, and its key is ``W_2 LayerNorm(x_c + W_1 a)``.

Shapes: B batch, n rows, m columns, N = n m tokens, D width, H heads, E = D / H head width, X = B H.

Cost: time ``O(N (n + m) D + N D^2)``, memory ``O(N (n + m) H)``: ``N^1.5`` on a square.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from manyheads.core.fields import heads_argument
from manyheads.core.functional.attention import attention
from manyheads.core.functional.merge import Partial, finish, merge, partial_attention
from manyheads.core.functional.spans import prefix_spans
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput
from manyheads.core.mask import Mask
from manyheads.core.state import State

Plan = Literal["vertical", "horizontal", "rowmajor"]
# keys that a query meets, spans and the making of spans included: (multiples of the rows n, of the columns m)
PAIRS = {"vertical": (2, 2), "horizontal": (3, 3), "rowmajor": (1, 2)}


def _flops(config: dict[str, Any], grid: Grid) -> float:
    dim, plan, tokens = config["dim"], config.get("plan", "vertical"), math.prod(grid)
    projections = 6 if plan == "rowmajor" else 4
    met = sum(times * size for times, size in zip(PAIRS[plan], grid, strict=True))
    return 2.0 * projections * tokens * dim * dim + 4.0 * met * tokens * dim


class CombinerAxial(Layer):
    """Row and column directly, the rest of the earlier rows as spans; see the module for the plans and shapes.

    Raises:
        ArgumentError: heads that do not divide, an unknown plan.
    """

    info = LayerInfo(
        name="combiner-axial",
        title="Combiner: Full Attention Transformer with Sparse Computation Cost",
        arxiv="2107.05768",
        formula=(
            r"y_i = W_o \Big( \sum_{j \in D_i} p(j \mid i)\, v_j"
            r" + \sum_r p(\Omega_r \mid i) \sum_{j \in \Omega_r} p(j \mid \Omega_r)\, v_j \Big), \quad"
            r" D_i = \text{row and column of } i"
        ),
        good_for="Images in raster order: each cell reaches all earlier ones at the cost of row and column.",
        not_for="Images that are seen as a whole: it is causal. Take axial along both axes.",
        cost="time N (n + m) D, memory N (n + m) H on n x m = N",
        flops=_flops,
        at_length=lambda n: {
            "plain": {"heads": 2},
            "horizontal": {"heads": 2, "plan": "horizontal"},
            "rowmajor": {"heads": 2, "plan": "rowmajor"},
        },
        grid_ranks=(2,),
        causal=("strict",),
        masks=("padding",),
        positional=True,
        linear_in_value=True,
        deviations=(
            "here no dropout; the paper has dropout on the direct attention weights",
            "here summaries by max-pooling only; the paper has DeepSets too",
            "here the bidirectional form is of combiner-fixed only; the paper has it for all plans",
            "here the plans are vertical, horizontal and rowmajor; the authors' JAX code takes another one by "
            "default, mixture: column, row, previous rows, top left and top right in one softmax, which counts tokens "
            "more than once, so that its published results are of another function",
            "here running maxima are cumulative maxima, as in the paper and the authors' JAX code; their TensorFlow "
            "code takes cumulative sums: another function",
            "here the key of a row in rowmajor is W_2 LayerNorm(x + W_1 a) of its attention a, as in the authors' JAX "
            "code; their TensorFlow code offers three others: keys are made from values, so that no matrix gives the "
            "output from the values alone",
            "here the norm of rowmajor has epsilon 1e-5, torch's; the authors' JAX code has 1e-6: some 5e-6 of the "
            "key at unit variance",
            "padding is ours (not with rowmajor): those tokens keep their place on the grid, and no token sees them",
        ),
    )

    heads: int = heads_argument()
    """H; divides ``dim``. By default the largest power of two up to 8 that does."""
    plan: Plan = "vertical"
    """How the earlier rows are cut into spans."""
    bias: bool = False
    """Biases in the projections."""

    def setup(self) -> None:
        dim, bias = self.dim, self.bias
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=bias) for _ in range(4))
        if self.plan == "rowmajor":
            self.row, self.row_key = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
            self.norm = nn.LayerNorm(dim)

    @property
    def linear_in_value(self) -> bool:
        return self.plan != "rowmajor"

    @property
    def masks(self) -> tuple[str, ...]:
        return () if self.plan == "rowmajor" else ("padding",)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        batch, rows, columns = x.shape[:3]
        q, k, v = (self._split(part(x)) for part in (self.query, self.key, self.value))
        if mask.padding is None:
            real = torch.ones(1, rows, columns, dtype=torch.bool, device=x.device)
        else:
            real = mask.padding.view(batch, rows, columns).repeat_interleave(self.heads, 0)
        if self.plan == "vertical":
            parts = _vertical(q, k, v, real)
        elif self.plan == "horizontal":
            parts = _horizontal(q, k, v, real)
        else:
            held = attention(q, k, v)
            named = self.row_key(self.norm(x + self.row(self._join(held, batch))))
            parts = _rowmajor(q, k, v, self._split(named), held)
        along_row, along_column = parts
        mixed, _ = finish(merge(along_row, Partial(*(part.transpose(1, 2) for part in along_column))))
        return LayerOutput(self.output(self._join(mixed, batch).to(v.dtype)))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4).flatten(0, 1)  # (X, n, m, E)

    def _join(self, x: Tensor, batch: int) -> Tensor:
        return x.unflatten(0, (batch, -1)).permute(0, 2, 3, 1, 4).flatten(3)


def _vertical(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> tuple[Partial, Partial]:
    turned = _turn(q, k, v, real)
    spans = _turn(*prefix_spans(*turned))
    other = ~torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
    row = _along(q, ([k, v, real], _lower(q, 0)), (spans, other))
    return row, _along(turned[0], (turned[1:], _lower(turned[0], -1)))


def _horizontal(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> tuple[Partial, Partial]:
    left = prefix_spans(q, k, v, real)
    right = (part.flip(2) for part in prefix_spans(*(part.flip(2) for part in (q, k, v, real))))
    turned = q.transpose(1, 2)
    before = _lower(turned, -1)
    column = _along(turned, *((_turn(*group), before) for group in ((k, v, real), left, right)))
    return _along(q, ([k, v, real], _lower(q, 0))), column


def _rowmajor(q: Tensor, k: Tensor, v: Tensor, named: Tensor, held: Tensor) -> tuple[Partial, Partial]:
    every = torch.ones(1, *q.shape[1:3], dtype=torch.bool, device=q.device)
    turned = _turn(q, named, held, every)
    return _along(q, ([k, v, every], _lower(q, 0))), _along(turned[0], (turned[1:], _lower(turned[0], -1)))


def _turn(*parts: Tensor) -> list[Tensor]:
    return [part.transpose(1, 2) for part in parts]


def _lower(q: Tensor, diagonal: int) -> Tensor:
    return torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril(diagonal)


def _along(q: Tensor, *groups: tuple[Sequence[Tensor], Tensor]) -> Partial:
    """The partial softmax of ``q (X, L, T, E)`` along T over groups of keys and values ``(X, L, T, E)``, which of them
    there are ``(…, L, T)``, and who may see whom ``(T, T)``."""
    keys, values = (torch.cat([parts[which] for parts, _ in groups], 2) for which in (0, 1))
    allowed = torch.cat([parts[2].unsqueeze(2) & seen for parts, seen in groups], 3)
    return partial_attention(q, keys, values, allowed=allowed)
