"""Softmax averages over every prefix, where each token keeps the score that it came with."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64


def prefix_softmax(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """``scores (…, T)``, ``values (…, T, F)`` -> ``means (…, T, F)`` and the log-sum-exps ``(…, T)``:

        lse[t] = log sum_{n <= t} exp scores[n],   means[t] = sum_{n <= t} exp(scores[n] - lse[t]) values[n].

    Chunks are dense; the chunk as a whole is a token again, with its log-sum-exp as score and its mean as value, so
    that what came before a chunk is the same function of T / 64 tokens. Time ``O(T F)``.
    """
    tokens = scores.shape[-1]
    if tokens <= CHUNK:
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1)
        rows = scores.unsqueeze(-2).masked_fill(later, float("-inf"))
        return rows.softmax(-1) @ values, rows.logsumexp(-1)
    count = -(-tokens // CHUNK)
    short = count * CHUNK - tokens  # at the right: seen by no token that there is
    inner, inner_lse = prefix_softmax(
        torch.nn.functional.pad(scores, (0, short)).unflatten(-1, (count, CHUNK)),
        torch.nn.functional.pad(values, (0, 0, 0, short)).unflatten(-2, (count, CHUNK)),
    )
    before, before_lse = prefix_softmax(inner_lse[..., :-1, -1], inner[..., :-1, -1, :])
    before = torch.cat([torch.zeros_like(before[..., :1, :]), before], -2).unsqueeze(-2)
    before_lse = torch.cat([torch.full_like(before_lse[..., :1], float("-inf")), before_lse], -1).unsqueeze(-1)
    means, lse = join(inner, inner_lse, before, before_lse)
    return means.flatten(-3, -2)[..., :tokens, :], lse.flatten(-2)[..., :tokens]


def join(mean: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """The average over two disjoint sets and its log-sum-exp, from averages ``(…, F)`` and log-sum-exps ``(…)`` of
    both, which broadcast; ``other_lse`` may be minus infinity."""
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    return mean + share * (other - mean), torch.logaddexp(lse, other_lse)
