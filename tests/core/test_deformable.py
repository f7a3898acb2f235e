"""Deformable attention against explicit sums, in each of its forms."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from manyheads.core.errors import ArgumentError
from manyheads.core.functional import deformable, deformable_attention, pixel_centres, real_extent
from tests.core.largest import largest_tensor

SIZES = ((5, 7), (1, 1), (3, 2), (1, 4))


def inputs(*, sizes=SIZES, batch=2, queries=11, heads=3, width=4, points=2, boxes=False, spread=3.0):
    """Levels, references, offsets and weights; points lie in the maps and beyond their edges, off whole pixels."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    levels = [normal(batch, *size, heads * width).requires_grad_() for size in sizes]
    references = torch.rand(batch, queries, 1, 4 if boxes else 2, generator=generator, dtype=torch.float64)
    offsets = spread * normal(batch, queries, heads, len(sizes), points, 2)
    weights = normal(batch, queries, heads, len(sizes), points)
    return [levels, *(part.requires_grad_() for part in (references, offsets, weights))]


def explicit(levels, references, offsets, weights):
    """Each sample as a sum over all pixels of its level."""
    batch, queries, heads, _, points, _ = offsets.shape
    out = []
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                total = 0.0
                for n, level in enumerate(levels):
                    _, height, width, dim = level.shape
                    part = level[b].view(height, width, heads, dim // heads)[:, :, h]
                    x, y, *box = references[b, q, 0]
                    units = (box[0] * width / (2 * points), box[1] * height / (2 * points)) if box else (1, 1)
                    for k in range(points):
                        column = x * width + offsets[b, q, h, n, k, 0] * units[0] - 0.5
                        row = y * height + offsets[b, q, h, n, k, 1] * units[1] - 0.5
                        across = (1 - (column - torch.arange(width)).abs()).clamp(min=0)
                        along = (1 - (row - torch.arange(height)).abs()).clamp(min=0)
                        total = total + weights[b, q, h, n, k] * torch.einsum("i,j,ije->e", along, across, part)
                out.append(total)
    return torch.stack(out).view(batch, queries, -1)


def with_gradients(run, given):
    levels, *others = given
    y = run(levels, *others)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [*levels, *others], allow_unused=True)]


@pytest.fixture(params=["bags", "grid_sample"])
def form(request, monkeypatch):
    """The form for a CPU, and the one for other devices on a CPU."""
    monkeypatch.setattr(deformable, "_sums_bags", lambda x: request.param == "bags")


@pytest.mark.parametrize("boxes", [False, True])
@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.usefixtures("form")
def test_outputs_and_all_gradients_are_those_of_the_explicit_sums(boxes, chunk):
    given = inputs(boxes=boxes)
    found = with_gradients(lambda *parts: deformable_attention(*parts, chunk=chunk), given)
    for a, b in zip(found, with_gradients(explicit, given), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("form")
def test_many_queries_and_few_pixels_give_the_same_as_few_queries_and_many_pixels():
    """The gradient of the values is summed in two ways."""
    levels, references, offsets, weights = inputs(sizes=((9, 8),), queries=64)
    many = with_gradients(deformable_attention, [levels, references, offsets, weights])
    few = with_gradients(lambda *parts: deformable_attention(*parts, chunk=1), [levels, references, offsets, weights])
    for a, b in zip(many, few, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("form")
def test_first_and_second_derivatives_are_right():
    levels, *others = inputs(sizes=((2, 3), (1, 1)), batch=1, queries=2, heads=2, width=1, points=1, spread=1.0)

    def run(first, second, *others):
        return deformable_attention([first, second], *others)

    assert gradcheck(run, (*levels, *others))
    assert gradgradcheck(run, (*levels, *others))


@pytest.mark.usefixtures("form")
def test_only_the_wanted_gradients_are_computed():
    levels, references, offsets, weights = inputs()
    expected = with_gradients(deformable_attention, [levels, references, offsets, weights])
    places = {0: levels[0], 5: offsets, 6: weights}
    for place, wanted in places.items():
        parts = [[level.detach() for level in levels], references.detach(), offsets.detach(), weights.detach()]
        alone = wanted.detach().requires_grad_()
        if place:
            parts[place - 3] = alone
        else:
            parts[0][0] = alone
        y = deformable_attention(*parts)
        up = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (found,) = torch.autograd.grad((y * up).sum(), alone)
        torch.testing.assert_close(found, expected[[0, 1, 2, 3, 4, 6, 7][place]] if place else expected[1])


@pytest.mark.usefixtures("form")
def test_points_beyond_the_map_give_zero_without_a_gradient():
    levels, references, offsets, weights = inputs(sizes=((4, 5),))
    far = (offsets.detach().sign() * 50).requires_grad_()
    found = with_gradients(deformable_attention, [levels, references, far, weights])
    assert all((part == 0).all() for part in found)


def test_a_point_at_the_centre_of_a_pixel_gives_the_pixel():
    level = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    nowhere, whole = torch.zeros(1, 12, 2, 1, 1, 2, dtype=torch.float64), torch.ones(1, 12, 2, 1, 1)
    y = deformable_attention([level], pixel_centres(3, 4, dtype=torch.float64), nowhere, whole.double())
    torch.testing.assert_close(y, level.flatten(1, 2), rtol=0, atol=1e-12)


def test_a_lost_point_gives_nan_and_no_crash():
    levels, references, offsets, weights = inputs(sizes=((4, 5),), batch=1)
    lost = offsets.detach().clone()
    lost[0, 3] = float("nan")
    lost[0, 4] = float("inf")
    y = deformable_attention([levels[0]], references, lost.requires_grad_(), weights)
    assert y[0, 3].isnan().all()
    assert (y[0, 4] == 0).all()
    assert y[0, 5:].isfinite().all()
    y.sum().backward()


def test_half_precision_keeps_positions_of_a_large_map():
    levels, references, offsets, weights = inputs(sizes=((3, 700),), batch=1, spread=0.2)
    expected = deformable_attention(levels, references, offsets, weights)
    narrow = [levels[0].bfloat16()], references.float(), offsets.bfloat16(), weights.bfloat16()
    y = deformable_attention(*narrow)
    assert y.dtype == torch.bfloat16
    assert ((y.double() - expected).square().mean() / expected.square().mean()).sqrt() < 1e-2


def test_memory_is_bounded_by_the_chunk():
    """A map of few pixels, many queries: nothing is larger than the inputs, or than what a chunk takes."""
    given = inputs(sizes=((4, 4),), batch=1, queries=3000, heads=2, width=2, points=4)
    largest = max(part.numel() for part in (*given[0], *given[1:]))
    assert largest_tensor(lambda: with_gradients(lambda *p: deformable_attention(*p, chunk=64), given)) <= largest


def test_no_queries_give_no_output():
    levels, references, offsets, weights = inputs()
    y = deformable_attention(levels, references[:, :0], offsets[:, :0], weights[:, :0])
    assert y.shape == (2, 0, 12)
    for grad in torch.autograd.grad(y.sum(), levels):
        assert (grad == 0).all()


def test_nothing_is_told_about_sparse_matrices():
    deformable._pass_beta_notice.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_gradients(deformable_attention, inputs())


def test_the_extent_of_a_padded_image_ends_with_its_last_real_row_and_column():
    real = torch.zeros(3, 4, 5, dtype=torch.bool)
    real[0, :2, :3] = True
    real[1, 3, 0] = True
    assert real_extent(real).tolist() == [[3, 2], [1, 4], [1, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 0}, "chunk: found 0, expected 1 or more"),
        ({"levels": slice(3)}, "levels: found 3, expected 4 as in offsets"),
        ({"references": (2, 11, 1, 3)}, r"references: found shape \(2, 11, 1, 3\), expected \(2, 11, 4, 2\)"),
        ({"offsets": (2, 11, 3, 4, 2)}, r"offsets: found shape \(2, 11, 3, 4, 2\), expected \(B, Q, H, L, K, 2\)"),
        ({"weights": (2, 11, 3, 4, 1)}, r"weights: found shape \(2, 11, 3, 4, 1\), expected \(2, 11, 3, 4, 2\)"),
        ({"heads": 5}, "levels: found width 12, expected a multiple of the 5 heads"),
        ({"level": (2, 0, 3, 12)}, r"levels: found shape \(2, 0, 3, 12\), expected \(2, H, W, 12\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    levels, references, offsets, weights = inputs()
    chunk = change.get("chunk", 7)
    levels = levels[change.get("levels", slice(None))]
    references = torch.zeros(change.get("references", references.shape))
    offsets = torch.zeros(change.get("offsets", offsets.shape))
    weights = torch.zeros(change.get("weights", weights.shape))
    if "heads" in change:
        offsets, weights = offsets.new_zeros(2, 11, 5, 4, 2, 2), weights.new_zeros(2, 11, 5, 4, 2)
    if "level" in change:
        levels[1] = torch.zeros(change["level"])
    with pytest.raises(ArgumentError, match=f"deformable_attention: {message}"):
        deformable_attention(levels, references, offsets, weights, chunk=chunk)


def strided(x):
    """The same numbers, with the first two axes exchanged in memory."""
    return x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()


@pytest.mark.usefixtures("form")
def test_strided_inputs_are_fine():
    levels, *others = given = inputs(sizes=((5, 7),))
    for a, b in zip(
        with_gradients(deformable_attention, [[strided(levels[0])], *(strided(part) for part in others)]),
        with_gradients(deformable_attention, given),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
