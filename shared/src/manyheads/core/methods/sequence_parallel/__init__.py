"""Sequence-parallel attention over P processes: ring, all-gather, Ulysses (2302.06218 and later work).

Each rank holds t = ceil(T / P) tokens of ``q (B, H, t, E)``, ``k (B, K, t, E)`` and ``v (B, K, t, F)``, K dividing H,
and gets the attention of its queries over all T keys, ``(B, H, t, F)``. Axes: b batch, h query heads, k heads of keys
and values, t tokens of a rank, e key width, f value width.

A rank sends these bytes for one batch row, with b bytes for a number and a for an accumulator (float32 at least):

    ring         forward 2 t K E b (P - 1); backward 2 t K E (b + a) (P - 1): k and v pass around again, followed by
                 their gradients, which end at their owner; memory O(t)
    all-gather   the same volumes in collectives; memory O(T) for keys and values
    ulysses      2 t (H + K) E b (P - 1) / P forward, and again backward; P divides H and K; memory O(T) for H / P heads

Blocks are merged by :mod:`manyheads.core.functional.merge`, in float32 at least; a block runs on the fused kernel if
there is one, so that no rank ever holds T × T scores. With ``causal`` in plain order the last rank does ``2 P - 1``
times the work of the first; ``balanced`` gives each rank a chunk of the head and one of the tail, and equal work.

In a model under ``torchrun --nproc-per-node 4 train.py`` each rank computes everything else on its own tokens::

    dist.init_process_group()
    attend = attention_over(kind="ring", causal=True, balanced=True)
    ids, targets = (shard(part, dim=1, balanced=True) for part in (ids, targets))     # (B, T) -> (B, t)
    positions = local_positions(tokens, balanced=True)                                 # for position embeddings
    x = embed(ids) + embed_position(positions.clamp(max=tokens - 1))
    q, k, v = (heads(part) for part in qkv(x).chunk(3, -1))                            # (B, H, t, E)
    x = x + output(merge_heads(attend(q, k, v, tokens=tokens)))
    loss = per_token_loss(head(x), targets)[:, positions < tokens].sum() / tokens      # this rank's share
    loss.backward()
    sum_gradients(model.parameters())

Differs from the paper: only the abstract of 2302.06218 was available on this point, and no code of it was found; these
are the three usual methods. Its ≈40× on four GPUs cannot come from splitting alone, which gives 4× at most: the other
factor is a blocked kernel against one that stores the T × T scores. docs/running.md measures the two separately.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from manyheads.core.errors import ArgumentError
from manyheads.core.functional.own_backward import once_differentiable
from manyheads.core.methods.sequence_parallel.exchange import Ranks, Traffic
from manyheads.core.methods.sequence_parallel.layout import Layout
from manyheads.core.methods.sequence_parallel.ring import BlockAttention
from manyheads.core.methods.sequence_parallel.ulysses import head_attention

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

Kind = Literal["ring", "all-gather", "ulysses"]
Group = dist.ProcessGroup | None
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

__all__ = ["AttentionOver", "Traffic", "attention_over", "gather", "local_positions", "shard", "sum_gradients"]


def attention_over(
    group: Group = None,
    kind: Kind = "ring",
    *,
    causal: bool = False,
    balanced: bool = False,
    traffic: Traffic | None = None,
    check: bool = True,
) -> AttentionOver:
    """Build attention over the tokens of all ranks of a group, called with the local q, k and v.

    Args:
        group: the process group; all processes by default.
        kind: ``"ring"``, ``"all-gather"`` or ``"ulysses"``; see the module.
        causal: each token sees itself and earlier tokens.
        balanced: the tokens are in head–tail order, the order of ``shard(…, balanced=True)``.
        traffic: counter of sent bytes and computed scores over all calls.
        check: compare the shapes of all ranks first (a small all-gather); without it unequal ones hang or corrupt the
            result.

    Raises:
        ArgumentError: no process group, an unknown kind.
    """
    if kind not in get_args(Kind):
        raise ArgumentError(f"attention_over: kind: found {kind!r}, expected one of {', '.join(get_args(Kind))}")
    return AttentionOver(Ranks(group, traffic), kind, causal, balanced, check)


@dataclass(frozen=True)
class AttentionOver:
    """Sequence-parallel attention; :func:`attention_over` builds it."""

    ranks: Ranks = field(repr=False)
    kind: Kind
    causal: bool
    balanced: bool
    check: bool

    @property
    def traffic(self) -> Traffic:
        """The counter of sent bytes and computed scores."""
        return self.ranks.traffic

    def __call__(
        self,
        q: Float[Tensor, "b h t e"],
        k: Float[Tensor, "b k t e"],
        v: Float[Tensor, "b k t f"],
        *,
        tokens: int | None = None,
        scale: float | None = None,
    ) -> Float[Tensor, "b h t f"]:
        """Attention of the local queries over the keys of all ranks; it has first derivatives only.

        Args:
            tokens: T without padding; P t by default. No query sees padded tokens; their output is 0.
            scale: of the scores, ``E ** -0.5`` by default.

        Raises:
            ArgumentError: shapes that do not fit each other, the other ranks or ``tokens``; for Ulysses, heads that P
                does not divide.
            RankError: another rank ended, or did not answer within the timeout of the group.
        """
        ranks = self.ranks
        layout = Layout(q.shape[-2] * ranks.size if tokens is None else tokens, ranks.size, self.balanced)
        if self.check:
            self._agree(q, k, v, layout)
        self._fits(q, k, v, layout)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if self.kind == "ulysses":
            return head_attention(q, k, v, ranks, layout, self.causal, scale)
        return BlockAttention.apply(q, k, v, ranks, layout, self.causal, scale, self.kind == "ring")

    def _agree(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> None:
        """Raise on all ranks or on none: one that stopped alone would leave the others waiting."""
        code = [get_args(Kind).index(self.kind), self.causal, self.balanced, layout.tokens]
        shapes = [(*part.shape, *[0] * (6 - part.dim()))[:6] for part in (q, k, v)]
        dtypes = [_DTYPES.index(part.dtype) if part.dtype in _DTYPES else -1 for part in (q, k, v)]
        own = torch.tensor([*code, *dtypes, *sum(shapes, ())], device=q.device)
        found = self.ranks.all_gather(own, count=False)
        for rank, other in enumerate(found):
            if not torch.equal(other, found[0]):
                first, wrong = (
                    ", ".join(str(tuple(n for n in part if n)) for part in row[7:].view(3, 6).tolist())
                    + f", T = {int(row[3])}, dtype {int(row[4])}, kind {int(row[0])}"
                    for row in (found[0], other)
                )
                raise ArgumentError(
                    f"attention_over: rank {rank} came with q, k, v of {wrong}, rank 0 with {first}, expected the same "
                    "on every rank: shard() pads to equal shapes"
                )

    def _fits(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> None:
        size = layout.ranks
        if q.dim() != 4 or k.dim() != 4 or v.dim() != 4 or len({(len(p), p.shape[2], p.dtype) for p in (q, k, v)}) > 1:
            found = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in (q, k, v))
            raise ArgumentError(
                f"attention_over: q, k, v: found {found}, expected (B, H, t, E), (B, K, t, E), (B, K, t, F), one dtype"
            )
        if k.shape[1] != v.shape[1] or k.shape[1] < 1 or q.shape[1] % k.shape[1] or q.shape[3] != k.shape[3]:
            raise ArgumentError(
                f"attention_over: k, v: found {tuple(k.shape)} and {tuple(v.shape)}, expected K heads that divide the "
                f"{q.shape[1]} of q, and keys of its width {q.shape[3]}"
            )
        if q.shape[2] != layout.shard:
            raise ArgumentError(
                f"attention_over: q: found {q.shape[2]} tokens, expected {layout.shard}: {layout.tokens} tokens over "
                f"{size} ranks{', balanced' if self.balanced else ''}; shard() pads to it"
            )
        if self.kind == "ulysses" and k.shape[1] % size:
            raise ArgumentError(
                f"attention_over: heads: found {q.shape[1]} of queries and {k.shape[1]} of keys, expected multiples of "
                f"the {size} ranks for ulysses: take ring or all-gather"
            )


def shard(
    x: Shaped[Tensor, "..."], group: Group = None, *, dim: int = -2, balanced: bool = False
) -> Shaped[Tensor, "..."]:
    """This rank's tokens of a sequence that every rank holds whole, padded with zeros at the end of the sequence.

    Every rank gets the gradient of the whole ``x``, as if it had computed all tokens.

    Args:
        dim: the axis of the tokens: by default that of ``(B, T, D)`` and of ``(B, H, T, E)``.
        balanced: head–tail order.
    """
    ranks = Ranks(group)
    layout = Layout(x.shape[dim], ranks.size, balanced)
    return _Shard.apply(x, ranks, layout, dim % x.dim())


def gather(
    x: Shaped[Tensor, "..."], group: Group = None, *, tokens: int, dim: int = -2, balanced: bool = False
) -> Shaped[Tensor, "..."]:
    """The inverse of :func:`shard`: the whole sequence of ``tokens`` on every rank, without the padding.

    The gradient is this rank's part of the gradient of the whole sequence; every rank must compute the same function of
    the result.

    Raises:
        ArgumentError: a number of local tokens that does not fit ``tokens``.
    """
    ranks = Ranks(group)
    layout = Layout(tokens, ranks.size, balanced)
    if x.shape[dim] != layout.shard:
        raise ArgumentError(f"gather: x: found {x.shape[dim]} tokens, expected {layout.shard} of {tokens} in all")
    return _Gather.apply(x, ranks, layout, dim % x.dim())


def local_positions(
    tokens: int, group: Group = None, *, balanced: bool = False, device: torch.device | None = None
) -> Int[Tensor, "t"]:
    """The positions of this rank's tokens in the sequence; positions from ``tokens`` on are padding."""
    ranks = Ranks(group)
    return Layout(tokens, ranks.size, balanced).positions(ranks.rank, device)


def sum_gradients(parameters: Iterable[Shaped[Tensor, "..."]], group: Group = None) -> None:
    """Sum the gradient of each parameter over the ranks, each of which has the part of its own tokens."""
    ranks = Ranks(group)
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=ranks.group)


def _take(x: Tensor, ranks: Ranks, layout: Layout, dim: int) -> Tensor:
    missing = layout.shard * layout.ranks - x.shape[dim]
    padded = torch.nn.functional.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, missing])
    return padded.index_select(dim, layout.positions(ranks.rank, x.device))


def _join(x: Tensor, ranks: Ranks, layout: Layout, dim: int) -> Tensor:
    back = layout.order(x.device).argsort()[: layout.tokens]
    return torch.cat(ranks.all_gather(x, count=False), dim).index_select(dim, back)


class _Shard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, layout: Layout, dim: int) -> Tensor:
        ctx.run = ranks, layout, dim
        return _take(x, ranks, layout, dim)

    @staticmethod
    @once_differentiable("sequence_parallel")
    def backward(ctx: Any, *gradients: Tensor):
        return _join(gradients[0], *ctx.run), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, layout: Layout, dim: int) -> Tensor:
        ctx.run = ranks, layout, dim
        return _join(x, ranks, layout, dim)

    @staticmethod
    @once_differentiable("sequence_parallel")
    def backward(ctx: Any, *gradients: Tensor):
        return _take(gradients[0], *ctx.run), None, None, None
