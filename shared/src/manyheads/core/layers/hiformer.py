"""Hiformer: Heterogeneous Feature Interactions Learning with Transformers for Recommendation Systems (2311.05884).

A token is a field of a record (user, item, hour …) and every field has weights of its own. A pre-norm block:

    R = X + [concat_h softmax(Q_h K_h' / sqrt(E)) V_h]_t O_t,   Q, K, V = projections of N = LayerNorm(X)
    Y = R + W2_t GELU(W1_t LayerNorm(R)_t)                                    O_t, W1_t, W2_t: of field t

    heterogeneous:  q_t = N_t Q_t           each field by its own matrix, likewise k and v
    hiformer:       [q_1 … q_T] = vec(N) Q  a composite of all fields: Q is T D x T D, or of rank r, Q = L R'

Shapes: B batch, T fields, D width, H heads, E = D / H head width, m expansion of the FFN, r rank, Q queries.

Cost, multiply-adds a record: ``4 T D^2 + 2 T^2 D + 2 m T D^2`` (heterogeneous: that of a plain Transformer layer),
with ``3 T^2 D^2`` (hiformer) or ``6 T D r`` (rank r) in place of ``3 T D^2``.

Only the last fields, the task tokens, feed the head, so that the last layer needs ``queries`` of them: keys and values
of all fields, but queries, output projection and FFN of the last ones only, with no parameters for the others.
``forward`` keeps the shape (B, T, D): the last ``queries`` rows are those of the unpruned layer, the rows before are X
itself, as of a residual block that adds nothing; :meth:`last` gives (B, queries, D) alone. ``layer.prune(queries)``
makes the pruned layer of a trained one, ``compress(layer, rank)`` the low-rank one.

``mask.padding`` marks fields that are missing: they add nothing to a composite, are not attended, and give 0.

Differs from the paper: its body could not be read; the equations are a reconstruction from descriptions and an
independent implementation, of which parameter counts are all that could be checked. Where normalisation stands is not
known: pre-norm here, LayerNorms shared by the fields. One pair of low-rank factors serves all heads; the paper has one
a head. Missing fields are ours.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.blocks.field_linear import FieldLinear
from manyheads.core.errors import ArgumentError
from manyheads.core.layer import Grid, Layer, LayerInfo, LayerOutput, blank, head_count
from manyheads.core.mask import Mask
from manyheads.core.state import State

_TITLE = "Hiformer: Heterogeneous Feature Interactions Learning with Transformers for Recommendation Systems"
_DEVIATIONS = (
    "reconstructed: the paper's body could not be read; checked by parameter counts",
    "pre-norm; the paper's choice is not known",
    "missing fields as padding",
)


def _body_flops(config: dict[str, Any]) -> float:
    """All but the projections to queries, keys and values."""
    dim, fields = config["dim"], config["fields"]
    queries = config.get("queries") or fields
    return 4.0 * queries * fields * dim + 2.0 * queries * dim * dim * (1 + 2 * config.get("expansion", 2))


def _heterogeneous_flops(config: dict[str, Any], grid: Grid) -> float:
    dim, fields = config["dim"], config["fields"]
    return 2.0 * ((config.get("queries") or fields) + 2 * fields) * dim * dim + _body_flops(config)


def _hiformer_flops(config: dict[str, Any], grid: Grid) -> float:
    dim, fields, rank = config["dim"], config["fields"], config.get("rank")
    outputs = (config.get("queries") or fields) + 2 * fields
    if rank is None:
        return 2.0 * outputs * fields * dim * dim + _body_flops(config)
    return 2.0 * (3 * fields + outputs) * dim * rank + _body_flops(config)


class _FieldLayer(Layer):
    """The block of both layers; a subclass projects."""

    query_parts: tuple[str, ...] = ("output", "inner", "outer")  # modules that hold a part for each query

    def __init__(
        self, dim: int, *, fields: int, heads: int | None, expansion: int, queries: int | None, **config: Any
    ) -> None:
        heads = head_count(self.info.name, dim, heads, most=4)
        super().__init__(dim, fields=fields, heads=heads, expansion=expansion, queries=queries, **config)
        name = self.info.name
        if fields < 1:
            raise ArgumentError(f"{name}: fields: found {fields}, expected 1 or more")
        if expansion < 1:
            raise ArgumentError(f"{name}: expansion: found {expansion}, expected 1 or more")
        if queries is not None and not 1 <= queries <= fields:
            raise ArgumentError(f"{name}: queries: found {queries}, expected 1 to fields = {fields}")
        self.fields, self.heads = fields, heads
        self.queries = fields if queries is None else queries
        self.norm = nn.LayerNorm(dim)
        self.value = nn.Identity()  # where the values pass, for methods.mixing_matrix
        self.output = FieldLinear(self.queries, dim, dim)
        self.inner_norm = nn.LayerNorm(dim)
        self.inner = FieldLinear(self.queries, dim, expansion * dim)
        self.outer = FieldLinear(self.queries, expansion * dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, T, D)`` -> queries ``(B, Q, D)``, keys and values ``(B, T, D)``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement project")

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        rows = self._rows(x, mask)
        return LayerOutput(rows if self.queries == self.fields else torch.cat([x[:, : -self.queries], rows], 1))

    def last(self, x: Tensor, *, mask: Mask | None = None) -> Tensor:
        """The last ``queries`` rows of ``forward``, ``(B, T, D)`` -> ``(B, queries, D)``, without the others' copy."""
        x, _, mask = self._admitted(x, None, mask)
        if x.shape[0] == 0:
            return self._of_nothing(x, ()).y[:, -self.queries :]
        rows = self._rows(x, mask)
        return rows if mask.padding is None else blank(rows, mask.padding[:, -self.queries :])

    def prune(self, queries: int) -> Self:
        """A copy that computes the last ``queries`` fields only, with their parameters only.

        Raises :class:`ArgumentError` for more queries than this layer has, or none.
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
        # from here on field-major, as FieldLinear computes: elementwise functions are twice as slow on the views
        rows = _swap(self.output(mixed)) + _swap(x[:, -self.queries :])
        hidden = functional.gelu(_swap(self.inner(_swap(self.inner_norm(rows)))))
        return _swap(rows + _swap(self.outer(_swap(hidden))))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None) -> Tensor:
        """Plain products: for some tens of tokens they take two thirds of the fused kernel's time."""
        batch, width = q.shape[0], self.dim // self.heads

        def split(part: Tensor) -> Tensor:
            return part.unflatten(-1, (self.heads, width)).transpose(1, 2).reshape(batch * self.heads, -1, width)

        scores = torch.baddbmm(q.new_zeros(()), split(q), split(k).mT, beta=0, alpha=width**-0.5)
        if real is not None:
            # a finite floor: a record of missing fields only has a gradient of 0 and not NaN
            floor = torch.finfo(scores.dtype).min
            missing = ~real[:, None, None, :]
            scores = scores.unflatten(0, (batch, self.heads)).masked_fill(missing, floor).flatten(0, 1)
        weights = _softmax_of_columns(scores) if self.training else scores.softmax(-1)
        mixed = weights @ split(v)
        return _swap(mixed.unflatten(0, (batch, self.heads)).permute(2, 0, 1, 3).flatten(2))


def _softmax_of_columns(scores: Tensor) -> Tensor:
    """Softmax over the last axis, for training: torch's kernel is slow for rows of some tens, and turned into columns
    they take a fifth of its time, forward and backward. What is exported keeps the plain operator."""
    return scores.flatten(0, 1).t().contiguous().softmax(0).t().unflatten(0, scores.shape[:2])


def _swap(x: Tensor) -> Tensor:
    """``(B, T, …)`` as ``(T, B, …)`` or back, without a copy."""
    return x.transpose(0, 1)


class Heterogeneous(_FieldLayer):
    """Heterogeneous attention with a FFN of each field; see the module for equation and shapes.

    Args:
        dim: width D.
        fields: T; every input has as many tokens.
        heads: H; divides ``dim``. None for the largest power of two up to 4 that does.
        expansion: m of the FFN.
        queries: the last fields that are computed; all by default.

    Raises:
        ArgumentError: no fields, heads that do not divide, an expansion below 1, queries out of 1 … fields.
    """

    info = LayerInfo(
        name="heterogeneous",
        title=_TITLE,
        arxiv="2311.05884",
        good_for="Records of some dozen fields of different kinds: each field has projections of its own.",
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

    def __init__(
        self, dim: int, *, fields: int, heads: int | None = None, expansion: int = 2, queries: int | None = None
    ) -> None:
        super().__init__(dim, fields=fields, heads=heads, expansion=expansion, queries=queries)
        self.query = FieldLinear(self.queries, dim, dim)
        self.key_value = FieldLinear(fields, dim, 2 * dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.key_value(x).chunk(2, -1)
        return self.query(x[:, -self.queries :]), k, v


class Hiformer(_FieldLayer):
    """Attention over composite projections, with a FFN of each field; see the module for equation and shapes.

    Args:
        dim: width D.
        fields: T; every input has as many tokens.
        rank: r of the projections to queries, keys and values; None for full matrices. Low rank is cheaper below
            ``T D (Q + 2 T) / (Q + 5 T)``.
        heads: H; divides ``dim``. None for the largest power of two up to 4 that does.
        expansion: m of the FFN.
        queries: the last fields that are computed; all by default.

    Raises:
        ArgumentError: no fields, a rank out of 1 … T D, heads that do not divide, an expansion below 1, queries out of
            1 … fields.
    """

    info = LayerInfo(
        name="hiformer",
        title=_TITLE,
        arxiv="2311.05884",
        good_for="Ranking with crossed features: every pair of fields has an interaction of its own.",
        cost="time and parameters N^2 D^2, with rank r N D r + N D^2; memory N D",
        flops=_hiformer_flops,
        at_length=lambda n: {"plain": {"fields": n, "rank": 64}} if n <= 512 else {},
        masks=("padding",),
        positional=True,
        lengths="fixed: as many tokens as fields, others raise",
        sizes=("fields",),
        linear_in_value=True,
        deviations=(*_DEVIATIONS, "one pair of low-rank factors serves all heads"),
    )
    query_parts = (*_FieldLayer.query_parts, "query")

    def __init__(
        self,
        dim: int,
        *,
        fields: int,
        rank: int | None = None,
        heads: int | None = None,
        expansion: int = 2,
        queries: int | None = None,
    ) -> None:
        super().__init__(dim, fields=fields, heads=heads, expansion=expansion, queries=queries, rank=rank)
        wide = fields * dim
        if rank is not None and not 1 <= rank <= wide:
            raise ArgumentError(f"hiformer: rank: found {rank}, expected 1 to fields * dim = {wide}, or None")
        self.rank = rank
        source = wide if rank is None else rank
        if rank is not None:
            self.down = nn.Linear(wide, 3 * rank, bias=False)
        self.query = nn.Linear(source, self.queries * dim)
        self.key = nn.Linear(source, wide)
        self.values = nn.Linear(source, wide)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = x.flatten(1)
        sources = (flat, flat, flat) if self.rank is None else self.down(flat).chunk(3, -1)
        q, k, v = (
            module(source).unflatten(-1, (-1, self.dim))
            for module, source in zip((self.query, self.key, self.values), sources, strict=True)
        )
        return q, k, v

    def matrices(self) -> dict[str, Tensor]:
        """The composite projections of "query", "key" and "values" as full matrices, ``(outputs, T D)``."""
        downs = [None] * 3 if self.rank is None else self.down.weight.chunk(3)
        modules = {"query": self.query, "key": self.key, "values": self.values}
        return {
            name: module.weight if down is None else module.weight @ down
            for (name, module), down in zip(modules.items(), downs, strict=True)
        }


class Compressed(NamedTuple):
    """A low-rank layer, and for each projection the spectral norm of what was cut off."""

    layer: Hiformer
    error: dict[str, float]


def compress(layer: Hiformer, rank: int) -> Compressed:
    """The layer with its composite projections cut to ``rank`` by singular values, the best such approximation.

    ``error[name]`` is ``||W - W_r||_2 = sigma_{r + 1}`` of "query", "key" and "values", 0 from full rank on; all else
    is copied. Raises :class:`ArgumentError` for a layer of another kind or a rank out of 1 … T D.
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
        spare = rank - len(root)  # a pruned query has fewer singular values than the rank may ask for
        up = functional.pad(u[:, :rank] * root, (0, spare))
        downs.append(functional.pad(root.unsqueeze(1) * vh[:rank], (0, 0, 0, spare)).to(matrix.dtype))
        weights[f"{name}.weight"] = up.to(matrix.dtype)
    weights["down.weight"] = torch.cat(downs)
    small.load_state_dict(weights, assign=True)
    return Compressed(small.train(layer.training), error)
