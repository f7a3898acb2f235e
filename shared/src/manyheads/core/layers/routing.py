"""Efficient Content-Based Sparse Attention with Routing Transformers (2003.05997).

Local heads see their block and the one before (without ``causal`` the one after too). Routing heads see tokens with
similar content at any distance:

    q^ = LN(q), k^ = LN(k);   S_c = the w tokens with the largest q^ . mu_c (keys likewise), in order of position
    o_i = mean over the clusters c that i is in of   softmax_j(q^_i . k^_j / sqrt(E)) v_j,   j in S_c (and j <= i)

and 0 if a token is in no cluster. The centroids mu are buffers, not parameters: they follow the tokens by moving
averages (``functional.spherical_kmeans``). **Forward never changes them.** In training mode ``aux`` holds
``commitment``, the loss that draws tokens to their centroids (the paper's weight is 1e-4), ``cluster_counts`` and
``cluster_sums``, and the loop says when they are used:

    y, state, aux = layer(x)
    (loss(y) + 1e-4 * aux["commitment"]).backward()
    optimizer.step()
    layer.update_centroids(aux)           # or, with accumulated gradients, update_centroids(aux_1, aux_2, …)

so that accumulated micro-batches make one step, equal to that of the whole batch, and a forward pass that is run again
(activation checkpointing) makes none.

**Causality.** ``assignment="top-w"`` is the paper's balanced membership. With ``causal`` it masks later tokens in each
cluster, but the membership of a token depends on a comparison with *all* tokens, later ones too. So it is causal for
given memberships only: declared weak. ``assignment="latest-w"`` is ours and strictly causal: a token belongs
to its nearest centroid and attends to the latest w tokens of its cluster. It streams, with w - 1 tokens a cluster.

Shapes: B batch, T tokens, D width, H heads, E = D / H head width, C clusters, w = ``window``, b = ``block``, S = w - 1.

Cost: time ``O(T C D + T w D + T b D + T D^2)`` for C w about T, ``O(T^1.5 D)`` at C = w = b = sqrt(T); memory
``O(T D)``, and ``O(T C)`` affinities that are not kept for the backward pass. A streamed token copies the state,
``O(C w D)``.

Differs from the paper: see ``info.deviations``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.errors import ArgumentError
from manyheads.core.fields import argument, attribute, heads_argument
from manyheads.core.functional import (
    affinity,
    balanced_members,
    block_local_attention,
    block_local_stream,
    cluster_statistics,
    clustered_attention,
    commitment_loss,
    ema_update,
    latest_in_cluster,
    nearest,
    pack,
    pack_order,
    segment_ids,
    to_sphere,
    unpack,
)
from manyheads.core.layer import Causality, Grid, Layer, LayerInfo, LayerOutput, StateKind
from manyheads.core.mask import Mask
from manyheads.core.state import State


class RoutingState(NamedTuple):
    """The latest tokens, at the right end of their slots: of all for the local heads, a cluster for the others."""

    local_keys: Tensor  # (B, local heads, 2 b - 1, E)
    local_values: Tensor
    position: Tensor  # (B,) int64: real tokens since the start
    keys: Tensor  # (B, routing heads, C, S, E)
    values: Tensor
    used: Tensor  # (B, routing heads, C) int64: slots in use


def _flops(config: dict[str, Any], grid: Grid) -> float:
    (tokens,) = grid
    dim, heads, local = config["dim"], config["heads"], config["local_heads"]
    width, routing = dim // heads, heads - local
    part = 0.5 if config["causal"] else 1.0
    size = min(config["window"], tokens)
    shared = config["shared_qk"]
    projections = 6.0 * tokens * dim * dim + 2.0 * tokens * dim * width * (local if shared else heads)
    routed = tokens if config["assignment"] == "latest-w" else config["clusters"] * size * part
    affinities = 2.0 * tokens * config["clusters"] * width * (1 if shared else 2)
    neighbours = min(1.5 * config["block"] if config["causal"] else 3.0 * config["block"], tokens)
    return (
        projections + routing * (affinities + 4.0 * routed * size * width) + local * 4.0 * tokens * neighbours * width
    )


def _at_length(tokens: int) -> dict[str, dict[str, Any]]:
    root = tokens**0.5
    side = max(2, round(root)) if tokens < 256 else 16 * round(root / 16)  # a multiple of the vector units' width
    plain = {"heads": 2, "local_heads": 1, "clusters": side, "window": side, "block": side}
    causal = {**plain, "causal": True, "shared_qk": True}
    return {"plain": plain, "causal": causal, "latest-w": {**causal, "assignment": "latest-w"}}


class Routing(Layer):
    """Local and routing heads; see the module for equations, the update of the centroids, and causality.

    Raises:
        ArgumentError: heads that do not divide or are too narrow, counts below 1, no routing head, an unknown
            assignment, ``latest-w`` without what it needs.
    """

    info = LayerInfo(
        name="routing",
        title="Efficient Content-Based Sparse Attention with Routing Transformers",
        arxiv="2003.05997",
        formula=(
            r"\begin{aligned} \hat q &= \mathrm{LN}(q), \quad \hat k = \mathrm{LN}(k), \qquad"
            r" S_c = \text{the } w \text{ tokens with the largest } \hat q \cdot \mu_c \\"
            r" o_i &= \operatorname{mean}_{c : i \in S_c} \sum_{j \in S_c}"
            r" \operatorname{softmax}_j\!\left(\frac{\hat q_i \cdot \hat k_j}{\sqrt{E}}\right) v_j \end{aligned}"
        ),
        good_for="Long sequences in which tokens of like content are far apart, such as books or music.",
        not_for="Sequences below 512 tokens: softmax is exact and faster there.",
        cost="time N (C + w + b) D + N D^2, N^1.5 D at C = w = b = sqrt(N); memory N D; a streamed token C w D",
        flops=_flops,
        at_length=_at_length,
        causal=("no", "weak", "strict"),
        state=("none", "window"),
        streams_with=({"causal": True, "shared_qk": True, "assignment": "latest-w"},),
        masks=("padding", "reset"),
        positional=True,
        full_context=False,
        lengths="any: the last local block is padded inside, a cluster takes min(window, N) tokens",
        linear_in_value=True,
        discontinuous=True,
        deviations=(
            "here top-w chooses the members of a cluster among all tokens, as the paper does, and with a causal mask "
            "is declared weakly causal: membership of a past token depends on later ones, so that decoding step by "
            "step is not the trained function (a test shows the leak)",
            'assignment="latest-w", strictly causal, is ours: the nearest centroid and the latest w tokens of its '
            "cluster; it streams",
            "here the causal mask goes by position; without shared_qk the authors' code masks by rank in the cluster, "
            "so that the i-th query sees the first i keys: queries see later keys if the two lists of members differ; "
            "with shared_qk the masks are equal",
            "here a query that sees no key of a cluster does not count that cluster (causal, without shared_qk); in "
            "the authors' code it gets the mean of the masked values",
            "here means over clusters are exact; the authors' code divides by the count plus 0.01: its outputs are "
            "1 % too small",
            "here logits are scaled by 1 / sqrt(E); the authors' code leaves that out on the routing path: attention "
            "is flatter here",
            "here no relative positions, attention dropout, strided or hashed clusters, and no codebook loss in place "
            "of the moving averages; all are options of the authors' code",
            "here centroids are updated by a call with the statistics of one or more outputs, never by forward; in "
            "the authors' code the update is a side effect of each training step: accumulated micro-batches make one "
            "step here",
            "here counts start at 1, with the initial centroids as their sums; in the authors' code they start at 0: "
            "the first update is a small step here",
            "here each head has moving averages of its own counts; those of the authors' code mix the heads: "
            "centroids of heads that are used unequally are scaled otherwise",
            "here one update for a step, of queries and keys together; without shared_qk the authors' code makes two, "
            "one for the queries and one for the keys: at the same decay its centroids move nearly twice as far",
            "here the commitment loss is added once; with shared_qk the authors' code adds it twice, as for queries "
            "and for keys: its weight of 1e-4 is 2e-4 here",
            "here local heads without causal see the block before and the block after; the paper's models are causal",
        ),
    )

    heads: int = heads_argument(least_width=2)
    """H; divides ``dim`` and leaves heads of width 2 or more. By default the largest power of two up to 8 that does."""
    local_heads: int = argument(factory=lambda layer: layer.heads // 2)
    """How many of the heads are local; at least one routes. Half of them by default."""
    clusters: int = argument(default=16, least=1)
    """C centroids of each routing head."""
    window: int = argument(default=64, least=1)
    """w tokens of each cluster; about T / C for ``top-w``."""
    block: int = argument(default=64, least=1)
    """b tokens of each block of the local heads."""
    assignment: Literal["top-w", "latest-w"] = "top-w"
    """The members of a cluster; ``latest-w`` needs ``causal`` and ``shared_qk``."""
    causal: bool = False
    """Each token sees itself and earlier tokens only."""
    shared_qk: bool = False
    """The routing heads use their queries as keys, as the paper's decoder does."""

    centroids: Tensor = attribute()
    counts: Tensor = attribute()
    sums: Tensor = attribute()

    def setup(self) -> None:
        if not 0 <= self.local_heads < self.heads:
            raise ArgumentError(
                f"routing: local_heads: found {self.local_heads}, expected 0 to {self.heads - 1} of {self.heads} heads"
            )
        if self.assignment == "latest-w" and not (self.causal and self.shared_qk):
            raise ArgumentError(
                f"routing: assignment: found 'latest-w' with causal={self.causal} and shared_qk={self.shared_qk}, "
                "expected both to be True"
            )
        dim, self.width, self.routing_heads = self.dim, self.dim // self.heads, self.heads - self.local_heads
        with_key = self.local_heads if self.shared_qk else self.heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, with_key * self.width, bias=False) if with_key else None
        self.value = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        start = to_sphere(torch.randn(self.routing_heads, self.clusters, self.width))
        self.register_buffer("centroids", start)
        self.register_buffer("counts", torch.ones(self.routing_heads, self.clusters))
        self.register_buffer("sums", start.clone())

    @property
    def masks(self) -> tuple[str, ...]:
        return ("padding",) if self.assignment == "top-w" else ("padding", "reset")

    @property
    def causality(self) -> Causality:
        return "no" if not self.causal else "weak" if self.assignment == "top-w" else "strict"

    @property
    def state_kind(self) -> StateKind:
        return "none" if self.assignment == "top-w" else "window"

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        if self.state_kind == "none":
            return ()
        local = torch.zeros(batch, self.local_heads, 2 * self.block - 1, self.width, device=device, dtype=dtype)
        room = (batch, self.routing_heads, self.clusters)
        routed = torch.zeros(*room, self.window - 1, self.width, device=device, dtype=dtype)
        position = torch.zeros(batch, dtype=torch.int64, device=device)
        used = torch.zeros(room, dtype=torch.int64, device=device)
        return RoutingState(local, local.clone(), position, routed, routed.clone(), used)

    def update_centroids(self, *auxes: Mapping[str, Tensor], decay: float = 0.999) -> None:
        """One step of the moving averages with the statistics of one or more training outputs' ``aux``.

        With several processes, sum ``cluster_counts`` and ``cluster_sums`` over them first. Keep the layer in float32
        while it is trained (autocast does): bfloat16 buffers round steps of ``1 - decay`` away. Raises
        :class:`ArgumentError` in eval mode, for the aux of an eval output, and for a decay outside [0, 1).
        """
        if not self.training:
            raise ArgumentError("routing: update_centroids: found a layer in eval mode, expected training mode")
        if not 0 <= decay < 1:
            raise ArgumentError(f"routing: decay: found {decay}, expected 0 <= decay < 1")
        if not auxes or any("cluster_counts" not in aux for aux in auxes):
            raise ArgumentError("routing: update_centroids: found no statistics, expected the aux of training outputs")
        with torch.no_grad():
            counts, sums = (
                torch.stack([aux[name] for aux in auxes]).sum(0).to(self.sums.dtype)
                for name in ("cluster_counts", "cluster_sums")
            )
            new = ema_update(self.counts, self.sums, counts, sums, decay=decay)
            for buffer, value in zip((self.centroids, self.counts, self.sums), new, strict=True):
                buffer.copy_(value)

    def mix(self, x: Tensor, state: State, context: Tensor | None, mask: Mask) -> LayerOutput:
        local_q, q = self._split(self.query(x))
        local_v, v = self._split(self.value(x))
        local_k, k = (local_q, q) if self.key is None else self._split(self.key(x))
        q = to_sphere(q)
        k = q if self.shared_qk else to_sphere(k)
        segment = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        if mask.reset is not None:
            segment = segment_ids(mask.reset)
        last, order, real = segment[:, -1:], None, mask.padding
        if real is not None:
            order, real = pack_order(real)
            local_q, local_k, local_v, q, k, v = (
                pack(part.transpose(1, 2), order).transpose(1, 2) for part in (local_q, local_k, local_v, q, k, v)
            )
            segment = pack(segment, order)
        near = [affinity(part, self.centroids) for part in ((q,) if self.shared_qk else (q, k))]
        own = [nearest(part) for part in near] if self.training or self.assignment == "latest-w" else []
        if self.assignment == "top-w":
            members, counted = zip(*(balanced_members(part, self.window, real) for part in near), strict=True)
            others = None if self.shared_qk else members[1]
            parts = [clustered_attention(q, k, v, members[0], others, causal=self.causal, real=counted[-1])]
            if self.local_heads:
                local = block_local_attention(
                    local_q, local_k, local_v, block=self.block, causal=self.causal, real=real
                )
                parts.insert(0, local)
        else:
            # A fresh state costs nothing where that can be known; a compiled graph cannot branch on it.
            fresh = not torch.compiler.is_compiling() and not bool(state.position.any())
            flags = {"real": torch.ones_like(segment, dtype=torch.bool) if real is None else real}
            flags |= {"segment": segment, "last": last}
            aligned = fresh and mask.reset is None
            local, local_state = block_local_stream(local_q, local_k, local_v, state[:3], **flags, aligned=aligned)
            routed, routed_state = latest_in_cluster(q, v, own[0], state[3:], **flags, fresh=fresh)
            parts, state = [local, routed], RoutingState(*local_state, *routed_state)
        mixed = torch.cat(parts, 1).transpose(1, 2).flatten(2)
        if order is not None and real is not None:
            mixed = unpack(mixed, order, real)
        aux = self._statistics((q, k), own, real) if self.training else {}
        return LayerOutput(self.output(mixed), state, aux)

    def aux_of_nothing(self, x: Tensor) -> dict[str, Tensor]:
        if not self.training:
            return {}
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        return {"commitment": x.sum(), "cluster_counts": counts, "cluster_sums": sums}

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The local and the routing heads, ``(B, heads, T, E)`` each."""
        local = self.local_heads * self.width
        parts = x.split([local, x.shape[-1] - local], -1)
        first, second = (part.unflatten(-1, (part.shape[-1] // self.width, self.width)) for part in parts)
        return first.transpose(1, 2), second.transpose(1, 2)

    def _statistics(self, vectors: tuple[Tensor, Tensor], own: list[Tensor], real: Tensor | None) -> dict[str, Tensor]:
        """Return the statistics of the queries, and of the keys if they are not the queries."""
        pairs = list(zip(vectors, own, strict=False))
        losses = [commitment_loss(x, self.centroids, assigned, real) for x, assigned in pairs]
        counts, sums = zip(
            *(cluster_statistics(x, assigned, self.clusters, real) for x, assigned in pairs), strict=True
        )
        return {
            "commitment": torch.stack(losses).sum(),
            "cluster_counts": torch.stack(counts).sum(0),
            "cluster_sums": torch.stack(sums).sum(0),
        }
