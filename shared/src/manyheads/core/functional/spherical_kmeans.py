"""Online spherical k-means: assign tokens to centroids, update the centroids (2003.05997).

    x^ = LN(x),   a_i = argmax_c x^_i . mu_c
    n_c <- d n_c + (1 - d) |{i: a_i = c}|,   s_c <- d s_c + (1 - d) sum_{a_i = c} x^_i
    mu_c = s_c / n~_c,   n~_c = (n_c + eps) / (n + C eps) n,   n = sum_c n_c

Axes: b batch, h heads (each has its own centroids), t tokens, c clusters, e width. The functions are pure: no random
numbers, no state. ``real`` is False for padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# From the paper's code.
EPSILON = 1e-5


def to_sphere(x: Float[Tensor, "*rows e"]) -> Float[Tensor, "*rows e"]:
    """Layer norm without scale and shift: mean 0 and length ``sqrt(E)`` along the last axis."""
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def affinity(x: Float[Tensor, "b h t e"], centroids: Float[Tensor, "h c e"]) -> Float[Tensor, "b h c t"]:
    """Dot products of the centroids with tokens on the sphere, without gradient."""
    return centroids.detach() @ x.detach().to(centroids.dtype).transpose(-1, -2)


def nearest(affinity: Float[Tensor, "b h c t"]) -> Int[Tensor, "b h t"]:
    """The nearest centroid of each token."""
    # Several times faster than argmax on a CPU.
    return affinity.max(2).indices


def balanced_members(
    affinity: Float[Tensor, "b h c t"], size: int, real: Bool[Tensor, "b t"] | None = None
) -> tuple[Int[Tensor, "b h c w"], Bool[Tensor, "b h c w"] | None]:
    """The ``w = min(size, T)`` nearest tokens of each centroid, in ascending order, and which of them are real.

    Without ``real`` the latter is None. A row with fewer than w real tokens is filled up with padding. A token can
    belong to no cluster, to one, or to several.
    """
    tokens = affinity.shape[-1]
    if real is not None:
        affinity = affinity.masked_fill(~real[:, None, None], float("-inf"))
    members = affinity.topk(min(size, tokens), dim=-1, sorted=False).indices.sort(-1).values
    if real is None:
        return members, None
    return members, real[:, None, None].expand(affinity.shape).gather(-1, members)


def commitment_loss(
    x: Float[Tensor, "b h t e"],
    centroids: Float[Tensor, "h c e"],
    assigned: Int[Tensor, "b h t"],
    real: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, ""]:
    """The mean squared difference of tokens and their assigned centroids, over all real tokens, heads and widths.

    The gradient goes to ``x`` only; 0 without real tokens.
    """
    heads = torch.arange(centroids.shape[0], device=x.device).view(1, -1, 1)
    square = (x - centroids.detach()[heads, assigned].to(x.dtype)).square().mean(-1)
    if real is None:
        return square.mean()
    counted = real.unsqueeze(1).expand_as(square)
    return square.masked_fill(~counted, 0.0).sum() / counted.sum().clamp(min=1)


def cluster_statistics(
    x: Float[Tensor, "b h t e"], assigned: Int[Tensor, "b h t"], clusters: int, real: Bool[Tensor, "b t"] | None = None
) -> tuple[Float[Tensor, "h c"], Float[Tensor, "h c e"]]:
    """The number of tokens of each cluster and their sum, in float32 at least, without gradient.

    The statistics of the parts of a batch add up to those of the whole batch.
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
    counts: Float[Tensor, "h c"],
    sums: Float[Tensor, "h c e"],
    new_counts: Float[Tensor, "h c"],
    new_sums: Float[Tensor, "h c e"],
    *,
    decay: float,
    epsilon: float = EPSILON,
) -> tuple[Float[Tensor, "h c e"], Float[Tensor, "h c"], Float[Tensor, "h c e"]]:
    """Update the exponential moving averages: the new centroids, counts and sums."""
    counts = decay * counts + (1 - decay) * new_counts
    sums = decay * sums + (1 - decay) * new_sums
    total = counts.sum(-1, keepdim=True)
    smooth = (counts + epsilon) / (total + counts.shape[-1] * epsilon) * total
    return sums / smooth.unsqueeze(-1), counts, sums
