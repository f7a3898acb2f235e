"""Hiformer: Heterogeneous Feature Interactions Learning with Transformers for Recommendation Systems (2311.05884).

A token is a field of a record (user, item, hour …), and every field has weights of its own. A pre-norm block:

    R = X + [concat_h softmax(Q_h K_h' / sqrt(E)) V_h]_t O_t,   Q, K, V = projections of N = LayerNorm(X)
    Y = R + W2_t GELU(W1_t LayerNorm(R)_t)                                    O_t, W1_t, W2_t: of field t

    heterogeneous:  q_t = N_t Q_t           one matrix for each field, likewise k and v
    hiformer:       [q_1 … q_T] = vec(N) Q  a composite of all fields: Q is T D x T D, or of rank r, Q = L R'

Shapes: B batch, T fields, D width, H heads, E = D / H head width, m expansion of the FFN, r rank, Q queries.

Cost, multiply-adds for each record: heterogeneous ``4 T D^2 + 2 T^2 D + 2 m T D^2``, as a plain Transformer layer;
hiformer has ``3 T^2 D^2``, or at rank r ``6 T D r``, in place of ``3 T D^2``. The layers keep no state: they do not
stream.

Pruning: only the last fields, the task tokens, feed the head. So the last layer of a network needs only ``queries`` of
them: keys and values of all fields, but queries, output projection and FFN of the last ones, with no parameters for the
others. ``forward`` keeps the shape (B, T, D): its last ``queries`` rows are those of the unpruned layer, the rows
before are X, as of a residual block that adds nothing. :meth:`last` gives (B, queries, D) alone.
``layer.prune(queries)`` makes the pruned layer from a trained one, ``compress(layer, rank)`` the low-rank one.

``mask.padding`` marks missing fields: they add nothing to a composite, are not attended, and give 0.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.field_linear import FieldLinear
from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, heads_argument
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput, blank
from manyheads.core.mask import Mask
from manyheads.core.state import State

if TYPE_CHECKING:
    from jaxtyping import Float

_TITLE = "Hiformer: Heterogeneous Feature Interactions Learning with Transformers for Recommendation Systems"
_DEVIATIONS = (
    "a reconstruction from descriptions and an independent implementation, as the paper's body could not be read: "
    "only the parameter counts could be checked, against the closed formulas of such layers",
    "here pre-norm, with LayerNorms that the fields share; where the paper normalises is not known",
    "here queries prunes the last layer: the other rows are passed on unchanged, or left out by last; the paper "
    "computes the task tokens only",
    "missing fields, as padding, are ours",
)
_BLOCK = (
    r" R_t &= X_t + \Big[\mathrm{softmax}\Big(\tfrac{Q_h K_h^\top}{\sqrt E}\Big) V_h\Big]_{h = 1 \dots H,\; t} O_t \\"
    r" Y_t &= R_t + \mathrm{GELU}\big(\mathrm{LN}(R_t)\, W_{1,t}\big)\, W_{2,t} \end{aligned}"
)


def _body_flops(config: dict[str, Any]) -> float:
    """All but the projections to queries, keys and values."""
    dim, fields, queries = config["dim"], config["fields"], config["queries"]
    return 4.0 * queries * fields * dim + 2.0 * queries * dim * dim * (1 + 2 * config["expansion"])


def _heterogeneous_flops(config: dict[str, Any], grid: Grid) -> float:
    dim, outputs = config["dim"], config["queries"] + 2 * config["fields"]
    return 2.0 * outputs * dim * dim + _body_flops(config)


def _hiformer_flops(config: dict[str, Any], grid: Grid) -> float:
    dim, fields, rank = config["dim"], config["fields"], config["rank"]
    outputs = config["queries"] + 2 * fields
    if rank is None:
        return 2.0 * outputs * fields * dim * dim + _body_flops(config)
    return 2.0 * (3 * fields + outputs) * dim * rank + _body_flops(config)


class _FieldLayer(Layer):
    """The block of both layers; a subclass projects."""

    # modules with a part for each query
    query_parts: ClassVar[tuple[str, ...]] = ("output", "inner", "outer")

    fields: int = argument(least=1)
    """T; every input has as many tokens."""
    heads: int = heads_argument(most=4)
    """H; divides ``dim``. By default the largest power of two up to 4 that does."""
    expansion: int = argument(default=2, least=1)
    """m; the FFN has m D hidden features."""
    queries: int = argument(factory=lambda layer: layer.fields)
    """The number of last fields that are computed; all by default."""

    def setup(self) -> None:
        dim, queries, hidden = self.dim, self.queries, self.expansion * self.dim
        if not 1 <= queries <= self.fields:
            raise ArgumentError(f"{self.info.name}: queries: found {queries}, expected 1 to fields = {self.fields}")
        self.norm = nn.LayerNorm(dim)
        # the values pass here, for methods.mixing_matrix
        self.value = nn.Identity()
        self.output = FieldLinear(queries, dim, dim)
        self.inner_norm = nn.LayerNorm(dim)
        self.inner = FieldLinear(queries, dim, hidden)
        self.outer = FieldLinear(queries, hidden, dim)

    def project(
        self, x: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b q d"], Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
        """Queries, keys and values of the normed fields."""
        raise NotImplementedError(f"{type(self).__name__} does not implement project")

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        rows = self._rows(x, mask)
        return LayerOutput(rows if self.queries == self.fields else torch.cat([x[:, : -self.queries], rows], 1))

    def last(self, x: Float[Tensor, "b t d"], *, mask: Mask | None = None) -> Float[Tensor, "b q d"]:
        """The last ``queries`` rows of ``forward``, without a copy of the others."""
        x, _, mask = self._admitted(x, None, mask)
        if x.shape[0] == 0:
            return self._of_nothing(x, ()).y[:, -self.queries :]
        rows = self._rows(x, mask)
        return rows if mask.padding is None else blank(rows, mask.padding[:, -self.queries :])

    def prune(self, queries: int) -> Self:
        """A copy that computes only the last ``queries`` fields and has only their parameters.

        Raises :class:`ArgumentError` for 0 queries or more than this layer has.
        """
        if not 1 <= queries <= self.queries:
            raise ArgumentError(f"{self.info.name}: queries: found {queries}, expected 1 to {self.queries}")
        pruned = type(self)(**{**self.config, "queries": queries})
        own = pruned.state_dict()
        weights = copy.deepcopy(self.state_dict())
        for name, value in weights.items():
            if name.partition(".")[0] in self.query_parts:
                weights[name] = value[-own[name].shape[0] :]
        pruned.load_state_dict(weights, assign=True)
        return pruned.train(self.training)

    def _rows(self, x: Tensor, mask: Mask) -> Tensor:
        real = mask.padding
        normed = self.norm(x)
        if real is not None:
            normed = torch.where(real.unsqueeze(-1), normed, 0.0)
        q, k, v = self.project(normed)
        mixed = self._attend(q, k, self.value(v), real)
        # field-major from here on, as FieldLinear computes: elementwise functions take twice the time on its views
        rows = _swap(self.output(mixed)) + _swap(x[:, -self.queries :])
        hidden = functional.gelu(_swap(self.inner(_swap(self.inner_norm(rows)))))
        return _swap(rows + _swap(self.outer(_swap(hidden))))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> Tensor:
        """Attention by plain products: for a few tens of tokens they take two thirds of the fused kernel's time."""
        batch, width = q.shape[0], self.dim // self.heads

        def split(part: Tensor) -> Tensor:
            return part.unflatten(-1, (self.heads, width)).transpose(1, 2).reshape(batch * self.heads, -1, width)

        scores = torch.baddbmm(q.new_zeros(()), split(q), split(k).mT, beta=0, alpha=width**-0.5)
        if real is not None:
            # a finite floor: with minus infinity, a record of missing fields only has a gradient of NaN
            floor = torch.finfo(scores.dtype).min
            missing = ~real[:, None, None, :]
            scores = scores.unflatten(0, (batch, self.heads)).masked_fill(missing, floor).flatten(0, 1)
        weights = _softmax_of_columns(scores) if self.training else scores.softmax(-1)
        mixed = weights @ split(v)
        return _swap(mixed.unflatten(0, (batch, self.heads)).permute(2, 0, 1, 3).flatten(2))


def _softmax_of_columns(scores: Tensor) -> Tensor:
    """Softmax over the last axis, for training.

    torch's kernel is slow for rows of a few tens: as columns they take a fifth of its time, forward and backward. An
    exported layer keeps the plain operator.
    """
    return scores.flatten(0, 1).t().contiguous().softmax(0).t().unflatten(0, scores.shape[:2])


def _swap(x: Tensor) -> Tensor:
    """``(B, T, …)`` as ``(T, B, …)`` or back, without a copy."""
    return x.transpose(0, 1)


class Heterogeneous(_FieldLayer):
    """Heterogeneous attention with an FFN for each field; see the module for equation and shapes.

    Raises:
        ArgumentError: no fields, heads that do not divide, an expansion below 1, queries out of 1 … fields.
    """

    info = LayerInfo(
        name="heterogeneous",
        title=_TITLE,
        arxiv="2311.05884",
        formula=r"\begin{aligned} N &= \mathrm{LN}(X), \quad q_t = N_t Q_t, \quad k_t = N_t K_t, \quad v_t = N_t V_t \\"
        + _BLOCK,
        good_for="Records of a few dozen fields of different kinds: each field has projections of its own.",
        not_for="Sequences, as the number of tokens is fixed and each position has weights of its own: take softmax.",
        cost="time N D^2 + N^2 D, memory N D, parameters N D^2",
        flops=_heterogeneous_flops,
        at_length=lambda n: {"plain": {"fields": n}} if n <= 512 else {},
        masks=("padding",),
        positional=True,
        lengths="fixed: as many tokens as fields, others raise",
        sizes=("fields",),
        linear_in_value=True,
        deviations=_DEVIATIONS,
    )
    query_parts = (*_FieldLayer.query_parts, "query")

    def setup(self) -> None:
        super().setup()
        self.query = FieldLinear(self.queries, self.dim, self.dim)
        self.key_value = FieldLinear(self.fields, self.dim, 2 * self.dim)

    def project(
        self, x: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b q d"], Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
        k, v = self.key_value(x).chunk(2, -1)
        return self.query(x[:, -self.queries :]), k, v


class Hiformer(_FieldLayer):
    """Attention over composite projections, with an FFN for each field; see the module for equation and shapes.

    Raises:
        ArgumentError: no fields, a rank out of 1 … T D, heads that do not divide, an expansion below 1, queries out of
            1 … fields.
    """

    info = LayerInfo(
        name="hiformer",
        title=_TITLE,
        arxiv="2311.05884",
        formula=(
            r"\begin{aligned} N &= \mathrm{LN}(X), \quad [q_1 \dots q_T] = \mathrm{vec}(N)\, Q, \quad"
            r" Q \in \mathbb{R}^{TD \times TD} \text{ or } Q = L R^\top \text{ of rank } r, \quad"
            r" \text{likewise } k, v \\"
        )
        + _BLOCK,
        good_for="Ranking with crossed features: every pair of fields has an interaction of its own.",
        not_for="Many fields or few rows, as its full projections have 3 N^2 D^2 weights: take heterogeneous, or give "
        "a rank.",
        cost="time and parameters N^2 D^2, with rank r N D r + N D^2; memory N D",
        flops=_hiformer_flops,
        at_length=lambda n: {"plain": {"fields": n, "rank": min(64, max(2, n // 4))}} if n <= 512 else {},
        masks=("padding",),
        positional=True,
        lengths="fixed: as many tokens as fields, others raise",
        sizes=("fields",),
        linear_in_value=True,
        deviations=(
            *_DEVIATIONS,
            "here one pair of low-rank factors serves all heads; the paper has one for each head",
        ),
    )
    query_parts = (*_FieldLayer.query_parts, "query")

    rank: int | None = None
    """r of the projections to queries, keys and values; None for full matrices. Low rank is cheaper below
    ``T D (Q + 2 T) / (Q + 5 T)``."""

    def setup(self) -> None:
        wide, rank = self.fields * self.dim, self.rank
        if rank is not None and not 1 <= rank <= wide:
            raise ArgumentError(f"hiformer: rank: found {rank}, expected 1 to fields * dim = {wide}, or None")
        super().setup()
        source = wide if rank is None else rank
        if rank is not None:
            self.down = nn.Linear(wide, 3 * rank, bias=False)
        self.query = nn.Linear(source, self.queries * self.dim)
        self.key = nn.Linear(source, wide)
        self.values = nn.Linear(source, wide)

    def project(
        self, x: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b q d"], Float[Tensor, "b t d"], Float[Tensor, "b t d"]]:
        flat = x.flatten(1)
        sources = (flat, flat, flat) if self.rank is None else self.down(flat).chunk(3, -1)
        q, k, v = (
            module(source).unflatten(-1, (-1, self.dim))
            for module, source in zip((self.query, self.key, self.values), sources, strict=True)
        )
        return q, k, v

    def matrices(self) -> dict[str, Float[Tensor, "outputs td"]]:
        """The composite projections "query", "key" and "values" as full matrices, ``(outputs, T D)``."""
        downs = [None] * 3 if self.rank is None else self.down.weight.chunk(3)
        modules = {"query": self.query, "key": self.key, "values": self.values}
        return {
            name: module.weight if down is None else module.weight @ down
            for (name, module), down in zip(modules.items(), downs, strict=True)
        }


class Compressed(NamedTuple):
    """A low-rank layer, and the spectral norm of the approximation error of each projection."""

    layer: Hiformer
    error: dict[str, float]


def compress(layer: Hiformer, rank: int) -> Compressed:
    """Truncate the composite projections to ``rank`` by singular values, the best approximation of that rank.

    ``error[name]`` is ``||W - W_r||_2 = sigma_{r + 1}`` of "query", "key" and "values", 0 from full rank on. All other
    weights are copied. Raises :class:`ArgumentError` for a layer of another kind or a rank out of 1 … T D.
    """
    if not isinstance(layer, Hiformer):
        raise ArgumentError(f"compress: layer: found {type(layer).__name__}, expected Hiformer")
    small = type(layer)(**{**layer.config, "rank": rank})
    weights = copy.deepcopy(layer.state_dict())
    error, downs = {}, []
    for name, matrix in layer.matrices().items():
        wide = matrix.detach().to(torch.float64)
        u, sigma, vh = torch.linalg.svd(wide, full_matrices=False)
        error[name] = float(sigma[rank]) if rank < len(sigma) else 0.0
        root = sigma[:rank].sqrt()
        # a pruned query may have fewer singular values than the rank: pad with 0
        spare = rank - len(root)
        up = functional.pad(u[:, :rank] * root, (0, spare))
        downs.append(functional.pad(root.unsqueeze(1) * vh[:rank], (0, 0, 0, spare)).to(matrix.dtype))
        weights[f"{name}.weight"] = up.to(matrix.dtype)
    weights["down.weight"] = torch.cat(downs)
    small.load_state_dict(weights, assign=True)
    return Compressed(small.train(layer.training), error)
