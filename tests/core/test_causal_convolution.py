"""Causal convolutions against loops over their sums; chunks against the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from manyheads.core.blocks.causal_convolution import CausalConvolution, CausalConvolution2d
from manyheads.core.errors import ArgumentError, StateError

SHAPES = [(3, 1, 1), (5, 2, 1), (3, 1, 4), (1, 1, 1), (2, 2, 1), (4, 3, 2)]  # kernel, stride, dilation


def by_loops(layer: CausalConvolution, x: Tensor) -> Tensor:
    """The equation of the module, one sum at a time."""
    rows = []
    for j in range(x.shape[1] // layer.stride):
        y = torch.zeros(x.shape[0], layer.outputs, dtype=x.dtype)
        for i in range(layer.kernel):
            t = layer.stride * (j + 1) - 1 - layer.dilation * (layer.kernel - 1 - i)
            if t >= 0:
                y = y + torch.einsum("oc,bc->bo", layer.weight[:, :, i], x[:, t])
        rows.append(y if layer.bias is None else y + layer.bias)
    return torch.stack(rows, 1)


def planes_by_loops(layer: CausalConvolution2d, x: Tensor) -> Tensor:
    batch, tokens, bins, _ = x.shape
    out = torch.zeros(batch, tokens // layer.stride, layer.bins_after(bins), layer.outputs, dtype=x.dtype)
    out = out + (0 if layer.bias is None else layer.bias)
    half = layer.kernel[1] // 2
    for j in range(out.shape[1]):
        for f in range(out.shape[2]):
            for i in range(layer.kernel[0]):
                for k in range(layer.kernel[1]):
                    t, m = layer.stride * (j + 1) - layer.kernel[0] + i, layer.bin_stride * f + k - half
                    if t >= 0 and 0 <= m < bins:
                        out[:, j, f] = out[:, j, f] + x[:, t, m] @ layer.weight[:, :, i, k].T
    return out


@pytest.mark.parametrize(("kernel", "stride", "dilation"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_sum_that_defines_it(kernel: int, stride: int, dilation: int, bias: bool) -> None:
    layer = CausalConvolution(3, 4, kernel, stride=stride, dilation=dilation, bias=bias).double()
    x = torch.randn(2, 12, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], by_loops(layer, x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), SHAPES)
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_equal_the_whole(kernel: int, stride: int, dilation: int, frozen: bool) -> None:
    layer = CausalConvolution(3, 4, kernel, stride=stride, dilation=dilation).double()
    if frozen:
        layer.freeze()
    x = torch.randn(2, 8 * stride, 3, dtype=torch.float64)
    whole, last = layer(x)
    parts, state = [], None
    for sizes in (0, 1, 1, 4, 0, 2):
        at = sum(part.shape[1] for part in parts) * stride
        y, state = layer(x[:, at : at + sizes * stride], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=0)
    assert state is not None
    assert torch.equal(state.frames, last.frames)
    assert state.frames.shape[1] == layer.context


def test_no_output_depends_on_a_later_frame() -> None:
    layer = CausalConvolution(3, 4, 5, stride=2).double()
    x = torch.randn(1, 12, 3, dtype=torch.float64, requires_grad=True)
    for j in range(6):
        (gradient,) = torch.autograd.grad(layer(x)[0][:, j].sum(), x)
        assert (gradient[:, 2 * (j + 1) :] == 0).all()
        assert (gradient[:, 2 * j + 1] != 0).all(), "the latest frame that it may see"


def test_gradients_agree_with_the_loops() -> None:
    layer = CausalConvolution(3, 4, 3, dilation=2).double()
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 9, 4, dtype=torch.float64)
    ours = torch.autograd.grad((layer(x)[0] * weights).sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad((by_loops(layer, x) * weights).sum(), [x, *layer.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_planes_equal_the_sum_that_defines_them(stride: int) -> None:
    layer = CausalConvolution2d(2, 3, (3, 5), stride=stride, bin_stride=2).double()
    x = torch.randn(2, 8, 7, 2, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], planes_by_loops(layer, x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_chunks_of_planes_equal_the_whole(stride: int) -> None:
    layer = CausalConvolution2d(2, 3, (3, 3), stride=stride, bin_stride=2).double()
    x = torch.randn(2, 8 * stride, 6, 2, dtype=torch.float64)
    whole, last = layer(x)
    parts, state = [], None
    for size in (1, 0, 3, 4):
        at = sum(part.shape[1] for part in parts) * stride
        y, state = layer(x[:, at : at + size * stride], state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=0)
    assert state is not None
    assert torch.equal(state.frames, last.frames)


def test_the_state_given_is_left_alone() -> None:
    layer = CausalConvolution(3, 4, 3)
    _, state = layer(torch.randn(2, 5, 3))
    before = state.frames.clone()
    layer(torch.randn(2, 5, 3), state)
    assert torch.equal(state.frames, before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kernel": 0}, "kernel"),
        ({"kernel": 3, "stride": 4}, "stride"),
        ({"kernel": 3, "lookahead": 3}, "lookahead"),
        ({"kernel": 5, "stride": 2, "lookahead": 1}, "multiple of the stride"),
    ],
)
def test_impossible_sizes_are_refused(arguments: dict[str, int], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        CausalConvolution(3, 4, **arguments)


def test_an_even_kernel_over_bins_is_refused() -> None:
    with pytest.raises(ArgumentError, match="odd"):
        CausalConvolution2d(1, 2, (3, 4))


def test_what_does_not_fit_is_refused() -> None:
    layer = CausalConvolution(3, 4, 4, stride=2)
    with pytest.raises(ArgumentError, match="multiple of the stride 2"):
        layer(torch.randn(1, 3, 3))
    with pytest.raises(ArgumentError, match=r"\(B, T, 3\)"):
        layer(torch.randn(1, 4, 5))
    with pytest.raises(StateError, match="state"):
        layer(torch.randn(1, 4, 3), CausalConvolution(3, 4, 5).init_state(1))
