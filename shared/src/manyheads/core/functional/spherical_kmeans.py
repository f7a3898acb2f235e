"""Spherical k-means on line: who belongs to which centroid, and how the centroids follow (2003.05997).

    x^ = LN(x),   a_i = argmax_c x^_i . mu_c
    n_c <- d n_c + (1 - d) |{i: a_i = c}|,   s_c <- d s_c + (1 - d) sum_{a_i = c} x^_i
    mu_c = s_c / n~_c,   n~_c = (n_c + eps) / (n + C eps) n,   n = sum_c n_c

Shapes: B batch, H heads (each has its own centroids), T tokens, C clusters, E width. Nothing here draws random numbers
or keeps anything. ``real (B, T)`` is False for tokens that do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-5  # of the paper's code


def to_sphere(x: Tensor) -> Tensor:
    """Layer norm without scale and shift: mean 0 and length ``sqrt(E)`` along the last axis."""
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def affinity(x: Tensor, centroids: Tensor) -> Tensor:
    """``x (B, H, T, E)`` on the sphere, ``centroids (H, C, E)`` -> ``(B, H, C, T)``, without gradient."""
    return centroids.detach() @ x.detach().to(centroids.dtype).transpose(-1, -2)


def nearest(affinity: Tensor) -> Tensor:
    """Each token's own centroid, ``(B, H, T)`` int64."""
    return affinity.max(2).indices  # several times faster than argmax on a CPU


def balanced_members(affinity: Tensor, size: int, real: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """For each centroid the ``w = min(size, T)`` tokens next to it: ``(B, H, C, w)`` int64, ascending.

    Also which of them are real (None where all are): a row with fewer than w real tokens fills up with others. A token
    can belong to no cluster, to one, or to several.
    """
    tokens = affinity.shape[-1]
    if real is not None:
        affinity = affinity.masked_fill(~real[:, None, None], float("-inf"))
    members = affinity.topk(min(size, tokens), dim=-1, sorted=False).indices.sort(-1).values
    if real is None:
        return members, None
    return members, real[:, None, None].expand(affinity.shape).gather(-1, members)


def commitment_loss(x: Tensor, centroids: Tensor, assigned: Tensor, real: Tensor | None = None) -> Tensor:
    """The mean squared difference of ``x (B, H, T, E)`` and its centroid, over all real tokens, heads and widths.

    ``assigned (B, H, T)``. The gradient goes to ``x`` only; 0 where nothing is real.
    """
    heads = torch.arange(centroids.shape[0], device=x.device).view(1, -1, 1)
    square = (x - centroids.detach()[heads, assigned].to(x.dtype)).square().mean(-1)
    if real is None:
        return square.mean()
    counted = real.unsqueeze(1).expand_as(square)
    return square.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


def cluster_statistics(x: Tensor, assigned: Tensor, clusters: int, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How many tokens each cluster got, ``(H, C)``, and their sum, ``(H, C, E)``; float32 at least, no gradient.

    Statistics of parts of a batch add up to those of the whole.
    """
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    batch, heads, tokens, width = x.shape
    weight = x.new_ones(batch, heads, tokens)
    if real is not None:
        weight = weight * real.unsqueeze(1)
    row = (assigned + clusters * torch.arange(heads, device=x.device).view(1, -1, 1)).flatten()
    counts = x.new_zeros(heads * clusters).index_add(0, row, weight.flatten())
    sums = x.new_zeros(heads * clusters, width).index_add(0, row, (x * weight.unsqueeze(-1)).reshape(-1, width))
    return counts.view(heads, clusters), sums.view(heads, clusters, width)


def ema_update(
    counts: Tensor, sums: Tensor, new_counts: Tensor, new_sums: Tensor, *, decay: float, epsilon: float = EPSILON
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the moving averages: the centroids ``(H, C, E)``, the counts and the sums after it."""
    counts = decay * counts + (1 - decay) * new_counts
    sums = decay * sums + (1 - decay) * new_sums
    total = counts.sum(-1, keepdim=True)
    smooth = (counts + epsilon) / (total + counts.shape[-1] * epsilon) * total
    return sums / smooth.unsqueeze(-1), counts, sums
