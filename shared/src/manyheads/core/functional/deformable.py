"""Deformable attention: weighted bilinear samples of several maps around reference points (2010.04159).

    out[q, h] = sum_{l, k} a[q, h, l, k] sample(level_l[:, :, h], p[q, h, l, k])
    p = r * (W_l, H_l) + o[q, h, l, k] - 1/2                               for a point r = (x, y)
    p = r * (W_l, H_l) + o[q, h, l, k] * (w W_l, h H_l) / (2 K) - 1/2      for a box (x, y, w, h) around r

A sample at (x, y) is ``sum_ij max(0, 1 - |x - j|) max(0, 1 - |y - i|) level[i, j]``: bilinear, 0 outside the map, with
the centre of the first pixel at (0, 0). ``grid_sample`` gives the same with ``align_corners=False``.

Fast forms, in eager mode:

- A level of one pixel needs no samples: ``max(0, 1 - |x|) max(0, 1 - |y|)`` is the share of its token.
- On a CPU the samples of a query and head are one bag of ``4 K`` rows of a table, with a row for each pixel and head,
  and ``embedding_bag`` sums a bag without a copy of its rows. Its gradient by the shares is a product that is sampled
  at the entries of a sparse matrix (``sampled_addmm``). Its gradient by the table is a sum of bags as well, of the
  queries of each pixel, after one sort by the upper left pixel: the other three pixels of a sample are at fixed
  distances in a table with a border.
- Other devices run ``grid_sample``; so do compiled and exported graphs, all queries at once.

Only the inputs are saved for the backward pass, and both passes run over ``chunk`` queries at a time, so that memory
beyond inputs and outputs is ``O(chunk H K)`` and a few copies of the levels.

Axes: b batch, q queries, d width, n grid cells of a map; L levels, H heads, K points of a level.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from manyheads.core.errors import ArgumentError
from manyheads.core.functional.own_backward import is_transformed, plain_gradients

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# Queries at a time: about 100 MB at 8 heads with 4 points.
CHUNK = 32768
# Empty pixels around a map: a point that is clamped into the border has no gradient.
_BORDER = 2


def deformable_attention(
    levels: Sequence[Float[Tensor, "b _ _ d"]],
    references: Float[Tensor, "#b q #levels place"],
    offsets: Float[Tensor, "b q heads levels points 2"],
    weights: Float[Tensor, "b q heads levels points"],
    *,
    chunk: int = CHUNK,
) -> Float[Tensor, "b q d"]:
    """Sum the samples of every level at the points around each reference.

    Half precision is computed in float32, as positions need more than its digits.

    Args:
        levels: values ``(B, H_l, W_l, D)`` of each level, projected; head h takes the h-th part of D.
        references: points ``(x, y)`` or boxes ``(x, y, width, height)`` of each query, as shares of the width and the
            height of the map, 0 to 1; for each level, or one for all. (0.5 / W, 0.5 / H) is the first pixel.
        offsets: ``(x, y)``, of a point in pixels of the level, of a box in units of its half size divided by K.
        weights: a, of each sample.
        chunk: queries at a time. A compiled or exported graph takes all at once.

    Raises:
        ArgumentError: shapes that do not fit, a ``chunk`` below 1.
    """
    _check(levels, references, offsets, weights, chunk)
    wide = torch.promote_types(torch.promote_types(levels[0].dtype, offsets.dtype), torch.float32)
    heads = offsets.shape[2]
    # The scope of an autocast would narrow what is widened here.
    with torch.autocast(offsets.device.type, enabled=False):
        every_weight, every_offset = weights.to(wide).unbind(3), offsets.to(wide).unbind(3)
        every_reference = references.to(wide).expand(-1, -1, len(levels), -1).unbind(2)
        out: Tensor | None = None
        for level, reference, offset, weight in zip(levels, every_reference, every_offset, every_weight, strict=True):
            height, width = level.shape[1:3]
            points = _points(reference, offset, width, height)
            if height * width == 1:
                near = (1 - points.abs()).relu()
                share = (weight * near[..., 0] * near[..., 1]).sum(-1, keepdim=True)
                only = level.to(wide).reshape(-1, 1, heads, level.shape[-1] // heads)
                out = share * only if out is None else torch.addcmul(out, share, only)
            else:
                part = _sampled(level.to(wide), points, weight, chunk).unflatten(-1, (heads, -1))
                out = part if out is None else out + part
        assert out is not None
        return out.flatten(2).to(levels[0].dtype)


def pixel_centres(
    height: int, width: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Float[Tensor, "1 n 1 2"]:
    """References ``(x, y)`` of every pixel of a map, ``((j + 1/2) / W, (i + 1/2) / H)``, in raster order."""
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
    return torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)], -1).view(1, -1, 1, 2)


def real_extent(real: Bool[Tensor, "b height width"]) -> Int[Tensor, "b 2"]:
    """Width and height of the part of each map up to its last real column and row, 1 at least."""
    sizes = []
    for other in (1, 2):
        some = real.any(other)
        place = torch.arange(1, some.shape[1] + 1, device=real.device)
        sizes.append((some * place).amax(1).clamp(min=1))
    return torch.stack(sizes, -1)


def _check(levels: Sequence[Tensor], references: Tensor, offsets: Tensor, weights: Tensor, chunk: int) -> None:
    name = "deformable_attention"
    if chunk < 1:
        raise ArgumentError(f"{name}: chunk: found {chunk}, expected 1 or more")
    if offsets.dim() != 6 or offsets.shape[5] != 2:
        raise ArgumentError(f"{name}: offsets: found shape {tuple(offsets.shape)}, expected (B, Q, H, L, K, 2)")
    batch, queries, heads, count, points = offsets.shape[:5]
    if weights.shape != offsets.shape[:5]:
        expected = (batch, queries, heads, count, points)
        raise ArgumentError(f"{name}: weights: found shape {tuple(weights.shape)}, expected {expected}")
    if len(levels) != count or not levels:
        raise ArgumentError(f"{name}: levels: found {len(levels)}, expected {max(count, 1)} as in offsets")
    dim = levels[0].shape[-1]
    if dim % heads:
        raise ArgumentError(f"{name}: levels: found width {dim}, expected a multiple of the {heads} heads")
    for level in levels:
        if level.dim() != 4 or level.shape[0] != batch or level.shape[3] != dim or 0 in level.shape[1:3]:
            raise ArgumentError(
                f"{name}: levels: found shape {tuple(level.shape)}, expected ({batch}, H, W, {dim}), a pixel or more"
            )
    if (
        references.dim() != 4
        or references.shape[0] not in (1, batch)
        or references.shape[1] != queries
        or references.shape[2] not in (1, count)
        or references.shape[3] not in (2, 4)
    ):
        raise ArgumentError(
            f"{name}: references: found shape {tuple(references.shape)}, expected ({batch}, {queries}, {count}, 2), or "
            "4 for boxes, with 1 for what all rows or levels share"
        )


def _points(reference: Tensor, offset: Tensor, width: int, height: int) -> Tensor:
    """Positions ``(B, Q, H, K, 2)`` in pixels of a level."""
    x, y = reference[..., 0] * width, reference[..., 1] * height
    if reference.shape[-1] == 4:
        unit = torch.stack([reference[..., 2] * width, reference[..., 3] * height], -1) / (2 * offset.shape[3])
        offset = offset * unit[:, :, None, None]
    return offset + (torch.stack([x, y], -1) - 0.5)[:, :, None, None]


def _sampled(values: Tensor, points: Tensor, weights: Tensor, chunk: int) -> Tensor:
    # Torch's older exporter to ONNX traces.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return _by_grid_sample(values, points, weights)
    if is_transformed():
        return _by_gathers(values, points, weights)
    return _Sampled.apply(values, points, weights, chunk)


def _by_grid_sample(values: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """The form that other devices, compilers and exporters know."""
    heads, (height, width) = weights.shape[2], values.shape[1:3]
    maps = values.unflatten(-1, (heads, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    x, y = points.transpose(1, 2).flatten(0, 1).unbind(-1)
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    samples = functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    summed = (samples * weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)).sum(-1)
    return summed.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)


def _by_gathers(values: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """The form with every derivative: ``grid_sample`` has first ones only."""
    (height, width), heads, count = values.shape[1:3], *weights.shape[2:]
    rows = values.flatten(1, 2).unflatten(-1, (heads, -1))
    corner = points.detach().floor()
    right, down = (points - corner).unbind(-1)
    total = 0.0
    for i, of_row in enumerate((1 - down, down)):
        for j, of_column in enumerate((1 - right, right)):
            x, y = corner[..., 0].long() + j, corner[..., 1].long() + i
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).transpose(2, 3).flatten(1, 2)
            taken = rows.gather(1, index.unsqueeze(-1).expand(-1, -1, -1, rows.shape[-1])).unflatten(1, (-1, count))
            share = torch.where(inside, weights * of_row * of_column, 0.0)
            total = total + (taken * share.transpose(2, 3).unsqueeze(-1)).sum(2)
    assert isinstance(total, Tensor)
    return total.flatten(2)


class _Sampled(torch.autograd.Function):
    """The samples of a level in chunks, with nothing but the inputs saved."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, points: Tensor, weights: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(values, points, weights)
        ctx.chunk = chunk
        return (_bags if _sums_bags(values) else _grid_chunks)(values, points, weights, chunk)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *plain_gradients(_by_gathers, ctx.saved_tensors, *gradients), None
        backward = _bags_backward if _sums_bags(gradients[0]) else _grid_chunks_backward
        return *backward(*gradients, *ctx.saved_tensors, ctx.chunk, ctx.needs_input_grad[:3]), None


def _sums_bags(x: Tensor) -> bool:
    return x.device.type == "cpu"


# Chunks of grid_sample.


def _grid_chunks(values: Tensor, points: Tensor, weights: Tensor, chunk: int) -> Tensor:
    parts = zip(points.split(chunk, 1), weights.split(chunk, 1), strict=True)
    return torch.cat([_by_grid_sample(values, p, w) for p, w in parts], 1)


def _grid_chunks_backward(
    gradient: Tensor, values: Tensor, points: Tensor, weights: Tensor, chunk: int, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    wanted = [index for index in range(3) if needed[index]]
    of_values = torch.zeros_like(values) if needed[0] else None
    parts: dict[int, list[Tensor]] = {1: [], 2: []}
    for g, p, w in zip(gradient.split(chunk, 1), points.split(chunk, 1), weights.split(chunk, 1), strict=True):
        inputs = [part.detach().requires_grad_(need) for part, need in zip((values, p, w), needed, strict=True)]
        with torch.enable_grad():
            out = _by_grid_sample(*inputs)
        for index, found in zip(wanted, torch.autograd.grad(out, [inputs[i] for i in wanted], g), strict=True):
            if of_values is not None and index == 0:
                of_values += found
            else:
                parts[index].append(found)
    return of_values, *(torch.cat(parts[index], 1) if needed[index] else None for index in (1, 2))


# Bags of rows.


class _Corners(NamedTuple):
    """The four pixels around each sample of a chunk of R queries."""

    first: Tensor  # (R, H, K), the table row of the upper left pixel
    index: Tensor  # (R H, 4 K), the table rows of all four
    shares: Tensor  # (R, H, K, 4)
    right: Tensor  # (R, H, K), fractions of a pixel
    down: Tensor


class _Table:
    """Values as rows of one head of one pixel, ``(B (H_l + 4) (W_l + 4) H, E)``: maps with a border of empty pixels."""

    def __init__(self, values: Tensor, points: Tensor, chunk: int) -> None:
        _, self.height, self.width, dim = values.shape
        batch, self.queries, self.heads, count = points.shape[:4]
        border = (_BORDER, _BORDER)
        self.padded = functional.pad(values.contiguous(), (0, 0, *border, *border))
        self.rows = self.padded.view(-1, dim // self.heads)
        line = self.padded.shape[2] * self.heads
        self.map_rows = self.padded.shape[1] * line
        entries = min(chunk, batch * self.queries) * self.heads * 4 * count
        self.integers = torch.int32 if max(len(self.rows), entries) < 2**31 else torch.int64
        # Distances of the four pixels from the first.
        self.corners = (0, self.heads, line, line + self.heads)
        self.line = line

    def locate(self, points: Tensor, weights: Tensor, start: int) -> _Corners:
        """The pixels of ``points (R, H, K, 2)``, of the queries ``start … start + R`` counted over the batch."""
        points = points.maximum(points.new_tensor(-_BORDER)).minimum(points.new_tensor([self.width, self.height]))
        corner = points.floor()
        right, down = (part.contiguous() for part in (points - corner).unbind(-1))
        # NaN stays in the fractions, and so in the output.
        x, y = corner.nan_to_num(0.0).to(self.integers).unbind(-1)
        row = torch.arange(start, start + len(points)).div(self.queries, rounding_mode="floor") * self.map_rows
        own = row.view(-1, 1) + torch.arange(self.heads) + _BORDER * (self.line + self.heads)
        first = own.to(self.integers).unsqueeze(-1) + x * self.heads + y * self.line
        lower = weights * down
        upper = weights - lower
        lower_right, upper_right = lower * right, upper * right
        shares = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], -1)
        index = first.unsqueeze(-1) + torch.tensor(self.corners, dtype=self.integers)
        return _Corners(first, index.view(-1, 4 * points.shape[2]), shares, right, down)


def _bags(values: Tensor, points: Tensor, weights: Tensor, chunk: int) -> Tensor:
    table, out = _Table(values, points, chunk), []
    every = zip(points.flatten(0, 1).split(chunk), weights.flatten(0, 1).split(chunk), strict=True)
    for at, (p, w) in enumerate(every):
        found = table.locate(p, w, at * chunk)
        shares = found.shares.view(found.index.shape)
        out.append(functional.embedding_bag(found.index, table.rows, mode="sum", per_sample_weights=shares))
    return (out[0] if len(out) == 1 else torch.cat(out)).view(*points.shape[:2], values.shape[-1])


def _bags_backward(
    gradient: Tensor, values: Tensor, points: Tensor, weights: Tensor, chunk: int, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    table = _Table(values, points, chunk)
    of_table = torch.zeros_like(table.padded) if needed[0] else None
    # Contiguous, whatever the inputs are, so that the parts of a chunk are views.
    of_points, of_weights = points.new_empty(points.shape), weights.new_empty(weights.shape)
    every = (part.flatten(0, 1).split(chunk) for part in (points, weights, gradient))
    into = zip(of_points.flatten(0, 1).split(chunk), of_weights.flatten(0, 1).split(chunk), strict=True)
    for at, (p, w, g, (of_p, of_w)) in enumerate(zip(*every, into, strict=True)):
        found, rows = table.locate(p, w, at * chunk), g.reshape(-1, table.rows.shape[1])
        if any(needed[1:]):
            _differentiate_shares(table, found, w, rows, of_p, of_w)
        if of_table is not None:
            _differentiate_table(table, found, rows, of_table.view(table.rows.shape))
    inside = slice(_BORDER, -_BORDER)
    of_values = None if of_table is None else of_table[:, inside, inside]
    return of_values, of_points if needed[1] else None, of_weights if needed[2] else None


def _differentiate_shares(
    table: _Table, found: _Corners, weights: Tensor, gradient: Tensor, of_points: Tensor, of_weights: Tensor
) -> None:
    """Write the gradients of points and weights, from the products of each bag's gradient with its rows."""
    _pass_beta_notice()
    entries, size = found.index.numel(), found.index.shape[1]
    pattern = torch.sparse_csr_tensor(
        torch.arange(0, entries + 1, size, dtype=table.integers),
        found.index.flatten(),
        gradient.new_zeros(entries),
        (len(gradient), len(table.rows)),
        check_invariants=False,
    )
    products = torch.sparse.sampled_addmm(pattern, gradient, table.rows.t(), beta=0.0).values()
    left_up, right_up, left_down, right_down = products.view(found.shares.shape).unbind(-1)
    up, down = torch.lerp(left_up, right_up, found.right), torch.lerp(left_down, right_down, found.right)
    torch.lerp(up, down, found.down, out=of_weights)
    by_x = torch.lerp(right_up - left_up, right_down - left_down, found.down)
    torch.stack([by_x * weights, (down - up) * weights], -1, out=of_points)


def _differentiate_table(table: _Table, found: _Corners, gradient: Tensor, of_table: Tensor) -> None:
    """Add the gradient of the table: each row gets the gradients of the bags that it is in."""
    first = found.first.flatten()
    if not len(first):
        return
    start, last = (int(row) for row in first.aminmax())
    # Queries in raster order reach a band of the table only.
    stop = last + 1
    if 2 * len(first) < stop - start:
        # A few queries: the sum of a bag for each row of the band costs more than their rows one by one.
        parts = found.shares.view(*found.index.shape, 1) * gradient.unsqueeze(1)
        of_table.index_add_(0, found.index.flatten(), parts.flatten(0, 1))
        return
    key, order = first.sort()
    count = torch.bincount(key - start, minlength=stop - start)
    begin = (count.cumsum(0) - count).to(table.integers)
    bag = order.div(found.first.shape[2], rounding_mode="floor").to(table.integers)
    shares = found.shares.view(-1, 4).index_select(0, order).t().contiguous()
    for corner, share in zip(table.corners, shares, strict=True):
        summed = functional.embedding_bag(bag, gradient, begin, mode="sum", per_sample_weights=share)
        of_table[start + corner : stop + corner] += summed


@functools.cache
def _pass_beta_notice() -> None:
    """Make the first sparse matrix of the process, at which torch tells, once, that these are in beta state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1), check_invariants=False)
