"""IA-RED2 (2106.12620): drop tokens that a policy finds uninformative, more of them from group to group of blocks.

    p_g,j = 1 / H sum_h sigmoid(q_h . k_h,j / sqrt(E)),   q = W_q n_0,  k_j = W_k n_j,  n = LN(x)        (interpreter)
    u_g,j ~ Bernoulli(p_g,j) u_g-1,j  in training,   [p_g,j > threshold] u_g-1,j  at inference,   u_g,0 = 1
    R(u)  = sum_g w_g (1 - (||u_g|| / N)^2) / sum_g w_g  if the prediction is right,   -tau  if not
    grad  = E[(R(u) - R(u^)) grad log pi(u)],   u^ the choice at inference                   (self-critical REINFORCE)

The blocks of a network are cut into G groups. An interpreter before each group scores the tokens against token 0, the
class or policy token, which is never dropped. A dropped token stays dropped. w_g is the share of blocks from group g
on, so that an early drop is worth more.

    model = IARed2(stack.residual_blocks, groups=3)
    sampled, greedy = model(x, policy="sample"), model(x, policy="greedy")
    loss = self_critical_loss(sampled, right(sampled.y), greedy, right(greedy.y), penalty=3.0)

In training a dropped token is masked; at inference the kept tokens of each row are gathered, and rows of unequal number
are padded to the longest one. Both give the same outputs: those of the kept tokens, and 0 at the others. The layers
must honour a padding mask.

Cost: of group g with n kept tokens, ``n D^2 + n^2 D`` a block instead of ``N D^2 + N^2 D``; an interpreter
``N D H E``.

Axes: B batch, N tokens, D width, G groups, H heads of the interpreter, E their width; b, n, d, g in annotations.

Differs from the paper: there was no official code; the interpreter follows a derived work, and the order of the phases
(:meth:`IARed2.set_phase`) and the weights w_g are reconstructions. The policy token is no part of the ratio and of the
policy. Attention honours the mask itself, instead of a softmax over minus infinities that is repaired afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from manyheads.core.arguments import checked, checked_constructor
from manyheads.core.blocks.residual import ResidualBlock
from manyheads.core.errors import ArgumentError
from manyheads.core.functional.packing import pack_order, take_along
from manyheads.core.layer import blank
from manyheads.core.mask import Mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Policy = Literal["sample", "greedy", "all"]

# Probabilities are kept this far from 0 and 1 in logarithms.
_CERTAIN = 1e-6


class IARed2Output(NamedTuple):
    """What a pass through the blocks gives."""

    y: Tensor
    """``(B, N, D)``, 0 at tokens that the last group does not keep."""
    kept: Tensor
    """``(B, G, N)``, u: True for the tokens that a group sees."""
    probabilities: Tensor
    """``(B, G, N)``, p: 0 for a token dropped before; of a group whose interpreter is not asked, 1 or 0 as ``kept``."""
    log_policy: Tensor
    """``(B,)``, ``log pi(u)`` of the groups whose interpreter was asked."""
    ratio: Tensor
    """``(B, G)``, the share of the real tokens beside the policy token that a group sees."""


@checked_constructor
class Interpreter(nn.Module):
    """Score tokens against token 0; see the module for the equation.

    Args:
        dim: D.
        heads: H.
        width: E, the width of a head; ``D / H`` by default.

    Raises:
        ArgumentError: no head or width; heads that do not divide D, without ``width``.
    """

    def __init__(self, dim: int, *, heads: int = 4, width: int | None = None) -> None:
        super().__init__()
        if heads < 1 or (width is None and dim % heads) or (width is not None and width < 1):
            raise ArgumentError(
                f"ia-red2: heads, width: found {heads} and {width}, expected 1 or more and, without a width, a divisor "
                f"of {dim}"
            )
        self.heads = heads
        inner = heads * (dim // heads if width is None else width)
        self.query, self.key = nn.Linear(dim, inner), nn.Linear(dim, inner)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """The probability of keeping each token, 1 for token 0."""
        normed = functional.layer_norm(x, x.shape[-1:])
        query = self.query(normed[:, :1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key = self.key(normed[:, 1:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = (query @ key.transpose(-1, -2)).squeeze(2) * query.shape[-1] ** -0.5
        return functional.pad(scores.sigmoid().mean(1), (1, 0), value=1.0)


@checked_constructor
class IARed2(nn.Module):
    """Residual blocks with token dropping; see the module for equations and an example.

    Args:
        blocks: residual blocks of one width in order, each around a layer that honours a padding mask.
        groups: G; the blocks are cut into groups of equal size, the first ones one block larger if they do not divide.
        heads: of the interpreters.
        threshold: a token is kept at inference if its probability is above.

    ``active`` is the number of groups whose interpreters are asked, all of them at the start. The others keep what the
    group before has kept.

    Raises:
        ArgumentError: fewer blocks than groups, blocks of unequal width, a layer that honours no padding mask, a
            threshold outside [0, 1].
    """

    def __init__(
        self, blocks: Sequence[ResidualBlock], *, groups: int = 3, heads: int = 4, threshold: float = 0.5
    ) -> None:
        super().__init__()
        if not 1 <= groups <= len(blocks):
            raise ArgumentError(f"ia-red2: groups: found {groups}, expected 1 to {len(blocks)}, the number of blocks")
        if not 0 <= threshold <= 1:
            raise ArgumentError(f"ia-red2: threshold: found {threshold}, expected 0 to 1")
        widths = {block.layer.dim for block in blocks}
        if len(widths) > 1:
            raise ArgumentError(f"ia-red2: blocks: found widths {sorted(widths)}, expected one")
        for block in blocks:
            if "padding" not in block.layer.masks:
                raise ArgumentError(
                    f"ia-red2: {block.layer.info.name} honours no padding mask, expected a layer that does"
                )
        size, larger = divmod(len(blocks), groups)
        self.sizes = tuple(size + (g < larger) for g in range(groups))
        remaining = iter(blocks)
        self.groups = nn.ModuleList(nn.ModuleList(next(remaining) for _ in range(n)) for n in self.sizes)
        self.interpreters = nn.ModuleList(Interpreter(*widths, heads=heads) for _ in range(groups))
        self.threshold, self.active = threshold, groups

    @property
    def shares(self) -> tuple[float, ...]:
        """w: the share of blocks from each group on, such as 1, 2/3, 1/3."""
        return tuple(sum(self.sizes[g:]) / sum(self.sizes) for g in range(len(self.sizes)))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        policy: Policy | None = None,
        mask: Mask | None = None,
        gather: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> IARed2Output:
        """Run all groups; token 0 is the policy token.

        Args:
            policy: "sample" draws tokens, "greedy" keeps those above the threshold, "all" asks no interpreter. By
                default "sample" in training and "greedy" in evaluation.
            mask: padding only; padding is never kept. Token 0 must be real.
            gather: compute with the kept tokens only instead of masking the others; by default in evaluation.
            generator: of "sample".

        Raises:
            ArgumentError: an ``x`` of other axes, a mask of another kind, a padded token 0.
        """
        policy = policy or ("sample" if self.training else "greedy")
        gather = (not self.training if gather is None else gather) and len(x) > 0
        whole, alive = x, self._real(x, mask)
        place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        tokens = (alive[:, 1:].sum(1)).clamp(min=1)
        # without a mask the layers take their fast path
        masked = mask is not None and mask.padding is not None
        kept, probabilities, log_policy = [], [], x.new_zeros(len(x))
        for index, (blocks, interpreter) in enumerate(zip(self.groups, self.interpreters, strict=True)):
            before, p = alive, alive.to(x.dtype)
            if index < self.active and policy != "all":
                p = interpreter(x).masked_fill(~before, 0.0)
                alive = before & self._chosen(p, policy, generator)
                log_policy = log_policy + _log_policy(p, alive, before)
                masked = True
            kept.append(alive.new_zeros(whole.shape[:2]).scatter(1, place, alive))
            probabilities.append(p.new_zeros(whole.shape[:2]).scatter(1, place, p))
            if gather and masked:
                order, real = pack_order(alive)
                longest = int(alive.sum(1).max())
                order, alive = order[:, :longest], real[:, :longest]
                x, place, masked = take_along(x, order), place.gather(1, order), not bool(alive.all())
            for block in blocks:  # ty: ignore[not-iterable]
                x = block(x, mask=Mask(padding=alive) if masked else None).y
        if masked:
            x = blank(x, alive)
        if x.shape[1] < whole.shape[1]:
            x = torch.zeros_like(whole).scatter(1, place.unsqueeze(-1).expand_as(x), x)
        used = torch.stack(kept, 1)
        ratio = used[:, :, 1:].sum(2).to(x.dtype) / tokens.unsqueeze(1)
        return IARed2Output(x, used, torch.stack(probabilities, 1), log_policy, ratio)

    def _real(self, x: Tensor, mask: Mask | None) -> Tensor:
        if x.dim() != 3 or x.shape[1] < 1:
            raise ArgumentError(f"ia-red2: x: found shape {tuple(x.shape)}, expected (B, N, D) with one token or more")
        if mask is None or mask.padding is None:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        else:
            mask.check(x.shape[0], x.shape[1], None, x.device)
            real = mask.padding
        if mask is not None and set(mask.names()) - {"padding"}:
            raise ArgumentError(f"ia-red2: mask: found {', '.join(mask.names())}, expected padding only")
        if not torch.compiler.is_compiling() and not bool(real[:, 0].all()):
            raise ArgumentError("ia-red2: mask: found a row with token 0 as padding, expected the policy token there")
        return real

    def _chosen(self, p: Tensor, policy: Policy, generator: torch.Generator | None) -> Tensor:
        chosen = torch.bernoulli(p.detach(), generator=generator) > 0 if policy == "sample" else p > self.threshold
        return torch.cat([torch.ones_like(chosen[:, :1]), chosen[:, 1:]], 1)

    def set_phase(self, phase: int | None) -> list[nn.Parameter]:
        """Prepare a phase of the curriculum; return the parameters that it trains, the only ones with gradients.

        Phase 2 g trains the interpreter of group g, on :func:`self_critical_loss`. Phase 2 g + 1 trains the blocks of
        group g and after, on the loss of the task with ``policy="greedy"``; a head should be trained too. Interpreters
        after group g are not asked in either. None ends the curriculum: every interpreter is asked, all is trained.

        Raises:
            ArgumentError: a phase outside 0 … 2 G - 1.
        """
        count = len(self.sizes)
        if phase is not None and not 0 <= phase < 2 * count:
            raise ArgumentError(f"ia-red2: phase: found {phase}, expected 0 to {2 * count - 1}, or None")
        if phase is None:
            self.active, trained = count, list(self.parameters())
        else:
            group, blocks = divmod(phase, 2)
            self.active = group + 1
            parts = self.groups[group:] if blocks else self.interpreters[group : group + 1]
            trained = list(parts.parameters())
        self.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_()
        return trained

    def cost(self, ratio: Float[Tensor, "b g"]) -> Float[Tensor, "b"]:
        """The share of the blocks' work, ``sum_g ratio_g size_g / sum_g size_g``: without N^2 and interpreters."""
        sizes = ratio.new_tensor(self.sizes)
        return (ratio * sizes).sum(1) / sizes.sum()


@checked
def reward(
    ratio: Float[Tensor, "b g"], right: Bool[Tensor, "b"], *, penalty: float, shares: Sequence[float] | None = None
) -> Float[Tensor, "b"]:
    """``R = sum_g w_g (1 - ratio_g^2) / sum_g w_g`` if the prediction is right, ``-penalty`` if not.

    Args:
        ratio: the share of the tokens that each group keeps.
        right: whether the prediction with these tokens is right.
        penalty: tau; the derived work takes 3, 5 and 8 for its three groups.
        shares: w, equal by default; :attr:`IARed2.shares` are those of the derived work.

    Raises:
        ArgumentError: a negative penalty, another number of shares than groups, shares that are not above 0 in sum.
    """
    weights = ratio.new_ones(ratio.shape[1]) if shares is None else ratio.new_tensor(list(shares))
    if penalty < 0:
        raise ArgumentError(f"ia-red2: penalty: found {penalty}, expected 0 or more")
    if len(weights) != ratio.shape[1] or not float(weights.sum()) > 0:
        raise ArgumentError(f"ia-red2: shares: found {shares}, expected {ratio.shape[1]} numbers with a sum above 0")
    saved = ((1 - ratio.square()) * weights).sum(1) / weights.sum()
    return torch.where(right, saved, -penalty)


@checked
def self_critical_loss(
    sampled: IARed2Output,
    right: Bool[Tensor, "b"],
    greedy: IARed2Output | None,
    greedy_right: Bool[Tensor, "b"] | None = None,
    *,
    penalty: float,
    shares: Sequence[float] | None = None,
) -> Float[Tensor, ""]:
    """``-mean_b (R(u_b) - R(u^_b)) log pi(u_b)``, whose gradient is that of the mean reward, with its sign turned.

    Args:
        sampled: the pass with ``policy="sample"``.
        right: whether its predictions are right.
        greedy: the pass with ``policy="greedy"``, the baseline; None for none.
        greedy_right: whether its predictions are right.

    Raises:
        ArgumentError: as :func:`reward`; one of ``greedy`` and ``greedy_right`` without the other.
    """
    if (greedy is None) != (greedy_right is None):
        raise ArgumentError("ia-red2: greedy: found one of greedy and greedy_right, expected both or none")
    gain = reward(sampled.ratio, right, penalty=penalty, shares=shares)
    if greedy is not None and greedy_right is not None:
        gain = gain - reward(greedy.ratio, greedy_right, penalty=penalty, shares=shares)
    return -(gain.detach() * sampled.log_policy).mean()


def _log_policy(p: Tensor, kept: Tensor, before: Tensor) -> Tensor:
    """``(B,)``: log probability of the choice among the tokens kept before, without the policy token."""
    p = p.clamp(_CERTAIN, 1 - _CERTAIN)
    each = torch.where(kept, p.log(), (-p).log1p())
    return each.masked_fill(~before, 0.0)[:, 1:].sum(1)
