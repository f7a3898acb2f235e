"""MiniLM (2002.10957): distil the last self-attention layer of a teacher into that of a student.

    A_a = softmax(Q_a K_a' / sqrt(E)),   R_a = softmax(V_a V_a' / sqrt(E))                          (attention, values)
    L = 1 / (H N) sum_a sum_t KL(A^T_a,t || A^S_a,t)  +  1 / (H N) sum_a sum_t KL(R^T_a,t || R^S_a,t)

for the heads a of teacher T and student S and the queries t. Both relations are ``(N, N)`` whatever the widths are, so
that a student of any width and depth learns from a teacher without a map between them. The numbers of heads are equal.
With ``relation_heads`` (MiniLMv2, 2012.15828) the vectors of all heads are joined and cut anew: then the numbers of
heads are free too.

    with torch.no_grad(), Recorder(teacher) as of_teacher:
        teacher(x)
    with Recorder(student) as of_student:
        student(x)
    minilm_loss(of_student.projections, of_teacher.projections).total.backward()

:func:`distil` is this as a loop, and :func:`stages` says whether a teacher assistant comes first.

Cost: of a step a forward pass of the teacher, a step of the student, and four ``(B, H, N, N)`` relations.

Axes: B batch, H heads, N tokens, E head width of one of the two models; b, h, n, e and f in annotations.

Differs from the paper: masked keys take part in no relation and masked queries not in the mean, which covers padding,
causal layers and windows. The pairs of relation heads are those of MiniLM, not the three of MiniLMv2;
:func:`relation_loss` takes any pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from manyheads.core.arguments import checked, checked_constructor
from manyheads.core.errors import ArgumentError
from manyheads.core.functional.rotary import rotate
from manyheads.core.functional.segments import same_segment, segment_ids, visible
from manyheads.core.layers.softmax import HeadAttention
from manyheads.core.mask import NO_MASK, Mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class Projections(NamedTuple):
    """Queries, keys and values of one call of a layer, each ``(B, H, N, E)``, and its mask ``(B or 1, 1, N, N)``."""

    query: Tensor
    key: Tensor
    value: Tensor
    allowed: Tensor | None = None
    """True if the query may attend to the key; None if every one may."""


class MiniLMLoss(NamedTuple):
    """The two losses and their sum, in float32 at least."""

    total: Tensor
    attention: Tensor
    value: Tensor


@checked
def minilm_loss(student: Projections, teacher: Projections, *, relation_heads: int | None = None) -> MiniLMLoss:
    """The loss of MiniLM; the gradient goes to the student only, and the mask is the student's.

    Args:
        relation_heads: R heads of both models, as in :func:`relation_loss`.

    Raises:
        ArgumentError: as :func:`relation_loss`.
    """
    options: dict[str, Any] = {"allowed": student.allowed, "relation_heads": relation_heads}
    attention = relation_loss(student.query, student.key, teacher.query, teacher.key, **options)
    value = relation_loss(student.value, student.value, teacher.value, teacher.value, **options)
    return MiniLMLoss(attention + value, attention, value)


@checked
def relation_loss(
    student_a: Float[Tensor, "b h n e"],
    student_b: Float[Tensor, "b h n e"],
    teacher_a: Float[Tensor, "b g n f"],
    teacher_b: Float[Tensor, "b g n f"],
    *,
    allowed: Bool[Tensor, "#b 1 #n n"] | None = None,
    relation_heads: int | None = None,
) -> Float[Tensor, ""]:
    """``mean_{a,t} KL(softmax(T_a T_b' / sqrt(F))_t || softmax(S_a S_b' / sqrt(E))_t)`` over heads and queries.

    Args:
        student_a: S_a, such as the queries.
        student_b: S_b, such as the keys.
        teacher_a: T_a; it gets no gradient.
        teacher_b: T_b; it gets no gradient.
        allowed: True if query t may see key s. A query that sees none is no part of the mean; 0 if all are so.
        relation_heads: R; the heads of each model are joined and cut into R.

    Raises:
        ArgumentError: other batches or lengths of teacher and student, numbers of heads that differ without
            ``relation_heads``, or joined widths that it does not divide.
    """
    pair = [student_a, student_b], [part.detach() for part in (teacher_a, teacher_b)]
    for name, (a, b) in zip(("student", "teacher"), pair, strict=True):
        if a.dim() != 4 or a.shape != b.shape:
            raise ArgumentError(
                f"minilm: {name}: found {tuple(a.shape)} and {tuple(b.shape)}, expected two tensors (B, H, N, E)"
            )
    batch, heads, tokens, _ = student_a.shape
    if (teacher_a.shape[0], teacher_a.shape[2]) != (batch, tokens):
        raise ArgumentError(
            f"minilm: teacher: found {teacher_a.shape[0]} rows of {teacher_a.shape[2]} tokens, expected {batch} of "
            f"{tokens} as the student"
        )
    if relation_heads is None and teacher_a.shape[1] != heads:
        raise ArgumentError(
            f"minilm: heads: found {heads} of the student and {teacher_a.shape[1]} of the teacher, expected the same "
            "number, or relation_heads"
        )
    if allowed is not None and (allowed.dim() != 4 or allowed.shape[0] not in (1, batch) or allowed.shape[1] != 1):
        raise ArgumentError(
            f"minilm: allowed: found {tuple(allowed.shape)}, expected ({batch} or 1, 1, {tokens}, {tokens})"
        )
    log_s, log_t = (_log_relation(*(_cut(part, relation_heads) for part in parts), allowed) for parts in pair)
    divergence = (log_t.exp() * (log_t - log_s)).sum(-1)
    if allowed is None:
        return divergence.mean() if divergence.numel() else divergence.sum()
    real = allowed.any(-1).expand(batch, 1, tokens)
    return divergence.masked_fill(~real, 0.0).sum() / (real.sum() * divergence.shape[1]).clamp(min=1)


def _log_relation(a: Tensor, b: Tensor, allowed: Tensor | None) -> Tensor:
    """``log softmax(a b' / sqrt(E))`` in float32 at least; 0 where not allowed, so that differences are 0 there."""
    wide = torch.promote_types(a.dtype, torch.float32)
    scores = (a.to(wide) @ b.to(wide).transpose(-1, -2)) * a.shape[-1] ** -0.5
    if allowed is None:
        return scores.log_softmax(-1)
    # a query that sees no key has equal scores instead of a NaN
    hidden = ~allowed & allowed.any(-1, keepdim=True)
    return scores.masked_fill(hidden, float("-inf")).log_softmax(-1).masked_fill(~allowed, 0.0)


def _cut(part: Tensor, relation_heads: int | None) -> Tensor:
    if relation_heads is None:
        return part
    joined = part.shape[1] * part.shape[3]
    if relation_heads < 1 or joined % relation_heads:
        raise ArgumentError(
            f"minilm: relation_heads: found {relation_heads}, expected a divisor of the width {joined} of all heads"
        )
    return part.transpose(1, 2).flatten(2).unflatten(-1, (relation_heads, -1)).transpose(1, 2)


@checked_constructor
class Recorder(AbstractContextManager["Recorder"]):
    """Note queries, keys, values and mask of a self-attention layer in each call of the model inside ``with``.

    Args:
        model: any module with a ``softmax`` or ``ssa`` layer inside.
        layer: the layer to note; by default the last one that attends to its own input.

    Raises:
        ArgumentError: no such layer; ``projections`` before the first call, or after one that continues a stream.
    """

    def __init__(self, model: nn.Module, *, layer: HeadAttention | None = None) -> None:
        self.layer = last_attention(model) if layer is None else layer
        if self.layer.context_dim is not None:
            raise ArgumentError("minilm: layer: found one that attends to a context, expected self-attention")
        self._seen: dict[str, Tensor] = {}
        self._mask: Mask = NO_MASK
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        self._seen.clear()
        self._handles.append(self.layer.register_forward_pre_hook(self._note_mask, with_kwargs=True))
        for name in ("query", "key", "value"):
            module = self.layer.get_submodule(name)
            self._handles.append(module.register_forward_hook(self._note(name)))
        return self

    def __exit__(self, *error: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _note_mask(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        state = named.get("state", inputs[1] if len(inputs) > 1 else None)
        if state:
            raise ArgumentError("minilm: found a state of a stream, expected whole sequences")
        self._mask = named.get("mask") or NO_MASK

    def _note(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[name] = output

        return note

    @property
    def projections(self) -> Projections:
        """What the latest call had."""
        if not self._seen:
            raise ArgumentError("minilm: found no call of the model inside `with Recorder(model)`, expected one")
        layer = self.layer
        query, key, value = (
            self._seen[name].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for name in ("query", "key", "value")
        )
        padding, tokens = self._mask.padding, query.shape[2]
        if layer.rotary is not None:
            place = torch.arange(tokens, device=query.device) if padding is None else padding.cumsum(1)
            query, key = (rotate(part, place, base=layer.rotary) for part in (query, key))
        return Projections(query, key, value, self._allowed(query))

    def _allowed(self, query: Tensor) -> Tensor | None:
        layer, mask = self.layer, self._mask
        if not mask.names() and not layer.causal:
            return None
        batch, tokens = query.shape[0], query.shape[2]
        real = torch.ones(batch, tokens, dtype=torch.bool, device=query.device)
        real = real if mask.padding is None else mask.padding
        segment = torch.zeros_like(real, dtype=torch.int64) if mask.reset is None else segment_ids(mask.reset)
        window = layer.window if mask.window is None else mask.window
        allowed = visible(real, segment, real, segment, 0, causal=layer.causal, window=window)
        if mask.blocks is not None:
            allowed = allowed & same_segment(mask.blocks, mask.blocks)
        return allowed.unsqueeze(1)


@checked
def last_attention(model: nn.Module) -> HeadAttention:
    """The last ``softmax`` or ``ssa`` layer in module order that attends to its own input.

    Raises:
        ArgumentError: there is none.
    """
    found = [m for m in model.modules() if isinstance(m, HeadAttention) and m.context_dim is None]
    if not found:
        raise ArgumentError(
            f"minilm: model: found {type(model).__name__} without self-attention, expected a layer of it"
        )
    return found[-1]


def distil(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    optimiser: torch.optim.Optimizer,
    *,
    run: Callable[[nn.Module, Any], Any] = lambda model, batch: model(batch),
    relation_heads: int | None = None,
) -> list[MiniLMLoss]:
    """Train the student on unlabelled batches, one step each; return the losses of the steps, detached.

    Args:
        batches: whatever ``run(model, batch)`` calls a model with; both models see the same batch.
        run: calls a model; its result is not used.

    The teacher runs in evaluation mode without gradients and returns to its mode; the student keeps its mode.
    Parameters behind the values of the last attention layer get no gradient.
    """
    mode, losses = teacher.training, []
    teacher.eval()
    try:
        for batch in batches:
            with torch.no_grad(), Recorder(teacher) as of_teacher:
                run(teacher, batch)
            with Recorder(student) as of_student:
                run(student, batch)
            loss = minilm_loss(of_student.projections, of_teacher.projections, relation_heads=relation_heads)
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
            losses.append(MiniLMLoss(*(part.detach() for part in loss)))
    finally:
        teacher.train(mode)
    return losses


@checked
def stages(*, teacher: tuple[int, int], student: tuple[int, int]) -> list[tuple[int, int]]:
    """Depth and width of each network to distil, in order, each from the one before; first from the teacher.

    A student of at most half the teacher's depth and half its width learns from an assistant, which has the depth of
    the teacher and the width of the student.

    Args:
        teacher: depth L and width.
        student: depth M and width.

    Raises:
        ArgumentError: a depth or width below 1.
    """
    if min(*teacher, *student) < 1:
        raise ArgumentError(f"minilm: found {teacher} and {student}, expected depths and widths of 1 or more")
    small = 2 * student[0] <= teacher[0] and 2 * student[1] <= teacher[1]
    return [(teacher[0], student[1]), student] if small else [student]
