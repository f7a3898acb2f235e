"""Softmax averages over every prefix, with one score for each token.

Axes: t tokens, f width; any leading axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

CHUNK = 64


def prefix_softmax(
    scores: Float[Tensor, "*rows t"], values: Float[Tensor, "*rows t f"]
) -> tuple[Float[Tensor, "*rows t f"], Float[Tensor, "*rows t"]]:
    """The averages ``means`` over every prefix and their log-sum-exps ``lse``:

        lse[t] = log sum_{n <= t} exp scores[n],   means[t] = sum_{n <= t} exp(scores[n] - lse[t]) values[n].

    Time ``O(T F)``. Chunks of 64 tokens are computed densely. Each chunk then becomes one token, with its log-sum-exp
    as score and its mean as value: the average over all previous chunks is the same function of T / 64 tokens.
    """
    tokens = scores.shape[-1]
    if tokens <= CHUNK:
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1)
        rows = scores.unsqueeze(-2).masked_fill(later, float("-inf"))
        return rows.softmax(-1) @ values, rows.logsumexp(-1)
    count = -(-tokens // CHUNK)
    # Padding on the right, which no real token sees.
    short = count * CHUNK - tokens
    inner, inner_lse = prefix_softmax(
        torch.nn.functional.pad(scores, (0, short)).unflatten(-1, (count, CHUNK)),
        torch.nn.functional.pad(values, (0, 0, 0, short)).unflatten(-2, (count, CHUNK)),
    )
    before, before_lse = prefix_softmax(inner_lse[..., :-1, -1], inner[..., :-1, -1, :])
    before = torch.cat([torch.zeros_like(before[..., :1, :]), before], -2).unsqueeze(-2)
    before_lse = torch.cat([torch.full_like(before_lse[..., :1], float("-inf")), before_lse], -1).unsqueeze(-1)
    means, lse = join(inner, inner_lse, before, before_lse)
    return means.flatten(-3, -2)[..., :tokens, :], lse.flatten(-2)[..., :tokens]


def join(
    mean: Float[Tensor, "*#rows f"],
    lse: Float[Tensor, "*#rows"],
    other: Float[Tensor, "*#rows f"],
    other_lse: Float[Tensor, "*#rows"],
) -> tuple[Float[Tensor, "... f"], Float[Tensor, "..."]]:
    """The average over the union of two disjoint sets and its log-sum-exp, from those of each set, which broadcast.

    ``other_lse`` may be minus infinity.
    """
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    return mean + share * (other - mean), torch.logaddexp(lse, other_lse)
