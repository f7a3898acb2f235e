"""Stream-K schedules against the published counts, and decoding against an explicit softmax over the cache."""

from __future__ import annotations

import importlib
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manyheads.core.errors import ArgumentError
from manyheads.core.functional import (
    Partial,
    attention_with_lse,
    finish,
    flash_attention_schedule,
    flash_decoding_schedule,
    flash_decoding_splits,
    fused_attention_backward,
    fused_attention_with_lse,
    merge,
    partial_attention,
    stream_k,
)
from manyheads.core.methods import lean_decode as method
from manyheads.core.methods.lean_decode import decode_splits, lean_decode, split_decode

attention_module = importlib.import_module("manyheads.core.functional.attention")  # a function has its name too

WORKERS, TILE = 108, 256
PUBLISHED = [  # outputs B H, tokens; tiles of time: FlashAttention, FlashDecoding, stream-K
    (1 * 32, 4096, 16, 6, 5),
    (1 * 56, 65536, 256, 156, 133),
    (4 * 32, 16384, 128, 88, 76),
]
RAGGED = (100, 1000, 3000, 6000, 12000)


def every_tile(schedule):
    return sorted((s.output, tile) for spans in schedule.workers for s in spans for tile in range(s.start, s.stop))


def explicit(q, k, v, lengths=None, scale=None):
    """Softmax row by row, head by head."""
    batch, heads, _, width = q.shape
    shared = heads // k.shape[1]
    scale = width**-0.5 if scale is None else scale
    rows = []
    for b in range(batch):
        n = k.shape[2] if lengths is None else int(lengths[b])
        for h in range(heads):
            if n == 0:
                rows.append(torch.zeros(v.shape[-1], dtype=v.dtype) + 0 * q[b, h].sum())
                continue
            scores = (k[b, h // shared, :n] @ q[b, h, 0]) * scale
            rows.append(torch.softmax(scores, 0) @ v[b, h // shared, :n])
    return torch.stack(rows).reshape(batch, heads, 1, -1)


def cache(batch=2, heads=4, caches=4, tokens=37, width=8, value_width=8, *, dtype=torch.float64, factor=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, 1, width), (batch, caches, tokens, width), (batch, caches, tokens, value_width))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q * factor, k, v


@pytest.mark.parametrize(("outputs", "tokens", "flash", "decoding", "lean"), PUBLISHED)
def test_time_of_the_three_schedules_is_the_published_one(outputs, tokens, flash, decoding, lean):
    tiles = [tokens // TILE] * outputs
    assert flash_attention_schedule(tiles, WORKERS).makespan == flash
    assert flash_decoding_schedule(tiles, WORKERS).makespan == decoding
    assert stream_k(tiles, WORKERS).makespan == lean


@pytest.mark.parametrize(("outputs", "tokens", "flash", "decoding", "lean"), PUBLISHED)
def test_times_are_the_closed_forms(outputs, tokens, flash, decoding, lean):
    tiles = tokens // TILE
    splits = flash_decoding_splits(outputs, tiles, WORKERS)
    assert flash == math.ceil(outputs / WORKERS) * tiles
    assert decoding == math.ceil(outputs * splits / WORKERS) * math.ceil(tiles / splits)
    assert lean == math.ceil(outputs * tiles / WORKERS)


def test_the_gain_over_flash_decoding_is_the_published_range():
    ratios = [decoding / lean for *_, decoding, lean in PUBLISHED]
    assert round(min(ratios), 2) == 1.16
    assert round(max(ratios), 2) == 1.20


def test_occupancy_is_the_published_one():
    occupancies = [stream_k([n // TILE] * outputs, WORKERS).occupancy for outputs, n, *_ in PUBLISHED]
    assert round(occupancies[0], 3) == 0.948
    assert all(o > 0.997 for o in occupancies[1:])


def test_ragged_lengths_gain_more_than_equal_ones():
    tiles = [math.ceil(n / TILE) for n in RAGGED for _ in range(64)]
    free = [0] * WORKERS
    for count in tiles:  # list scheduling, written out
        free[free.index(min(free))] += count
    whole, lean = flash_attention_schedule(tiles, WORKERS), stream_k(tiles, WORKERS)
    assert whole.makespan == max(free)
    assert lean.makespan == math.ceil(64 * (1 + 4 + 12 + 24 + 47) / WORKERS) == 53
    assert round(whole.makespan / lean.makespan, 2) == 1.42


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 20))
def test_every_schedule_computes_every_tile_once(tiles, workers):
    expected = [(output, tile) for output, count in enumerate(tiles) for tile in range(count)]
    for make in (stream_k, flash_attention_schedule, flash_decoding_schedule):
        assert every_tile(make(tiles, workers)) == expected


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 20))
def test_stream_k_ranges_are_contiguous_and_loads_differ_by_one_at_most(tiles, workers):
    schedule = stream_k(tiles, workers)
    line = [(s.output, tile) for spans in schedule.workers for s in spans for tile in range(s.start, s.stop)]
    assert line == sorted(line)
    assert len(schedule.workers) == workers
    assert max(schedule.loads) - min(schedule.loads) <= 1
    assert list(schedule.loads) == sorted(schedule.loads, reverse=True)


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 20))
def test_the_host_of_an_output_comes_before_those_who_help_it(tiles, workers):
    schedule = stream_k(tiles, workers)
    assert sorted(schedule.hosts) == [output for output, count in enumerate(tiles) if count]
    for worker, spans in enumerate(schedule.workers):
        assert all(schedule.hosts[span.output] <= worker for span in spans)


def test_stream_k_is_never_slower_than_the_others():
    draw = random.Random(0)
    for _ in range(50):
        tiles, workers = [draw.randint(1, 30) for _ in range(draw.randint(1, 20))], draw.randint(1, 16)
        lean = stream_k(tiles, workers).makespan
        assert lean <= flash_attention_schedule(tiles, workers).makespan
        assert lean <= flash_decoding_schedule(tiles, workers).makespan


@pytest.mark.parametrize("caches", [4, 2, 1])
@pytest.mark.parametrize("decode", [lean_decode, split_decode])
def test_decoding_equals_the_softmax_over_the_cache(decode, caches):
    q, k, v = cache(caches=caches)
    lengths = torch.tensor([37, 11])
    given = {"tile": 4, "workers": 5} if decode is lean_decode else {"splits": 3}
    torch.testing.assert_close(decode(q, k, v, **given), explicit(q, k, v), rtol=0, atol=1e-12)
    found = decode(q, k, v, lengths=lengths, **given)
    torch.testing.assert_close(found, explicit(q, k, v, lengths), rtol=0, atol=1e-12)


@given(st.integers(1, 40), st.integers(1, 12), st.lists(st.integers(0, 37), min_size=2, max_size=2))
def test_any_cut_gives_the_same_result(tile, workers, lengths):
    q, k, v = cache()
    found = lean_decode(q, k, v, lengths=lengths, tile=tile, workers=workers)
    torch.testing.assert_close(found, explicit(q, k, v, lengths), rtol=0, atol=1e-12)
    found = split_decode(q, k, v, lengths=lengths, splits=workers)
    torch.testing.assert_close(found, explicit(q, k, v, lengths), rtol=0, atol=1e-12)


def test_partial_results_merge_in_any_order_and_tree():
    q, k, v = cache(batch=1, heads=2, caches=2)
    parts = [partial_attention(q, k[:, :, i : i + 4], v[:, :, i : i + 4]) for i in range(0, 37, 4)]
    draw = random.Random(1)
    for _ in range(10):
        pool = list(parts)
        while len(pool) > 1:
            draw.shuffle(pool)
            pool.append(merge(pool.pop(), pool.pop()))
        torch.testing.assert_close(finish(pool[0])[0], explicit(q, k, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("decode", [lean_decode, split_decode])
def test_logits_of_ten_thousand_are_stable(decode, sign):
    q, k, v = cache(dtype=torch.float32)
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    q[..., 0], k[..., 0] = 1.0, torch.linspace(-1e4, 1e4, 37) * sign
    found = decode(q, k, v, scale=1.0, **({"tile": 3, "workers": 5} if decode is lean_decode else {"splits": 5}))
    expected = explicit(q.double(), k.double(), v.double(), scale=1.0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decode", [lean_decode, split_decode])
def test_a_row_without_tokens_gives_zero_and_leaves_the_others_alone(decode):
    q, k, v = cache()
    found = decode(q, k, v, lengths=[0, 37])
    assert (found[0] == 0).all()
    torch.testing.assert_close(found[1:], explicit(q[1:], k[1:], v[1:]), rtol=0, atol=1e-12)
    assert (decode(q, k[:, :, :0], v[:, :, :0]) == 0).all()


@pytest.mark.parametrize("decode", [lean_decode, split_decode])
def test_tokens_beyond_the_length_are_not_read(decode):
    q, k, v = cache()
    k[0, :, 20:], v[0, :, 20:] = float("nan"), float("nan")
    assert decode(q, k, v, lengths=[20, 37]).isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("decode", [lean_decode, split_decode])
def test_lower_precision_stays_near(decode, dtype, tolerance):
    q, k, v = cache(tokens=500, dtype=dtype)
    found = decode(q, k, v, **({"tile": 64, "workers": 5} if decode is lean_decode else {"splits": 16}))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), explicit(q.double(), k.double(), v.double()), rtol=0, atol=tolerance)


@pytest.mark.parametrize("value_width", [3, 8, 11])
def test_values_may_have_another_width(value_width):
    q, k, v = cache(value_width=value_width)
    expected = explicit(q, k, v)
    torch.testing.assert_close(lean_decode(q, k, v, tile=5, workers=5), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(split_decode(q, k, v, splits=4), expected, rtol=0, atol=1e-12)


def test_a_cache_with_tokens_before_heads_is_not_copied():
    q, k, v = cache()
    k, v = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in (k, v))
    largest = Largest()
    with largest:
        found = split_decode(q, k, v, splits=3)
    torch.testing.assert_close(found, explicit(q, k, v), rtol=0, atol=1e-12)
    assert largest.numel < k.numel()


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Elements of the largest tensor with memory of its own that any operation gave."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor) and part.untyped_storage().data_ptr() not in inputs:
                self.numel = max(self.numel, part.numel())
        return out


def test_lean_decode_has_the_gradients_of_the_softmax():
    q, k, v = (part.requires_grad_() for part in cache(caches=2))
    lengths = [37, 11]
    weights = torch.randn(q.shape, dtype=q.dtype)
    found = torch.autograd.grad((lean_decode(q, k, v, lengths=lengths, tile=4) * weights).sum(), (q, k, v))
    expected = torch.autograd.grad((explicit(q, k, v, lengths) * weights).sum(), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_split_decode_refuses_to_be_differentiated():
    q, k, v = cache()
    with pytest.raises(ArgumentError, match=r"split_decode: found an input that requires gradients.*lean_decode"):
        split_decode(q.requires_grad_(), k, v)
    with torch.no_grad():
        assert not split_decode(q, k, v).requires_grad


def test_a_cache_is_split_only_where_threads_would_be_idle():
    assert decode_splits(1, 65536, 1) == 1
    assert decode_splits(1, 65536, 2) == 2
    assert decode_splits(1, 65536, 8) == 8 - 1  # 7 of 8 threads are 87.5 % of the best
    assert decode_splits(2, 65536, 2) == 1
    assert decode_splits(3, 65536, 2) == 2
    assert decode_splits(64, 65536, 8) == 1
    assert decode_splits(1, 8191, 8) == 1  # too short to be worth a merge
    assert decode_splits(1, 0, 8) == 1


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("value_width", [3, 6, 9])
def test_fused_log_sum_exp_and_gradients_equal_the_explicit_ones(monkeypatch, fused, causal, value_width):
    if not fused:
        monkeypatch.setattr(attention_module, "_CPU", None)
        monkeypatch.setattr(attention_module, "_CPU_BACKWARD", None)
        monkeypatch.setattr(attention_module, "_ROWS", 2)
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5, 6), (2, 3, 5, 6), (2, 3, 5, value_width))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes)
    allowed = torch.ones(5, 5, dtype=torch.bool).tril() if causal else None
    expected, expected_lse = attention_with_lse(q, k, v, allowed=allowed)
    with torch.no_grad():
        out, lse = fused_attention_with_lse(q, k, v, causal=causal)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * gradient).sum(), (q, k, v))
    with torch.no_grad():
        found = fused_attention_backward(gradient, q, k, v, out, lse, causal=causal)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_fused_log_sum_exp_refuses_gradients_and_other_heads():
    q, k, v = cache()
    with pytest.raises(ArgumentError, match="requires gradients"):
        fused_attention_with_lse(q.requires_grad_(), k, v)
    with pytest.raises(ArgumentError, match=r"found q \(2, 4, 1, 8\), k \(2, 2, 37, 8\)"):
        fused_attention_with_lse(q.detach(), k[:, :2], v[:, :2])


@pytest.mark.parametrize("decode", [lean_decode, split_decode])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (2, 4, 2, 8)}, r"q: found \(2, 4, 2, 8\), expected \(B, H, 1, E\)"),
        ({"k": (2, 4, 36, 8)}, r"k, v: found \(2, 4, 36, 8\) and \(2, 4, 37, 8\)"),
        ({"k": (2, 4, 37, 7)}, r"expected .* E = 8"),
        ({"k": (2, 3, 37, 8), "v": (2, 3, 37, 8)}, "k: found 3 heads, expected a divisor of the 4 of q"),
        ({"lengths": [37]}, r"lengths: found \[37\], expected 2 numbers from 0 to 37"),
        ({"lengths": [38, 1]}, r"lengths: found \[38, 1\]"),
        ({"lengths": [-1, 1]}, r"lengths: found \[-1, 1\]"),
    ],
)
def test_what_does_not_fit_is_named(decode, change, message):
    q, k, v = cache()
    given = {"q": q, "k": k, "v": v}
    given |= {n: torch.zeros(s, dtype=q.dtype) if isinstance(s, tuple) else s for n, s in change.items()}
    with pytest.raises(ArgumentError, match=f"{decode.__name__}: {message}" if ":" in message else message):
        decode(given.pop("q"), given.pop("k"), given.pop("v"), **given)


def test_a_batch_without_rows_gives_none():
    q, k, v = cache()
    for decode in (lean_decode, split_decode):
        assert decode(q[:0], k[:0], v[:0]).shape == (0, 4, 1, 8)


def test_numbers_below_one_are_refused():
    q, k, v = cache()
    for call, name in (
        (lambda: lean_decode(q, k, v, tile=0), "tile: found 0"),
        (lambda: lean_decode(q, k, v, workers=0), "workers: found 0"),
        (lambda: split_decode(q, k, v, splits=0), "splits: found 0"),
        (lambda: flash_decoding_schedule([1], 1, splits=0), "splits: found 0"),
        (lambda: stream_k([1, -1], 1), "tiles: found -1"),
    ):
        with pytest.raises(ArgumentError, match=name):
            call()


def test_a_merge_that_forgets_the_maxima_is_found_out(monkeypatch):
    """Negative control."""
    q, k, v = cache(factor=3.0)
    monkeypatch.setattr(method, "merge", lambda a, b: Partial(torch.maximum(a.m, b.m), a.l + b.l, a.o + b.o))
    wrong = lean_decode(q, k, v, tile=4, workers=7)
    assert (wrong - explicit(q, k, v)).abs().max() > 1e-2
