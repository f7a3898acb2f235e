"""Windowed softmax attention with scores that depend on content and on distance (1901.02860), without parameters.

    score[i, j] = ((q_i + u) . k_j + (q_i + w) . r_{i - j}) / sqrt(E),   0 <= i - j <= M
    out_i = sum_j softmax_j(score[i, j]) v_j

Axes of the public function: b batch, h heads, t queries, s = M + T keys, w = M + 1 distances, e key width, f value
width; M tokens of memory, so that query t is at the position of key M + t. Inside: C queries of a block, S keys that a
block sees, R = B H rows.

Queries are computed in blocks of C, each of which sees ``S = C + M`` keys or a few more. The distance term is one
product with the W distances, moved to the keys along the diagonals (the relative shift). Time ``O(T S (E + F))`` for
each head. A few blocks are computed at a time, so that their scores stay in the cache. The weights are kept for the
backward pass up to 64 MB and recomputed beyond. Relative scores are a bias that needs a gradient, for which torch has
no fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.functional.own_backward import must_be_plain, plain_gradients

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Scores that are computed at a time on a CPU: a megabyte.
_CACHED = 1 << 18
# Weights that are kept for the backward pass.
_KEPT = 1 << 24


def sinusoids(distances: Float[Tensor, "w"], dim: int) -> Float[Tensor, "w d"]:
    """Sines of ``distance / 10000^(2 i / D)`` in the first half of D = ``dim`` (rounded up), then cosines."""
    half = (dim + 1) // 2
    exponent = torch.arange(half, device=distances.device, dtype=distances.dtype) * (-2.0 / dim)
    angles = distances.unsqueeze(-1) * torch.pow(10000.0, exponent)
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :dim]


def relative_attention(
    q: Float[Tensor, "b h t e"],
    k: Float[Tensor, "b h s e"],
    v: Float[Tensor, "b h s f"],
    r: Float[Tensor, "s-t+1 h e"],
    u: Float[Tensor, "h e"],
    w: Float[Tensor, "h e"],
    *,
    first: Int[Tensor, "b t"] | None = None,
    block: int | None = None,
) -> Float[Tensor, "b h t f"]:
    """Windowed relative attention: query t attends to the keys ``max(t, first[b, t])`` to ``M + t``.

    All keys and values must be finite, even those that no query sees. Half precision is computed in float32.

    Args:
        r: the vectors of the distances 0 to M.
        u: the content bias.
        w: the position bias.
        first: the first key of each query, at most ``M + t``, so that a query always sees its own key; 0 by default.
        block: C; by default at most M / 4, or 32 if that is more, such that blocks are of equal size.
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
    content, place = (_padded(torch.add((part * scale).unsqueeze(1), q, alpha=scale), 0, right) for part in (u, w))
    k, v = (_padded(part, left, right) for part in (k, v))
    r = r.flip(0).transpose(0, 1)
    room = _KEPT if torch.is_grad_enabled() else 0
    if first is not None:
        first = functional.pad(first - torch.arange(tokens, device=q.device), (0, right))
    if must_be_plain():
        out = _plain(content, place, k, v, r, first, block, left)
    else:
        out = _Blocks.apply(content, place, k, v, r, first, block, left, room)
    return out.unflatten(0, (batch, heads))[:, :, :tokens]


def _padded(x: Tensor, left: int, right: int) -> Tensor:
    """Zeros around the tokens: ``(B, H, T, E)`` to ``(B H, left + T + right, E)``; no copy if there are none."""
    return (functional.pad(x, (0, 0, left, right)) if left or right else x).flatten(0, 1)


def _block(tokens: int, memory: int) -> int:
    """C: blocks of equal size, of about a quarter of the memory, which wastes a fifth of the scores of a block."""
    blocks = -(-tokens // max(32, memory // 4))
    return -(-tokens // blocks)


def _plain(
    content: Tensor, place: Tensor, k: Tensor, v: Tensor, r: Tensor, hidden: Tensor | None, block: int, left: int
) -> Tensor:
    """The output of :class:`_Blocks`, all blocks at once and by operations that torch differentiates."""
    heads, distances = r.shape[:2]
    every, keys = slice(0, content.shape[1]), block + left + distances - 1
    with torch.autocast(content.device.type, enabled=False):
        band = place.unflatten(0, (-1, heads)) @ r.mT  # (B, H, T, W)
        if hidden is not None:
            unseen = torch.arange(distances, device=r.device) < hidden.unsqueeze(-1)
            band = band.masked_fill(unseen.unsqueeze(1), float("-inf"))
        scores = _shift(_blocked(band.flatten(0, 1), block), left)
        scores = scores + _blocked(content, block) @ _windows(k, every, block, keys).mT
        return (scores.softmax(-1) @ _windows(v, every, block, keys)).view(*content.shape[:2], -1)


class _Blocks(torch.autograd.Function):
    """Relative attention in blocks, with its own backward pass.

    Shapes: ``content (R, T, E)``, the queries plus u; ``place (R, T, E)``, the queries plus w; ``k (R, left + M + T,
    E)``; ``v (R, left + M + T, F)``; ``r (H, W, E)``, longest distance first; ``hidden (B, T)``, how many of the first
    of its W keys a query may not see.
    """

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
        room: int,
    ) -> Tensor:
        out = content.new_empty(*content.shape[:2], v.shape[2])
        kept: list[Tensor] = []
        with torch.autocast(content.device.type, enabled=False):
            for rows, tokens, weights in _weights(content, place, k, r, hidden, block, left):
                values = _windows(v[rows], tokens, block, weights.shape[2])
                out[rows, tokens] = weights.bmm(values).view(rows.stop - rows.start, -1, v.shape[2])
                room -= weights.numel()
                if room >= 0:
                    kept.append(weights)
        ctx.save_for_backward(content, place, k, v, r, hidden, *kept)
        ctx.block, ctx.left = block, left
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        (g_out,) = gradients
        content, place, k, v, r, hidden, *kept = ctx.saved_tensors
        block, left = ctx.block, ctx.left
        if torch.is_grad_enabled():
            return *plain_gradients(_plain, (content, place, k, v, r, hidden, block, left), g_out), None
        heads, distances = r.shape[:2]
        g_content, g_place = torch.empty_like(content), torch.empty_like(place)
        g_k, g_v, g_r = torch.zeros_like(k), torch.zeros_like(v), torch.zeros_like(r)
        with torch.autocast(content.device.type, enabled=False):
            for rows, tokens, weights in _weights(content, place, k, r, hidden, block, left, kept):
                some, keys = rows.stop - rows.start, weights.shape[2]
                g = _blocked(g_out[rows, tokens], block)
                g_weights = g.bmm(_windows(v[rows], tokens, block, keys).mT)
                g_scores = torch._softmax_backward_data(g_weights, weights, -1, weights.dtype)
                g_queries = g_scores.bmm(_windows(k[rows], tokens, block, keys))
                g_content[rows, tokens] = g_queries.view(some, -1, k.shape[2])
                _add_windows(g_k[rows], g_scores.mT.bmm(_blocked(content[rows, tokens], block)), tokens, block)
                _add_windows(g_v[rows], weights.mT.bmm(g), tokens, block)
                g_band = _diagonals(g_scores, left, distances).reshape(some, -1, distances)
                head = _heads(rows, heads, r.device)
                g_place[rows, tokens] = g_band.bmm(r[head])
                g_r.index_add_(0, head, g_band.mT.bmm(place[rows, tokens]))
        return g_content, g_place, g_k, g_v, g_r, None, None, None, None


def _weights(
    content: Tensor,
    place: Tensor,
    k: Tensor,
    r: Tensor,
    hidden: Tensor | None,
    block: int,
    left: int,
    kept: Sequence[Tensor] = (),
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Softmax weights ``(rows blocks, C, S)`` of a few blocks at a time, with their slices of R and of the queries.

    Weights in ``kept`` are not recomputed.
    """
    total, length, _ = content.shape
    heads, distances = r.shape[:2]
    keys, blocks = block + left + distances - 1, length // block
    room = _CACHED if content.device.type == "cpu" else 1 << 26
    some_blocks = min(blocks, max(1, room // (block * keys)))
    some_rows = min(total, max(1, room // (some_blocks * block * keys)))
    # Entries off the diagonals are minus infinity. They stay so when the next scores are written along the diagonals.
    buffer = content.new_full((some_rows * some_blocks, block, keys), float("-inf"))
    starts = [(row, at) for row in range(0, total, some_rows) for at in range(0, blocks, some_blocks)]
    for index, (row, at) in enumerate(starts):
        rows = slice(row, min(row + some_rows, total))
        tokens = slice(at * block, min(at + some_blocks, blocks) * block)
        if index < len(kept):
            yield rows, tokens, kept[index]
            continue
        band = place[rows, tokens].bmm(r[_heads(rows, heads, r.device)].mT)
        if hidden is not None:
            unseen = hidden[torch.arange(row, rows.stop, device=r.device) // heads, tokens]
            # On a CPU the test costs less than the mask.
            if unseen.device.type != "cpu" or bool((unseen > 0).any()):
                window = torch.arange(distances, device=r.device)
                band = band.masked_fill(window < unseen.unsqueeze(-1), float("-inf"))
        band = _blocked(band, block)
        scores = buffer[: band.shape[0]]
        _diagonals(scores, left, distances).copy_(band)
        scores.baddbmm_(_blocked(content[rows, tokens], block), _windows(k[rows], tokens, block, keys).mT)
        yield rows, tokens, scores.softmax(-1)


def _heads(rows: slice, heads: int, device: torch.device) -> Tensor:
    return torch.arange(rows.start, rows.stop, device=device) % heads


def _blocked(x: Tensor, block: int) -> Tensor:
    """Blocks of queries: ``(rows, tokens, E)`` to ``(rows blocks, C, E)``."""
    return x.reshape(-1, block, x.shape[2])


def _windows(x: Tensor, tokens: slice, block: int, keys: int) -> Tensor:
    """The keys that the blocks of these queries see: ``(rows, left + M + T, E)`` to ``(rows blocks, S, E)``."""
    seen = x[:, tokens.start : tokens.stop - block + keys]
    return seen.unfold(1, keys, block).mT.flatten(0, 1)


def _add_windows(x: Tensor, windows: Tensor, tokens: slice, block: int) -> None:
    """Add windows in place to ``x``: the adjoint of :func:`_windows`.

    Windows overlap; their parts of the length of a block do not.
    """
    count, keys = (tokens.stop - tokens.start) // block, windows.shape[1]
    windows = windows.unflatten(0, (-1, count))
    step = block if count > 1 else keys
    for start in range(0, keys, step):
        target = x[:, tokens.start + start : tokens.start + start + count * step]
        target.unflatten(1, (count, step)).add_(windows[:, :, start : start + step])


def _shift(band: Tensor, left: int) -> Tensor:
    """Relative shift ``(…, C, W)`` to ``(…, C, S)``: scores of query c from key ``left + c`` on, -inf elsewhere."""
    block, distances = band.shape[-2:]
    keys = left + distances + block - 1
    padded = functional.pad(band, (left, block), value=float("-inf"))
    return padded.flatten(-2)[..., : block * keys].unflatten(-1, (block, keys))


def _diagonals(scores: Tensor, left: int, distances: int) -> Tensor:
    """The inverse of :func:`_shift`, as a view: ``(…, C, S)`` to ``(…, C, W)``."""
    return scores.flatten(-2)[..., left:].unfold(-1, distances, scores.shape[-1] + 1)
