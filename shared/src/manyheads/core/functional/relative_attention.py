"""Windowed softmax attention with scores that depend on content and on distance (1901.02860), without parameters.

    score[i, j] = ((q_i + u) . k_j + (q_i + w) . r_{i - j}) / sqrt(E),   0 <= i - j <= M
    out_i = sum_j softmax_j(score[i, j]) v_j

Shapes: B batch, H heads, T queries, M memory, S = M + T keys, W = M + 1 distances, E key width, F value width, C queries
a block. Query t stands at key M + t.

Queries are cut into blocks of C, each of which sees C + M keys or a little more. The distance term is one product with
the W distances, written into the scores along their diagonals (the relative shift). Time ``O(T (C + M) (E + F))`` a head.
The scores exist for a few blocks at a time, so that they stay in the cache, and are computed again in the backward pass:
memory ``O(T (E + F))``. Relative scores are a bias that needs a gradient, for which torch has no fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def sinusoids(distances: Tensor, dim: int) -> Tensor:
    """``(W,)`` -> ``(W, D)``: sines of ``distance / 10000^(2 i / D)`` in the first half (rounded up), cosines behind."""
    half = (dim + 1) // 2
    exponent = torch.arange(half, device=distances.device, dtype=distances.dtype) * (-2.0 / dim)
    angles = distances.unsqueeze(-1) * torch.pow(10000.0, exponent)
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :dim]


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    u: Tensor,
    w: Tensor,
    *,
    first: Tensor | None = None,
    block: int | None = None,
) -> Tensor:
    """``q (B, H, T, E)``, ``k (B, H, M + T, E)``, ``v (B, H, M + T, F)``, ``r (W, H, E)`` by distance, ``u``, ``w``
    ``(H, E)`` -> ``(B, H, T, F)``.

    Query t sees the keys ``max(t, first[b, t])`` to ``M + t``; ``first (B, T)`` int64 is at most ``M + t``, so that its own
    key is always seen. Keys and values must be finite, those that nobody sees too. Half precision is computed in float32.
    Differentiable once.
    """
    batch, heads, tokens, width = q.shape
    memory = r.shape[0] - 1
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v, r, u, w = (part.to(dtype) for part in (q, k, v, r, u, w))
    block = _block(tokens, memory) if block is None else min(block, tokens)
    blocks = -(-tokens // block)
    left = -memory % block if blocks > 1 else 0
    right = blocks * block - tokens
    scale = width**-0.5
    content, place = (
        functional.pad((q + part.unsqueeze(1)) * scale, (0, 0, 0, right)).flatten(0, 1) for part in (u, w)
    )
    k, v = (functional.pad(part, (0, 0, left, right)).flatten(0, 1) for part in (k, v))
    r = r.flip(0).transpose(0, 1)
    if first is not None:
        first = functional.pad(first - torch.arange(tokens, device=q.device), (0, right))
    out = _Blocks.apply(content, place, k, v, r, first, block, left)
    return out.unflatten(0, (batch, heads))[:, :, :tokens]


def _block(tokens: int, memory: int) -> int:
    """Half the memory wastes half of a window's scores and has few enough blocks; then blocks of equal size."""
    blocks = -(-tokens // max(32, memory // 2))
    return -(-tokens // blocks)


class _Blocks(torch.autograd.Function):
    """``content``, ``place (R, T, E)``, ``k (R, left + M + T, E)``, ``v (R, left + M + T, F)``, ``r (H, W, E)`` with the
    longest distance first, ``hidden (B, T)``: how many of the first of its W keys a query may not see; R = B H rows."""

    @staticmethod
    def forward(
        ctx: Any,
        content: Tensor,
        place: Tensor,
        k: Tensor,
        v: Tensor,
        r: Tensor,
        hidden: Tensor | None,
        block: int,
        left: int,
    ) -> Tensor:
        ctx.block, ctx.left = block, left
        out = content.new_empty(*content.shape[:2], v.shape[2])
        with torch.autocast(content.device.type, enabled=False):
            for rows, at, weights in _weights(content, place, k, r, hidden, block, left):
                count, keys = weights.shape[1], weights.shape[3]
                mixed = weights.flatten(0, 1).bmm(_windows(v[rows], at, count, block, keys).flatten(0, 1))
                out[rows, at : at + count * block] = mixed.view(weights.shape[0], count * block, -1)
        ctx.save_for_backward(content, place, k, v, r, out, *(() if hidden is None else (hidden,)))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        (g_out,) = gradients
        content, place, k, v, r, out, *rest = ctx.saved_tensors
        block, left, hidden = ctx.block, ctx.left, rest[0] if rest else None
        heads, distances = r.shape[:2]
        g_content, g_place = torch.empty_like(content), torch.empty_like(place)
        g_k, g_v, g_r = torch.zeros_like(k), torch.zeros_like(v), torch.zeros_like(r)
        total = (g_out * out).sum(-1, keepdim=True)
        with torch.autocast(content.device.type, enabled=False):
            for rows, at, weights in _weights(content, place, k, r, hidden, block, left):
                some, count, _, keys = weights.shape
                tokens = slice(at, at + count * block)

                def blocked(part: Tensor, rows: slice = rows, tokens: slice = tokens) -> Tensor:
                    return part[rows, tokens].unflatten(1, (-1, block)).flatten(0, 1)

                flat, g = weights.flatten(0, 1), blocked(g_out)
                values = _windows(v[rows], at, count, block, keys).flatten(0, 1)
                g_values = flat.mT.bmm(g)
                g_scores = torch.baddbmm(blocked(total), g, values.mT, beta=-1).mul_(flat)
                g_content[rows, tokens] = g_scores.bmm(_windows(k[rows], at, count, block, keys).flatten(0, 1)).view(
                    some, count * block, -1
                )
                g_keys = g_scores.mT.bmm(blocked(content))
                # windows overlap: their parts of one block's length do not, and are added one after the other
                step = block if content.shape[1] > block else keys
                for whole, part in ((g_k, g_keys), (g_v, g_values)):
                    part = part.view(some, count, keys, -1)
                    for start in range(0, keys, step):
                        target = whole[rows, at + start : at + start + count * step]
                        target.unflatten(1, (count, step)).add_(part[:, :, start : start + step])
                g_band = _unshift(g_scores.view_as(weights), left, distances).reshape(some, -1, distances)
                head = _heads(rows, heads, r.device)
                g_place[rows, tokens] = g_band.bmm(r[head])
                g_r.index_add_(0, head, g_band.mT.bmm(place[rows, tokens]))
        return g_content, g_place, g_k, g_v, g_r, None, None, None


def _weights(
    content: Tensor, place: Tensor, k: Tensor, r: Tensor, hidden: Tensor | None, block: int, left: int
) -> Iterator[tuple[slice, int, Tensor]]:
    """A few blocks at a time: rows of R, the first query, softmax weights ``(rows, blocks, C, keys)``."""
    total, tokens, width = content.shape
    heads, distances = r.shape[:2]
    keys, blocks = block + left + distances - 1, tokens // block
    room = 1 << 18 if content.device.type == "cpu" else 1 << 26  # numbers; a megabyte stays in the cache
    some_blocks = min(blocks, max(1, room // (block * keys)))
    some_rows = min(total, max(1, room // (some_blocks * block * keys)))
    place_in_window = torch.arange(distances, device=content.device)
    for row in range(0, total, some_rows):
        rows = slice(row, min(row + some_rows, total))
        n, head = rows.stop - row, _heads(rows, heads, r.device)
        for index in range(0, blocks, some_blocks):
            count = min(some_blocks, blocks - index)
            at, size = index * block, n * count * block * keys
            part = slice(at, at + count * block)
            band = place[rows, part].bmm(r[head].mT)
            if hidden is not None:
                batch_row = torch.arange(row, rows.stop, device=r.device) // heads
                unseen = hidden[batch_row, part]
                if _any(unseen > 0):
                    band.masked_fill_(place_in_window < unseen.unsqueeze(-1), float("-inf"))
            windows = _windows(k[rows], at, count, block, keys).flatten(0, 1)
            bias = _shift(band.view(n, count, block, distances), left).flatten(0, 1)
            scores = bias.baddbmm(content[rows, part].reshape(-1, block, width), windows.mT)
            yield rows, at, scores.softmax(-1).view(n, count, block, keys)


def _any(condition: Tensor) -> bool:
    """True where looking would cost more than the work that it saves: on an accelerator, in a compiled graph."""
    return condition.device.type != "cpu" or torch.compiler.is_compiling() or bool(condition.any())


def _heads(rows: slice, heads: int, device: torch.device) -> Tensor:
    return torch.arange(rows.start, rows.stop, device=device) % heads


def _windows(x: Tensor, at: int, count: int, block: int, keys: int) -> Tensor:
    """``(rows, S, E)`` -> ``(rows, count, keys, E)``: the keys of ``count`` blocks of queries from query ``at`` on."""
    return x[:, at : at + (count - 1) * block + keys].unfold(1, keys, block).mT


def _shift(band: Tensor, left: int) -> Tensor:
    """``(…, C, W)`` -> ``(…, C, left + W + C - 1)``: query c's scores from key ``left + c`` on, minus infinity elsewhere."""
    block, distances = band.shape[-2:]
    keys = left + distances + block - 1
    padded = functional.pad(band, (left, block), value=float("-inf"))
    return padded.flatten(-2)[..., : block * keys].unflatten(-1, (block, keys))


def _unshift(scores: Tensor, left: int, distances: int) -> Tensor:
    """What :func:`_shift` took from the band."""
    block, keys = scores.shape[-2:]
    padded = functional.pad(scores.flatten(-2), (0, block))
    return padded.unflatten(-1, (block, keys + 1))[..., left : left + distances]
