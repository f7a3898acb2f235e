"""Maths without parameters against explicit sums."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from manyheads.core import Mask, create
from manyheads.core.errors import ArgumentError
from manyheads.core.functional import (
    Partial,
    attention,
    attention_with_lse,
    empty_partial,
    fast_length,
    fft_convolution,
    finish,
    grid_fft_convolution,
    merge,
    pack,
    pack_order,
    partial_attention,
    segment_ids,
    segment_starts,
    unpack,
    windowed_attention,
)


def qkv(tokens=5, keys=7, width=4, value_width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, tokens, width), (2, 3, keys, width), (2, 3, keys, value_width))
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def explicit(q, k, v, allowed):
    scores = torch.einsum("bhte,bhse->bhts", q, k) / 2.0
    weights = torch.exp(scores) * allowed
    total = weights.sum(-1, keepdim=True)
    return weights @ v / total.clamp_min(1e-300), total.squeeze(-1).log()


@pytest.mark.parametrize("value_width", [3, 4, 6])
def test_attention_equals_the_explicit_sum_for_any_value_width(value_width):
    q, k, v = qkv(value_width=value_width)
    expected, _ = explicit(q, k, v, torch.ones(5, 7))
    torch.testing.assert_close(attention(q, k, v), expected, rtol=0, atol=1e-12)


def test_log_sum_exp_and_its_gradient_are_exact():
    q, k, v = qkv()
    allowed = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    allowed[2] = False
    out, lse = attention_with_lse(q, k, v, allowed=allowed)
    expected, expected_lse = explicit(q, k, v, allowed)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)
    assert (out[:, :, 2] == 0).all()
    assert (lse[:, :, 2] == float("-inf")).all()
    some = allowed.any(-1)
    assert gradcheck(lambda *t: [r[:, :, some] for r in attention_with_lse(*t, allowed=allowed)], (q, k, v))


def test_gradient_of_a_fully_masked_row_is_finite():
    q, k, v = qkv()
    out, lse = attention_with_lse(q, k, v, allowed=torch.zeros(5, 7, dtype=torch.bool))
    grads = torch.autograd.grad(out.sum() + lse.masked_fill(lse.isinf(), 0).sum(), (q, k, v))
    assert all(g.isfinite().all() for g in grads)


def test_merged_parts_equal_the_whole_with_all_gradients():
    q, k, v = qkv()
    whole = attention_with_lse(q, k, v)
    parts = [partial_attention(q, k[:, :, c], v[:, :, c]) for c in (slice(0, 2), slice(2, 3), slice(3, 7))]
    merged = finish(merge(merge(parts[0], parts[1]), parts[2]))
    other = finish(merge(parts[0], merge(parts[1], parts[2])))
    for a, b, c in zip(merged, other, whole, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=1e-12)
        torch.testing.assert_close(b, c, rtol=0, atol=1e-12)
    weights = [torch.randn_like(part) for part in whole]
    found = torch.autograd.grad(sum((a * w).sum() for a, w in zip(merged, weights, strict=True)), (q, k, v))
    expected = torch.autograd.grad(sum((a * w).sum() for a, w in zip(whole, weights, strict=True)), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_gradient_of_the_merge_is_its_derivative():
    generator = torch.Generator().manual_seed(3)
    shapes = ((4,), (4,), (4, 2)) * 2
    tensors = [torch.rand(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]

    assert gradcheck(lambda *t: tuple(merge(Partial(*t[:3]), Partial(*t[3:]))), tensors)


def test_empty_partial_is_neutral_without_nan():
    q, k, v = qkv()
    part = partial_attention(q, k, v)
    for merged in (merge(part, empty_partial(part)), merge(empty_partial(part), part)):
        for a, b in zip(merged, part, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    out, lse = finish(merge(empty_partial(part), empty_partial(part)))
    assert (out == 0).all()
    assert (lse == float("-inf")).all()
    masked = partial_attention(q, k, v, allowed=torch.zeros(5, 7, dtype=torch.bool))
    grads = torch.autograd.grad(finish(merge(masked, part))[0].sum(), (q, k, v))
    assert all(g.isfinite().all() for g in grads)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5))
def test_fft_convolution_equals_the_sum(tokens, taps, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, tokens, generator=generator, dtype=torch.float64)
    kernel = torch.randn(3, taps, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for k in range(min(t + 1, taps)):
            expected[..., t] += kernel[:, k] * x[..., t - k]
    torch.testing.assert_close(fft_convolution(x, kernel), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("grid", "taps"), [((5,), (3,)), ((3, 5), (3, 5)), ((4, 3), (2, 7)), ((2, 3, 4), (2, 1, 4))])
def test_grid_fft_convolution_equals_the_sum_over_the_orthant(grid, taps):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *grid, generator=generator, dtype=torch.float64)
    kernel = torch.randn(3, *taps, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for p in itertools.product(*map(range, grid)):
        for q in itertools.product(*(range(min(at + 1, size)) for at, size in zip(p, taps, strict=True))):
            expected[(..., *p)] += kernel[(..., *q)] * x[(..., *(a - b for a, b in zip(p, q, strict=True)))]
    torch.testing.assert_close(grid_fft_convolution(x, kernel, axes=len(grid)), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("grid", "taps", "centre"),
    [
        ((5,), (9,), (4,)),
        ((4,), (12,), (7,)),
        ((3, 5), (5, 9), (2, 4)),
        ((4, 3), (2, 7), (1, 5)),
        ((3, 3), (3, 3), (0, 1)),
    ],
)
def test_grid_fft_convolution_round_a_centre_equals_the_sum(grid, taps, centre):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *grid, generator=generator, dtype=torch.float64)
    kernel = torch.randn(3, *taps, generator=generator, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for p in itertools.product(*map(range, grid)):
        for q in itertools.product(*map(range, grid)):
            tap = tuple(c + a - b for a, b, c in zip(p, q, centre, strict=True))
            if all(0 <= at < size for at, size in zip(tap, taps, strict=True)):
                expected[(..., *p)] += kernel[(..., *tap)] * x[(..., *q)]
    found = grid_fft_convolution(x, kernel, axes=len(grid), centre=centre)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_fft_convolution_is_differentiable_and_refuses_what_it_cannot_do():
    x, kernel = torch.randn(2, 5, dtype=torch.float64).requires_grad_(), torch.randn(3, dtype=torch.float64)
    assert gradcheck(fft_convolution, (x, kernel.requires_grad_()))
    assert fft_convolution(x[:, :0], kernel).shape == (2, 0)
    with pytest.raises(ArgumentError, match="real input"):
        fft_convolution(x.to(torch.complex128), kernel)
    with pytest.raises(ArgumentError, match="at least one tap"):
        fft_convolution(x, kernel[:0])


@given(st.integers(1, 5000))
def test_fast_length_is_the_smallest_product_of_small_primes(length):
    def smooth(n):
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    expected = next(n for n in range(length, 2 * length + 1) if smooth(n))
    assert fast_length(length) == expected


def test_segments_count_resets():
    reset = torch.tensor([[False, True, False, True, True], [True, False, False, False, False]])
    assert segment_ids(reset).tolist() == [[0, 1, 1, 2, 3], [1, 1, 1, 1, 1]]
    assert segment_starts(reset).tolist() == [[0, 1, 1, 3, 4], [0, 0, 0, 0, 0]]


def test_packing_moves_real_tokens_left_and_back():
    padding = torch.tensor([[False, True, True, False], [True, True, True, True], [False, False, False, False]])
    x = torch.arange(24.0).reshape(3, 4, 2)
    order, real = pack_order(padding)
    packed = pack(x, order)
    assert packed[0, :2].tolist() == x[0, 1:3].tolist()
    assert real.sum(1).tolist() == [2, 4, 0]
    assert torch.equal(unpack(packed, order, real), x * padding.unsqueeze(-1))


@pytest.mark.parametrize(("tokens", "window"), [(150, 5), (150, 70), (130, 1), (64, 64), (3, 8)])
def test_windowed_attention_is_dense_attention_in_a_band(tokens, window):
    generator = torch.Generator().manual_seed(window)
    keys = tokens + window - 1
    q, k, v = qkv(tokens, keys, seed=tokens)
    usable = torch.rand(2, keys, generator=generator) < 0.8
    segments = (torch.rand(2, keys, generator=generator) < 0.03).cumsum(1)
    row, column = torch.arange(tokens).unsqueeze(1), torch.arange(keys)
    allowed = ((column >= row) & (column < row + window)) & usable[:, None, :]
    allowed = (allowed & (segments[:, window - 1 :, None] == segments[:, None, :])).unsqueeze(1)
    found = windowed_attention(q, k, v, window=window, usable=usable, segments=segments, scale=0.5)
    expected, _ = explicit(q, k, v, allowed)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_window_over_many_blocks_with_padding_and_resets_is_what_its_chunks_give():
    generator = torch.Generator().manual_seed(0)
    layer = create("softmax", dim=8, heads=2, causal=True, window=9).double()
    x = torch.randn(2, 200, 8, generator=generator, dtype=torch.float64)
    padding, reset = torch.rand(2, 200, generator=generator) < 0.7, torch.rand(2, 200, generator=generator) < 0.02
    whole, state, parts = layer(x, mask=Mask(padding=padding, reset=reset)), None, []
    for part in torch.arange(200).split(37):
        y, state, _ = layer(x[:, part], state, mask=Mask(padding=padding[:, part], reset=reset[:, part]))
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole.y, rtol=0, atol=1e-12)
    torch.testing.assert_close(state, whole.state, rtol=0, atol=1e-12)
